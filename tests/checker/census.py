"""Counts what processes and the server hold, into the history: when a run begins, and when it ends. Judges nothing."""

import os
from collections.abc import Mapping
from pathlib import Path

import httpx2

from proto.log import Connection
from proto.subjects import STREAM
from tests.checker.history import Census, Recorder

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Of the server's own report: what grows when somebody forgets to close.
SERVER_COUNTS = ("connections", "subscriptions")


Counts = dict[str, dict[str, int]]
"""By what is counted: a process's name, `nats`."""


async def counts(pids: Mapping[str, int], connection: Connection, monitor_url: str | None = None) -> Counts:
    """Of each of `pids`, by its name, and of the server."""
    held = {subject: held_by(pid) for subject, pid in pids.items()}
    return held | {"nats": await held_by_server(connection, monitor_url)}


def record(recorder: Recorder, taken: Counts) -> None:
    for subject, some in taken.items():
        with recorder.recording(Census(subject=subject, counts=some)) as taking:
            taking.ok()


def is_no_more(now: Counts, before: Counts) -> bool:
    """Whether nothing but memory is more: what lingers is given its time by who asks again."""
    return all(
        count <= before[subject].get(name, count)
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
        "threads": sum(1 for _ in (process / "task").iterdir()),
        "rss_bytes": resident_pages * PAGE_BYTES,
    }


async def held_by_server(connection: Connection, monitor_url: str | None) -> dict[str, int]:
    """Consumers of the turns' stream; with the server's monitoring address, also what it holds of its clients."""
    counts = {"consumers": len(await connection.jetstream.consumers_info(STREAM))}
    if monitor_url is not None:
        async with httpx2.AsyncClient(base_url=monitor_url, trust_env=False) as client:
            told = (await client.get("/varz")).json()
        counts |= {name: int(told[name]) for name in SERVER_COUNTS}
    return counts
