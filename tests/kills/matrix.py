"""Runs all rounds, with one system for each process that is killed, and checks each run."""

import asyncio
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from tailrace.features.gateway import DIALECTS
from tailrace.proto.nats import stream_configs
from tests.checker import invariants
from tests.checker.recorded_system import RecordedSystem
from tests.checker.run import load
from tests.checker.verdicts import Bounds
from tests.kills.cell import Cell, cells
from tests.kills.page import evidence
from tests.kills.paused_process import pausable
from tests.kills.reservations import kill_reserving_gateways
from tests.kills.results import Hit, hits, pauses_s
from tests.kills.round import Turn, run_round
from tests.promises import Verdict

# These runs have no idempotency keys, cancellations, resource counts, other tenants, steers or batches.
UNKNOWN = ("I7 idempotency", "I8 cancellation", "I12 resources", "I13 isolation", "I20 steers", *invariants.OF_BATCHES)
BOUNDS = Bounds(end_s=0)
# 7 generators die in a round: 2 rounds of 4 kinds give 56 takeover times, enough for a p95.
VICTIMS = 7
ROUNDS = {"generator": 2, "gateway": 1, "persistence": 1, "nats-server": 1}
# A round mostly waits for a lease to expire or a process to start.
CONCURRENT_SYSTEMS = 2
OTHERS = tuple(name for name in DIALECTS if name != "tailrace")


class Matrix(msgspec.Struct):
    hits: list[Hit] = []
    broken: dict[str, dict[str, Verdict]] = {}
    """The invariants that did not hold, by the process that was killed."""
    takeover_s: list[float] = []
    """From the kill of a generator to the next delta of a reader."""
    resume_s: list[float] = []
    """From the kill of a gateway to the next frame of a reader that reconnected."""

    @property
    def is_green(self) -> bool:
        return bool(self.hits) and not any(hit.wrong for hit in self.hits) and not any(self.broken.values())

    def report(self) -> Iterator[str]:
        yield from evidence(self.hits, self.broken)
        kills = {(hit.process, hit.kill) for hit in self.hits}
        yield f"{len(kills)} kills, {len(self.hits)} turns hit, {sum(len(hit.dialects) for hit in self.hits)} readers"
        yield statistics_of(
            "generator killed, next delta", self.takeover_s, f"limit {stream_configs.GENERATOR_ACK_WAIT_S + 2:g} s"
        )
        yield statistics_of("gateway killed, resumed", self.resume_s, "limit 3 s")


def statistics_of(what: str, times_s: Sequence[float], limit: str) -> str:
    if len(times_s) < 2:
        return f"{what}: {len(times_s)} times"
    percentiles = statistics.quantiles(times_s, n=100, method="inclusive")
    return (
        f"{what}: {len(times_s)} times, median {percentiles[49]:.2f} s, p95 {percentiles[94]:.2f} s, "
        f"p99 {percentiles[98]:.2f} s, max {max(times_s):.2f} s ({limit})"
    )


async def run_all(processes: Sequence[str], kinds: Sequence[str]) -> Matrix:
    matrix, slots = Matrix(), asyncio.Semaphore(CONCURRENT_SYSTEMS)

    async def all_of(process: str) -> None:
        rounds = [
            (f"{n}-{number}", list(cells(kind))) for n in range(ROUNDS[process]) for number, kind in enumerate(kinds)
        ]
        async with slots:
            with tempfile.TemporaryDirectory(prefix="tailrace-kills-") as folder:
                await run(matrix, process, rounds, Path(folder))

    async with asyncio.TaskGroup() as group:
        for process in processes:
            group.create_task(all_of(process))
    return matrix


async def run(
    matrix: Matrix, process: str, rounds: Iterable[tuple[str, Sequence[Cell]]], folder: Path, *, victims: int = VICTIMS
) -> None:
    """Runs the named rounds of one process in one system, and adds their results to the matrix.

    All settings have their defaults, but for TAILRACE_CONCURRENCY and TAILRACE_TENANT_SHARE, which distribute the
    turns over the generators.
    """
    turns: list[Turn] = []
    async with RecordedSystem(folder, launch=pausable) as system:
        await system.start(generators=0, gateways=2)
        if process == "gateway":
            await kill_reserving_gateways(system)
        for name, cells in rounds:
            print(f"{process} killed: {name}", flush=True)
            turns += await run_round(system, process, cells, name, OTHERS, victims=victims)
        await system.collect()
    found = load(folder)
    matrix.hits += hits(found, turns)
    matrix.broken[process] = invariants.find_failed(invariants.judge(found, BOUNDS), UNKNOWN)
    if process == "generator":
        matrix.takeover_s += pauses_s(found, turns, is_delta=True)
    if process == "gateway":
        matrix.resume_s += pauses_s(found, turns, is_delta=False)
