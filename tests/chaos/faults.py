"""The faults by name: each injects itself, waits until it has an effect, and heals itself.

A fault belongs to a group, and each group has at most one at a time. So at most one nats-server fails at a time.
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
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.readiness import http_get
from tailrace.deploy.local.watch import is_stuck
from tailrace.proto.nats.stream_configs import GENERATOR_ACK_WAIT_S
from tests.chaos.system import ChaosSystem, Connection
from tests.harness.disk import MIB, can_mount
from tests.harness.freeze import freeze, frozen_threads
from tests.harness.proxy import Failure
from tests.harness.system import Role, Target
from tests.harness.until import until

HOUR_S = 3600
EFFECT_S_MAX = 12.0
HEALED_S_MAX = 120.0
STARTS_MAX = 5
NOISE = b"not a page " * 3000
# Persistence logs a cause once: when it writes a batch, or when it only looks for lost turns.
DATABASE_FAILED = (b"batch could not be recorded", b"the database cannot be used")
# Failures of the simulated Claude (docs/SIMULATED.md), with the delta after which each happens.
MODEL = {"429": 0, "529": 0, "500": 0, "html": 0, "error": 9, "cut": 9, "stall": 9, "eof": 9, "garbage": 9}

# The same of a message batch, as directives of its first question. A lost creation makes the generator search for it.
MESSAGE_BATCH = {
    "unknown": "fault=unknownx1",
    "unlisted": "fault=cutx1 fault=unlisted@1x1",
    "broken": "fault=cutx1 fault=brokenx4",
}

Group = Literal["log", "model", "gateway", "generator", "persistence", "clock", "prompt", "batch"]


class Effect(NamedTuple):
    """The target of a fault, how much of the effect was counted, and its costs (checker: `Fault`)."""

    target: str
    size: int
    interrupts: int = 0
    calls: int = 0


class Context(NamedTuple):
    """The system, how long the fault lasts, and how many turns run meanwhile."""

    system: ChaosSystem
    random: Random
    duration_s: float
    concurrent_turns: int

    async def wait(self, count: Callable[[], int], s: float = 0.0) -> int:
        """Waits for the duration, and until `count` has found an effect. Returns the last count."""
        await asyncio.sleep(s or self.duration_s)
        with suppress(AssertionError):
            await until(count, EFFECT_S_MAX)
        return count()

    async def choose(self, role: Role) -> str:
        """Returns the name of a running process; of generators, of one that is calling its model."""
        if role == "generator":
            names = [one.source for one in await _wait_for_open(self.system.connections["model"])]
        else:
            names = [name for name in self.system.processes if name.startswith(role)]
        name = self.random.choice(names)
        await self.system.wait_for_restart(self.system.processes[name])
        return name


Inject = Callable[[Context], Awaitable[Effect]]


class Kind(NamedTuple):
    """A kind of fault. `effect` is what is counted. `inject` is None for failures that the prompts request."""

    group: Group
    effect: str
    inject: Inject | None
    needs: Literal["", "servers", "mount", "compiler"] = ""


# Processes.


async def signal_process(number: Signals, role: Role, context: Context) -> Effect:
    """Ends a process, which the system starts again."""
    name = await context.choose(role)
    process, log_name = context.system.processes[name], context.system.log_name(name)
    pid = process.pid
    process.signal(number)
    await until(lambda: process.pid != pid, HEALED_S_MAX)
    await context.system.wait_for_restart(process)
    return Effect(log_name, 1)


async def freeze_process(role: Role, context: Context) -> Effect:
    """Freezes a process for longer than a lease."""
    name = await context.choose(role)
    process, log_name = context.system.processes[name], context.system.log_name(name)
    freeze(process)
    try:
        count = await context.wait(
            partial(frozen_threads, process), max(context.duration_s, 1.3 * GENERATOR_ACK_WAIT_S)
        )
    finally:
        process.signal(SIGCONT)
    return Effect(log_name, count)


# Nats-servers.


async def signal_server(number: Signals, context: Context) -> Effect:
    server = context.random.choice(context.system.servers)
    await server.stop(number)
    try:
        await context.wait(lambda: 1)
    finally:
        await _start(server)
    await context.system.wait_until_healed(HEALED_S_MAX)
    return Effect(server.spec.name, 1, context.concurrent_turns)


async def freeze_server(context: Context) -> Effect:
    server = context.random.choice(context.system.servers)
    freeze(server)
    try:
        count = await context.wait(partial(frozen_threads, server), max(context.duration_s, 3.0))
    finally:
        server.signal(SIGCONT)
    await context.system.wait_until_healed(HEALED_S_MAX)
    return Effect(server.spec.name, count, context.concurrent_turns)


async def step_down(context: Context) -> Effect:
    cluster = context.system.cluster
    assert cluster is not None
    old = await cluster.leader()
    await cluster.step_down()
    return Effect(old.spec.name, int(await cluster.leader() is not old), context.concurrent_turns)


async def fill_server_disk(context: Context) -> Effect:
    """Fills the disk of a server; frees it and restarts the server, as `up` does."""
    server, disk = context.system.servers[-1], context.system.small_disk
    assert disk is not None
    count = 0

    async def has_failed() -> bool:
        nonlocal count
        count = int(is_stuck(await http_get("127.0.0.1", server.spec.monitor_port, "/healthz")))
        return bool(count)

    try:
        _fill(disk)
        await context.wait(lambda: 1)
        with suppress(AssertionError):
            await until(has_failed, EFFECT_S_MAX)
    finally:
        (disk / "ballast").unlink()
        try:
            await server.stop(SIGTERM)
        except TimeoutError:
            await server.stop(SIGKILL)
        await _start(server)
    await context.system.wait_until_healed(HEALED_S_MAX)
    return Effect(server.spec.name, count, context.concurrent_turns)


def _fill(disk: Path) -> None:
    for size in (MIB, 4096):
        with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as ballast:
            while True:
                ballast.write(bytes(size))


async def _start(server: NatsServer) -> None:
    for _ in range(STARTS_MAX):
        with suppress(UpRefused):
            await server.start()
            return
    raise AssertionError(f"{server.spec.name} does not start")


# Connections.


async def fail_connection(target: Target, failure: Failure, context: Context) -> Effect:
    one = context.random.choice(await _wait_for_open(context.system.connections[target]))
    failing = _routes(context, one) if target == "route" else [one]

    def count() -> int:
        return sum(connection.proxy.affected[failure] + connection.proxy.held_back for connection in failing)

    before = count()
    for connection in failing:
        connection.proxy.fail(failure)
    try:
        affected = await context.wait(lambda: count() - before)
    finally:
        for connection in failing:
            connection.proxy.restore()
    if target in ("nats-server", "route"):
        await context.system.wait_until_healed(HEALED_S_MAX)
    may_interrupt = target == "route" or one.source.startswith("generator-")
    turns = context.concurrent_turns
    return Effect(one.proxy.name, affected, turns * may_interrupt, turns * (target == "model"))


async def _wait_for_open(connections: Sequence[Connection]) -> list[Connection]:
    """Waits until some of them have an open connection, and returns those: a fault of another has no effect."""

    def in_use() -> list[Connection]:
        return [connection for connection in connections if connection.proxy.open_connections]

    return await until(in_use, HEALED_S_MAX)


def _routes(context: Context, one: Connection) -> list[Connection]:
    """Returns the routes between two servers in both directions, or all routes of one server."""
    here, _, there = one.proxy.name.partition(" > ")
    wanted = {here, there} if context.random.random() < 0.5 else {here}
    routes = context.system.connections["route"]
    return [connection for connection in routes if wanted <= set(connection.proxy.name.split(" > "))]


# The database.


async def lock_database(context: Context) -> Effect:
    """Another program locks the database."""
    with closing(sqlite3.connect(context.system.database, isolation_level=None, timeout=0)) as other:
        await until(lambda: _execute(other, "BEGIN EXCLUSIVE"))
        before = _failed_writes(context.system)
        count = await context.wait(lambda: _failed_writes(context.system) - before)
        other.execute("ROLLBACK")
    return Effect("database", count)


async def fill_database_disk(context: Context) -> Effect:
    await _checkpoint(context.system)
    before = _failed_writes(context.system)
    try:
        _fill(context.system.database.parent)
        count = await context.wait(lambda: _failed_writes(context.system) - before)
    finally:
        (context.system.database.parent / "ballast").unlink()
    return Effect("database", count)


async def corrupt_database(context: Context) -> Effect:
    """Overwrites a part of the file and kills persistence, which sets the file aside and builds a new one."""
    system = context.system
    before = _damaged_files(system)
    await _freeze_idle(system)
    # SQLite would read the pages in the journal instead.
    while _journal_bytes(system):
        system.persistence.signal(SIGCONT)
        await _freeze_idle(system)
    with system.database.open("r+b") as file:
        file.write(NOISE)
    system.persistence.signal(SIGKILL)
    count = await context.wait(lambda: _damaged_files(system) - before)
    await system.wait_for_restart(system.persistence)
    # The damaged files of an hour would fill the disk.
    for damaged in system.database.parent.glob("*.damaged-*"):
        damaged.unlink()
    return Effect("database", count)


async def _freeze_idle(system: ChaosSystem) -> None:
    """Freezes persistence after a checkpoint. It may have written again in between."""
    await system.wait_for_restart(system.persistence)
    await _checkpoint(system)
    freeze(system.persistence)


async def remove_database(context: Context) -> Effect:
    """Deletes the open file; persistence ends, and starts with a new one."""
    system = context.system
    await system.wait_for_restart(system.persistence)
    pid = system.persistence.pid
    _remove(system)
    count = await context.wait(lambda: int(system.persistence.pid != pid))
    await system.wait_for_restart(system.persistence)
    return Effect("database", count)


def _remove(system: ChaosSystem) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{system.database}{suffix}").unlink(missing_ok=True)


def _journal_bytes(system: ChaosSystem) -> int:
    journal = Path(f"{system.database}-wal")
    return journal.stat().st_size if journal.exists() else 0


def _execute(other: sqlite3.Connection, statement: str) -> bool:
    with suppress(sqlite3.OperationalError):
        other.execute(statement)
        return True
    return False


async def _checkpoint(system: ChaosSystem) -> None:
    """Moves the journal into the file."""
    with closing(sqlite3.connect(system.database, isolation_level=None, timeout=0)) as other:

        def is_empty() -> bool:
            with suppress(sqlite3.OperationalError):
                return bool(other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
            return False

        await until(is_empty)


def _failed_writes(system: ChaosSystem) -> int:
    printed = system.persistence.printed.read_bytes()
    return sum(map(printed.count, DATABASE_FAILED))


def _damaged_files(system: ChaosSystem) -> int:
    return sum(1 for _ in system.database.parent.glob("*.damaged-?"))


# The clock.


async def jump_clock(context: Context) -> Effect:
    """Sets the wall clock of a process an hour forward or back, and right again."""
    name, clock = context.random.choice(list(context.system.clocks.items()))
    before = clock.wrong_readings
    clock.jump(context.random.choice((HOUR_S, -HOUR_S)))
    try:
        count = await context.wait(lambda: clock.wrong_readings - before)
    finally:
        clock.jump(0)
    return Effect(name, count)


ROLES: tuple[Role, ...] = get_args(Role)
GROUPS: dict[Target, Group] = {"gateway": "gateway", "nats-server": "log", "route": "log", "model": "model"}
# The names of targets in the names of faults.
TARGETS: dict[Target, str] = {"gateway": "client", "nats-server": "log", "route": "route", "model": "model"}

KINDS: dict[str, Kind] = {}
for _role in ROLES:
    KINDS[f"kill-{_role}"] = Kind(_role, "processes ended", partial(signal_process, SIGKILL, _role))
    KINDS[f"restart-{_role}"] = Kind(_role, "processes ended", partial(signal_process, SIGTERM, _role))
    KINDS[f"stop-{_role}"] = Kind(_role, "threads frozen", partial(freeze_process, _role))
KINDS |= {
    "kill-node": Kind("log", "servers ended", partial(signal_server, SIGKILL)),
    "restart-node": Kind("log", "servers ended", partial(signal_server, SIGTERM)),
    "stop-node": Kind("log", "threads frozen", freeze_server),
    "step-down": Kind("log", "leaders changed", step_down, "servers"),
    "fill-node": Kind("log", "writes failed", fill_server_disk, "mount"),
}
for _target, _group in GROUPS.items():
    for _failure in get_args(Failure):
        _effect = "connections reset" if _failure == "cut" else "bytes"
        _inject = partial(fail_connection, _target, _failure)
        KINDS[f"{_failure}-{TARGETS[_target]}"] = Kind(
            _group, _effect, _inject, "servers" if _target == "route" else ""
        )
KINDS |= {
    "lock-database": Kind("persistence", "writes refused", lock_database),
    "fill-database": Kind("persistence", "writes refused", fill_database_disk, "mount"),
    "corrupt-database": Kind("persistence", "files set aside", corrupt_database),
    "remove-database": Kind("persistence", "processes ended", remove_database),
    "jump-clock": Kind("clock", "wrong times read", jump_clock, "compiler"),
}
for _model in MODEL:
    KINDS[f"model-{_model}"] = Kind("prompt", "calls failed", None)
for _model in MESSAGE_BATCH:
    KINDS[f"batch-{_model}"] = Kind("batch", "responses wrong", None)


def why_impossible(kind: Kind, servers: int, *, has_compiler: bool) -> str:
    """Returns why the fault is not possible here, or nothing."""
    if kind.needs == "servers" and servers == 1:
        return "there is one nats-server"
    if kind.needs == "mount" and not can_mount():
        return "only root may mount a disk"
    if kind.needs == "compiler" and not has_compiler:
        return "there is no C compiler"
    return ""
