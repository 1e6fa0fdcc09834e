"""What can be done to the system, by name; each is proved to have happened, and healed. Judges nothing.

A fault has a lane, and there is at most one at a time in each: so at most one nats-server is faulty, and one way to it.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGKILL, SIGTERM, Signals
from typing import Literal, NamedTuple, get_args

from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.full_disk import is_stuck
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.readiness import http_get
from tests.chaos.clock import Clock
from tests.chaos.link import Failure
from tests.chaos.system import Ends, Joined, System
from tests.harness.disk import MIB, can_mount
from tests.harness.freeze import freeze
from tests.harness.processes import Process
from tests.harness.until import until

HOUR_S = 3600
FELT_S_MAX = 12.0
WHOLE_S_MAX = 120.0
STARTS_MAX = 5
NOISE = b"not a page " * 3000
WAITS = b"batch could not be recorded"
# What the simulated Claude does when a question asks it to (docs/SIMULATED.md), and after which delta.
MODEL = {"429": 0, "529": 0, "500": 0, "html": 0, "error": 9, "cut": 9, "stall": 9, "eof": 9, "garbage": 9}

Lane = Literal["log", "model", "gateway", "generator", "persistence", "clock", "question"]


class Struck(NamedTuple):
    """What a fault hit, how much of it was felt, and what it may have cost (checker: `Fault`)."""

    target: str
    felt: int
    interrupts: int = 0
    calls: int = 0


class Scene(NamedTuple):
    """Where a fault happens: how long it lasts, and how many turns run meanwhile."""

    system: System
    chance: Random
    hold_s: float
    lease_s: float
    at_once: int

    async def hold(self, felt: Callable[[], int], s: float = 0.0) -> int:
        """Lasts as long as it should, and until it was felt; how much."""
        await asyncio.sleep(s or self.hold_s)
        with suppress(AssertionError):
            await until(felt, FELT_S_MAX)
        return felt()

    async def one_of(self, processes: Sequence[Process]) -> Process:
        """One that is up; of generators, one that is just calling its model."""
        if processes is self.system.generators:
            processes = [one.process for one in await _used(self.system.links["model"]) if one.process is not None]
        process = self.chance.choice(processes)
        await self.system.back(process)
        return process


Strike = Callable[[Scene], Awaitable[Struck]]


class Kind(NamedTuple):
    """A kind of fault. `strike` is None for what the questions do. `needs` is what must be there for it."""

    lane: Lane
    felt: str
    """What is counted: how it is proved."""
    strike: Strike | None
    needs: Literal["", "nodes", "mount", "compiler"] = ""


# Processes.


async def signal(number: Signals, of: Callable[[System], Sequence[Process]], scene: Scene) -> Struck:
    """It is gone, and started again."""
    process = await scene.one_of(of(scene.system))
    name, pid = scene.system.name(process), process.pid
    process.signal(number)
    await until(lambda: process.pid != pid, WHOLE_S_MAX)
    await scene.system.back(process)
    return Struck(name, 1)


async def stop(of: Callable[[System], Sequence[Process]], scene: Scene) -> Struck:
    """It stands still, a generator for longer than its lease, and goes on as if nothing had happened."""
    process = await scene.one_of(of(scene.system))
    name = scene.system.name(process)
    freeze(process)
    try:
        felt = await scene.hold(lambda: _stands(process.pid), max(scene.hold_s, 1.3 * scene.lease_s))
    finally:
        process.signal(SIGCONT)
    return Struck(name, felt)


def _stands(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T")
    return 0


# Nats-servers.


async def signal_node(number: Signals, scene: Scene) -> Struck:
    node = scene.chance.choice(scene.system.nodes)
    await node.stop(number)
    try:
        await scene.hold(lambda: 1)
    finally:
        await _start(node)
    await _whole(scene)
    return Struck(node.spec.name, 1, scene.at_once)


async def stop_node(scene: Scene) -> Struck:
    node = scene.chance.choice(scene.system.nodes)
    freeze(node)
    try:
        felt = await scene.hold(lambda: _stands(node.pid), max(scene.hold_s, 3.0))
    finally:
        node.signal(SIGCONT)
    await _whole(scene)
    return Struck(node.spec.name, felt, scene.at_once)


async def step_down(scene: Scene) -> Struck:
    cluster = scene.system.cluster
    assert cluster is not None
    old = await cluster.leader()
    await cluster.step_down()
    return Struck(old.spec.name, int(await cluster.leader() is not old), scene.at_once)


async def fill_node(scene: Scene) -> Struck:
    """A server's disk is full. Once there is room it is started again, as `up` does it."""
    node, disk = scene.system.nodes[-1], scene.system.disk
    assert disk is not None
    stuck = 0

    async def look() -> bool:
        nonlocal stuck
        stuck = int(is_stuck(await http_get("127.0.0.1", node.spec.monitor_port, "/healthz")))
        return bool(stuck)

    try:
        _fill(disk)
        await scene.hold(lambda: 1)
        with suppress(AssertionError):
            await until(look, FELT_S_MAX)
    finally:
        (disk / "ballast").unlink()
        await node.stop(SIGTERM)
        await _start(node)
    await _whole(scene)
    return Struck(node.spec.name, stuck, scene.at_once)


def _fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(MIB))
    with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


async def _start(node: NatsServer) -> None:
    for _ in range(STARTS_MAX):
        with suppress(UpRefused):
            await node.start()
            return
    raise AssertionError(f"{node.spec.name} does not start")


async def _whole(scene: Scene) -> None:
    """Returns when all servers have everything: no other fault befalls them before.

    Also what is not the turns' stream: a bucket or a consumer that had lost two of its three copies would stand still.
    """
    if scene.system.cluster is not None:
        await until(scene.system.cluster.is_whole, WHOLE_S_MAX)


# Links.


async def link(ends: Ends, failure: Failure, scene: Scene) -> Struck:
    one = scene.chance.choice(await _used(scene.system.links[ends]))
    failing = _with_others(scene, one) if ends == "route" else [one]
    before = sum(joined.link.felt[failure] for joined in failing)

    def felt() -> int:
        return sum(joined.link.felt[failure] for joined in failing) - before

    for joined in failing:
        joined.link.fail(failure)
    try:
        count = await scene.hold(felt)
    finally:
        for joined in failing:
            joined.link.mend()
    if ends in ("log", "route"):
        await _whole(scene)
    costs = ends == "route" or one.process in scene.system.generators
    return Struck(one.link.name, count, scene.at_once * costs, scene.at_once * (ends == "model"))


async def _used(links: Sequence[Joined]) -> list[Joined]:
    """Those that somebody is connected over: nobody feels what befalls another."""

    def used() -> list[Joined]:
        return [joined for joined in links if joined.link.carries]

    return await until(used, WHOLE_S_MAX)


def _with_others(scene: Scene, one: Joined) -> list[Joined]:
    """Both ways between two servers, or all ways of one: whoever dialled."""
    here, _, there = one.link.name.partition(" > ")
    wanted = {here, there} if scene.chance.random() < 0.5 else {here}
    return [joined for joined in scene.system.links["route"] if wanted <= set(joined.link.name.split(" > "))]


# The database.


async def lock_database(scene: Scene) -> Struck:
    """Another program has it."""
    with closing(sqlite3.connect(scene.system.database, isolation_level=None, timeout=0)) as other:
        await until(lambda: _says(other, "BEGIN EXCLUSIVE"))
        before = _waits(scene.system)
        felt = await scene.hold(lambda: _waits(scene.system) - before)
        other.execute("ROLLBACK")
    return Struck("database", felt)


async def fill_database(scene: Scene) -> Struck:
    """Its disk is full."""
    await _emptied(scene.system)
    before = _waits(scene.system)
    try:
        _fill(scene.system.database.parent)
        felt = await scene.hold(lambda: _waits(scene.system) - before)
    finally:
        (scene.system.database.parent / "ballast").unlink()
    return Struck("database", felt)


async def corrupt_database(scene: Scene) -> Struck:
    """Noise in the file, and a start that finds it: what is damaged is set aside, and a new one made from the log."""
    system = scene.system
    before = _damaged(system)
    await _still(system)
    # What the journal holds is read in place of the noise.
    while _journalled(system):
        system.persistence.signal(SIGCONT)
        await _still(system)
    with system.database.open("r+b") as file:
        file.write(NOISE)
    system.persistence.signal(SIGKILL)
    felt = await scene.hold(lambda: _damaged(system) - before)
    await system.back(system.persistence)
    # An hour of them would fill its disk.
    for aside in system.database.parent.glob("*.damaged-*"):
        aside.unlink()
    return Struck("database", felt)


async def _still(system: System) -> None:
    """The journal is emptied, and persistence stopped; who is quick has written again by then."""
    await system.back(system.persistence)
    await _emptied(system)
    freeze(system.persistence)


async def remove_database(scene: Scene) -> Struck:
    """The file is deleted while it is open."""
    system = scene.system
    await system.back(system.persistence)
    pid = system.persistence.pid
    _remove(system)
    felt = await scene.hold(lambda: int(system.persistence.pid != pid))
    await system.back(system.persistence)
    return Struck("database", felt)


def _journalled(system: System) -> int:
    journal = Path(f"{system.database}-wal")
    return journal.stat().st_size if journal.exists() else 0


def _remove(system: System) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{system.database}{suffix}").unlink(missing_ok=True)


def _says(other: sqlite3.Connection, statement: str) -> bool:
    with suppress(sqlite3.OperationalError):
        other.execute(statement)
        return True
    return False


async def _emptied(system: System) -> None:
    """What is in the journal is in the file."""
    with closing(sqlite3.connect(system.database, isolation_level=None, timeout=0)) as other:

        def is_empty() -> bool:
            with suppress(sqlite3.OperationalError):
                return bool(other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
            return False

        await until(is_empty)


def _waits(system: System) -> int:
    """How often persistence has said that it cannot write."""
    return system.persistence.printed.read_bytes().count(WAITS)


def _damaged(system: System) -> int:
    return sum(1 for _ in system.database.parent.glob("*.damaged-?"))


# The clock.


async def jump(scene: Scene) -> Struck:
    """An hour forth or back, and back again."""
    clocks: list[tuple[Process, Clock]] = list(scene.system.clocks.items())
    process, clock = scene.chance.choice(clocks)
    before = clock.asked
    clock.jump(scene.chance.choice((HOUR_S, -HOUR_S)))
    try:
        felt = await scene.hold(lambda: clock.asked - before)
    finally:
        clock.jump(0)
    return Struck(scene.system.name(process), felt)


def _generators(system: System) -> Sequence[Process]:
    return system.generators


def _gateways(system: System) -> Sequence[Process]:
    return system.gateways


def _persistence(system: System) -> Sequence[Process]:
    return [system.persistence]


PROCESSES: dict[Lane, Callable[[System], Sequence[Process]]] = {
    "generator": _generators,
    "gateway": _gateways,
    "persistence": _persistence,
}
LANES: dict[Ends, Lane] = {"client": "gateway", "log": "log", "route": "log", "model": "model"}

KINDS: dict[str, Kind] = {}
for _lane, _of in PROCESSES.items():
    KINDS[f"kill-{_lane}"] = Kind(_lane, "pids gone", partial(signal, SIGKILL, _of))
    KINDS[f"restart-{_lane}"] = Kind(_lane, "pids gone", partial(signal, SIGTERM, _of))
    KINDS[f"stop-{_lane}"] = Kind(_lane, "stood still", partial(stop, _of))
KINDS |= {
    "kill-node": Kind("log", "pids gone", partial(signal_node, SIGKILL)),
    "restart-node": Kind("log", "pids gone", partial(signal_node, SIGTERM)),
    "stop-node": Kind("log", "stood still", stop_node),
    "step-down": Kind("log", "leaders changed", step_down, "nodes"),
    "fill-node": Kind("log", "writes failed", fill_node, "mount"),
}
for _ends, _lane in LANES.items():
    for _failure in get_args(Failure):
        _felt = "connections reset" if _failure == "cut" else "bytes"
        KINDS[f"{_failure}-{_ends}"] = Kind(
            _lane, _felt, partial(link, _ends, _failure), "nodes" if _ends == "route" else ""
        )
KINDS |= {
    "lock-database": Kind("persistence", "writes refused", lock_database),
    "fill-database": Kind("persistence", "writes refused", fill_database, "mount"),
    "corrupt-database": Kind("persistence", "files set aside", corrupt_database),
    "remove-database": Kind("persistence", "pids gone", remove_database),
    "jump-clock": Kind("clock", "wrong times told", jump, "compiler"),
}
for _model in MODEL:
    KINDS[f"model-{_model}"] = Kind("question", "calls broken", None)


def lacks(kind: Kind, nodes: int, *, has_compiler: bool) -> str:
    """Why it cannot happen here; empty: it can."""
    if kind.needs == "nodes" and nodes == 1:
        return "there is one nats-server"
    if kind.needs == "mount" and not can_mount():
        return "only root may mount a disk"
    if kind.needs == "compiler" and not has_compiler:
        return "there is no C compiler"
    return ""
