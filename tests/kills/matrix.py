"""All waves, one house a process that is killed, and what the checker says of each. It writes nothing."""

import asyncio
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from tailrace.gateway.clients.registry import DIALECTS
from tailrace.proto.nats import streams
from tests.checker import invariants
from tests.checker.bounds import Bounds
from tests.checker.house import opened
from tests.checker.run import load
from tests.kills.cell import Cell, cells
from tests.kills.held import held
from tests.kills.judged import Hit, hits, waits_s
from tests.kills.page import evidence
from tests.kills.wave import Turn, wave
from tests.promises import Verdict

# Nobody cancels here, nobody is counted, nobody is noisy, and no POST has a key.
UNKNOWN = ("I7 idempotency", "I8 cancellation", "I12 resources", "I13 isolation")
BOUNDS = Bounds(end_s=0)
# Of a generator's death times are wanted: seven die in a wave, and of fifty-six there is a p95.
VICTIMS = 7
ROUNDS = {"generator": 2, "gateway": 1, "persistence": 1, "nats-server": 1}
# Most of a wave is waiting: for a lease to run out, for a process to start.
AT_ONCE = 2
OTHERS = tuple(name for name in DIALECTS if name != "tailrace")


class Matrix(msgspec.Struct):
    hits: list[Hit] = []
    broken: dict[str, dict[str, Verdict]] = {}
    """What the checker says of a process's whole run, where that is not green."""
    taken_over_s: list[float] = []
    """From a generator's death until a reader had more of the answer."""
    resumed_s: list[float] = []
    """From a gateway's death until a reader of it had more, at another."""

    @property
    def is_green(self) -> bool:
        return bool(self.hits) and not any(hit.wrong for hit in self.hits) and not any(self.broken.values())

    def report(self) -> Iterator[str]:
        yield from evidence(self.hits, self.broken)
        kills = {(hit.process, hit.killer) for hit in self.hits}
        yield f"{len(kills)} kills, {len(self.hits)} turns hit, {sum(len(hit.dialects) for hit in self.hits)} readers"
        yield waited("generator killed, next delta", self.taken_over_s, f"bar {streams.GENERATOR_ACK_WAIT_S + 2:g} s")
        yield waited("gateway killed, resumed", self.resumed_s, "bar 3 s")


def waited(what: str, times_s: Sequence[float], bar: str) -> str:
    if len(times_s) < 2:
        return f"{what}: {len(times_s)} times"
    percentiles = statistics.quantiles(times_s, n=100, method="inclusive")
    return (
        f"{what}: {len(times_s)} waits, median {percentiles[49]:.2f} s, p95 {percentiles[94]:.2f} s, "
        f"p99 {percentiles[98]:.2f} s, max {max(times_s):.2f} s ({bar})"
    )


async def run_all(processes: Sequence[str], kinds: Sequence[str]) -> Matrix:
    matrix, room = Matrix(), asyncio.Semaphore(AT_ONCE)

    async def all_of(process: str) -> None:
        waves = [
            (f"{n}-{number}", list(cells(kind))) for n in range(ROUNDS[process]) for number, kind in enumerate(kinds)
        ]
        async with room:
            with tempfile.TemporaryDirectory(prefix="tailrace-kills-") as folder:
                await run(matrix, process, waves, Path(folder))

    async with asyncio.TaskGroup() as group:
        for process in processes:
            group.create_task(all_of(process))
    return matrix


async def run(
    matrix: Matrix, process: str, waves: Iterable[tuple[str, Sequence[Cell]]], folder: Path, *, victims: int = VICTIMS
) -> None:
    """The waves of one process, each with its name, in one house; what came of them is added to the matrix."""
    turns: list[Turn] = []
    async with opened(folder, generators=0, gateways=2, sync="always", make=held) as house:
        for name, some in waves:
            print(f"{process} killed: {name}", flush=True)
            turns += await wave(house, process, some, name, OTHERS, victims=victims)
        await house.collect()
    found = load(folder)
    matrix.hits += hits(found, turns)
    matrix.broken[process] = invariants.not_held(invariants.judge(found, BOUNDS), UNKNOWN)
    if process == "generator":
        matrix.taken_over_s += waits_s(found, turns, is_delta=True)
    if process == "gateway":
        matrix.resumed_s += waits_s(found, turns, is_delta=False)
