"""Counts what processes and the server hold, into the history: when a run begins, and when it ends. Judges nothing."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from tailrace.proto.nats import Connection
from tailrace.proto.subjects import STREAM
from tests.checker.history import Census, Recorder

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# The main thread, and those of Python's own pool: it grows to so many when it is needed, and they are counted before.
POOL = 1 + min(32, (os.cpu_count() or 1) + 4)

Counts = dict[str, dict[str, int]]
"""By what is counted: a process's name, `nats`."""


async def counts(pids: Mapping[str, int], connection: Connection, monitor_urls: Sequence[str]) -> Counts:
    """Of each of `pids`, by its name, and of the servers."""
    held = {subject: held_by(pid) for subject, pid in pids.items()}
    return held | {"nats": await held_by_server(connection, monitor_urls)}


def record(recorder: Recorder, taken: Counts, pids: Mapping[str, int]) -> None:
    for subject, some in taken.items():
        with recorder.recording(Census(subject=subject, pid=pids.get(subject, 0), counts=some)) as taking:
            taking.ok()


def is_no_more(now: Counts, before: Counts) -> bool:
    """Whether nothing but memory is more: what lingers is given its time by who asks again."""
    return all(
        count <= before[subject].get(name, 0)
        for subject, some in now.items()
        for name, count in some.items()
        if name != "rss_bytes"
    )


def held_by(pid: int) -> dict[str, int]:
    """Open files, threads and resident memory of a process."""
    process = Path(f"/proc/{pid}")
    resident_pages = int((process / "statm").read_text().split()[1])
    return {
        "fds": sum(1 for _ in (process / "fd").iterdir()),
        "threads": max(POOL, sum(1 for _ in (process / "task").iterdir())),
        "rss_bytes": resident_pages * PAGE_BYTES,
    }


async def held_by_server(connection: Connection, monitor_urls: Sequence[str]) -> dict[str, int]:
    """Consumers of the turns' stream, and what all servers together hold of their clients."""
    counts = Counter({"consumers": len(await connection.jetstream.consumers_info(STREAM))})
    for url in monitor_urls:
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            connected = (await client.get("/connz")).json()["connections"]
        for one in connected:
            counts[f"connections of {one['name']}"] += 1
            counts[f"subscriptions of {one['name']}"] += int(one["subscriptions"])
    return dict(counts)
