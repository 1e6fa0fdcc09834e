"""Turns that persistence records in a second, and their CPU time, with SQLite and with PostgreSQL.

    python -m benchmarks.recording [--turns 1000]

Writes the turns into a log first. Then starts persistence, and measures until it has acknowledged all of them. Needs
Debian's package `postgresql`. Its server runs with `fsync=on`, so each commit is on the disk.
"""

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.command_line import count, new_parser
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Deliveries
from tailrace.proto.subjects import PERSISTENCE
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.processes import Process
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until

TURNS_OF_SESSION, WRITERS, DELTAS = 5, 16, 20
WITHIN_S = 120.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


async def write(system: System, turns: int) -> None:
    numbers = iter(range(turns))

    async def write_some() -> None:
        for number in numbers:
            writer = Writer(system.log, TurnKey(Tenant(f"tenant-{number % 10}"), TurnId(new_id())))
            await writer.store_request(
                session=SessionId(f"session-{number // TURNS_OF_SESSION}"), metadata={"team": "a"}
            )
            await writer.begin(*["Light scatters. "] * DELTAS)
            await writer.end()

    await asyncio.gather(*(write_some() for _ in range(WRITERS)))


def cpu_s(pids: list[int]) -> float:
    """Returns the CPU time of processes and of their children that still run or were waited for."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) in pids:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) in pids:
            total += sum(map(int, fields[11:13]))
    return total / TICKS_PER_S


async def measure(name: str, turns: int, server: PostgreSQLServer | None, recorders: int) -> None:
    url = await server.new_database() if server else ""
    with tempfile.TemporaryDirectory() as folder:
        async with System(Path(folder), sync="default", database_url=url) as system:
            await write(system, turns)
            recorded = await Deliveries.open(system.connection, PERSISTENCE)
            started: list[Process] = [await system.new_persistence(f"persistence-{n}") for n in range(recorders)]
            began_at = time.monotonic()
            servers = [server.pid] if server else []
            before = cpu_s(servers)
            await asyncio.gather(*(process.start() for process in started))
            ready_s, start_cpu_s = time.monotonic() - began_at, cpu_s([process.pid for process in started])
            await until(recorded.is_drained, WITHIN_S)
            took_s = time.monotonic() - began_at
            ours = cpu_s([process.pid for process in started])
            theirs = cpu_s(servers) - before
    print(
        f"{name:<24} {turns / took_s:7,.0f} turns/s, {1000 * ours / turns:5.2f} ms CPU a turn in persistence, "
        f"{1000 * theirs / turns:5.2f} in the server (starts: {ready_s:.1f} s, {start_cpu_s:.1f} s CPU, included)",
        flush=True,
    )


async def main(turns: int) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(PostgreSQLServer("fsync=on"))
        for _ in range(2):
            await measure("SQLite", turns, None, 1)
            await measure("PostgreSQL", turns, server, 1)
            await measure("PostgreSQL, 2 processes", turns, server, 2)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--turns", type=count, default=1000)
    asyncio.run(main(parser.parse_args().turns))
