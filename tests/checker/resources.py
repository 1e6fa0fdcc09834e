"""Counts the resources of processes and nats-servers, at the beginning and at the end of a run."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from tailrace.proto.nats import Connection
from tailrace.proto.subjects import STREAM

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# The main thread, that of the metrics, libuv's 4 threads for look-ups, and Python's default thread pool. Both pools
# grow to their size when they are needed, so fewer threads are counted as all of them.
THREADS = 2 + 4 + min(32, (os.cpu_count() or 1) + 4)

Counts = dict[str, dict[str, int]]
"""The counts of each process by its name, and of all nats-servers as `nats`."""


async def count_resources(pids: Mapping[str, int], connection: Connection, monitor_urls: Sequence[str]) -> Counts:
    counts = {name: count_process(pid) for name, pid in pids.items()}
    return counts | {"nats": await count_servers(connection, monitor_urls)}


def has_no_more(now: Counts, before: Counts) -> bool:
    """Whether no count except that of memory is higher than before."""
    return all(
        count <= before[subject].get(name, 0)
        for subject, counts in now.items()
        for name, count in counts.items()
        if name != "rss_bytes"
    )


def count_process(pid: int) -> dict[str, int]:
    """Returns open files, threads and resident memory of a process."""
    process = Path(f"/proc/{pid}")
    resident_pages = int((process / "statm").read_text().split()[1])
    return {
        "fds": sum(1 for _ in (process / "fd").iterdir()),
        "threads": max(THREADS, sum(1 for _ in (process / "task").iterdir())),
        "rss_bytes": resident_pages * PAGE_BYTES,
    }


async def count_servers(connection: Connection, monitor_urls: Sequence[str]) -> dict[str, int]:
    """Returns the consumers of the turns' stream, and the connections and subscriptions of all servers by client."""
    counts = Counter({"consumers": len(await connection.jetstream.consumers_info(STREAM))})
    for url in monitor_urls:
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            connected = (await client.get("/connz")).json()["connections"]
        for one in connected:
            counts[f"connections of {one['name']}"] += 1
            counts[f"subscriptions of {one['name']}"] += int(one["subscriptions"])
    return dict(counts)
