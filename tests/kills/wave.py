"""A wave: a turn for each cell of a kind, all held at their entries, read in every dialect; then a process is killed.

It records and judges nothing. One kill is one for every turn that is held: each stands where its cell says, and what it
was told by then has reached all of its readers.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from signal import SIGKILL, SIGTERM, SIGUSR1
from time import monotonic_ns

import msgspec

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.proto.ids import Seq
from tailrace.proto.subjects import TurnKey
from tests.checker.client import Client
from tests.checker.history import Fault
from tests.checker.house import House
from tests.harness import readers
from tests.harness.processes import Process
from tests.harness.until import until
from tests.kills.cell import Cell, named
from tests.kills.held import HOLDS, WAITS
from tests.kills.reader import Reader

PROCESSES = ("generator", "gateway", "persistence", "nats-server")
HELD_S_MAX = 60.0
ENDED_S_MAX = 60.0


class Turn(msgspec.Struct):
    """A turn that was held, who reads it, and by what it is shown that it was killed where its cell says."""

    cell: Cell
    process: str
    key: TurnKey
    client: Client
    readers: list[Reader]
    tail: Seq = Seq(0)
    entry: str = ""
    """What the last entry of its log was called right before the kill."""
    killed: int = 0
    killer: str = ""
    """Which kill it was: a cell that was hit twice has two."""


async def wave(
    house: House, process: str, cells: Sequence[Cell], name: str, dialects: Sequence[str], *, victims: int
) -> list[Turn]:
    """Asks, holds, kills and lets go; returns when all turns have ended for all of their readers, or will not.

    Of generators, `victims` are killed at once, each with its share of the turns.
    """
    async with AsyncExitStack() as stack:
        # Each takes what it has room for: so every one of those that are to be killed has its share.
        count = victims if process == "generator" else 1
        room = -(-len(cells) // count)
        holders = [
            house.add_generator(house.server.url, KILLS_ROLE=HOLDS, TAILRACE_CONCURRENCY=room) for _ in range(count)
        ]
        waiting = [house.add_generator(house.server.url, KILLS_ROLE=WAITS)] if process == "generator" else []
        async with asyncio.TaskGroup() as group:
            for one in (*holders, *waiting):
                group.create_task(stack.enter_async_context(one))
        asking = (ask(house, process, cell, f"{name}-{n}", dialects) for n, cell in enumerate(cells))
        turns = await asyncio.gather(*asking)
        readings = [asyncio.create_task(told(house, turn)) for turn in turns]
        try:
            await until(lambda: is_held(turns, holders), HELD_S_MAX)
            await asyncio.gather(*(look(house, turn) for turn in turns))
            await kill(house, process, holders, turns, name)
            for one in waiting or holders:
                one.signal(SIGUSR1)
            await asyncio.wait(readings, timeout=ENDED_S_MAX)
        finally:
            for task in readings:
                task.cancel()
            await asyncio.gather(*readings, return_exceptions=True)
        with suppress(AssertionError):
            await house.settled(ENDED_S_MAX)
        for one in (*waiting, *holders):
            if not one.is_gone:
                await one.stop(SIGTERM)
        if house.gateways[0].is_gone:
            await house.gateways[0].start()
    return turns


async def ask(house: House, process: str, cell: Cell, name: str, dialects: Sequence[str]) -> Turn:
    client = house.client(f"reader {name}")
    key = await client.ask(cell.question(name), on_interrupt=cell.policy)
    assert key is not None, f"{name} was not taken"
    return Turn(cell, process, key, client, [Reader(key, dialect, house.http) for dialect in dialects])


async def told(house: House, turn: Turn) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(turn.client.read_on(turn.key))
        for reader in turn.readers:
            group.create_task(reader.read())


def is_held(turns: Sequence[Turn], holders: Sequence[Process]) -> bool:
    held = {fact["turn"] for holder in holders for fact in holder.said("held")}
    return all(turn.key.turn in held for turn in turns)


async def look(house: House, turn: Turn) -> None:
    """Notes the tail of the turn, once all of its readers have been told of it."""
    stored = await house.log.replay(turn.key, limit=4096)
    turn.tail, turn.entry = stored[-1].seq, named(stored, turn.cell.kind)[-1]
    frames = {dialect: readers.rendered(turn.key, stored, dialect) for dialect in DIALECTS}
    due = {dialect: b"".join(frame.sent for frame in some) for dialect, some in frames.items()}
    await until(lambda: turn.client.seen == frames["tailrace"][-1].seq, ENDED_S_MAX)
    await until(lambda: all(reader.kept == due[reader.dialect] for reader in turn.readers), ENDED_S_MAX)


async def kill(house: House, process: str, holders: Sequence[Process], turns: Sequence[Turn], name: str) -> None:
    """SIGKILL; who has nobody to stand in for it is started again."""
    match process:
        case "generator":
            for holder in holders:
                hit(house, holder.said("ready")[-1]["generator"], holder, held_by(holder, turns))
        case "gateway":
            hit(house, name, house.gateways[0], turns)
        case "persistence":
            hit(house, name, house.persistence, turns)
            await until(lambda: house.persistence.is_gone)
            await house.persistence.start()
        case "nats-server":
            hit(house, name, house.server, turns)
            await house.server.process.wait()
            await house.server.start()


def held_by(holder: Process, turns: Sequence[Turn]) -> list[Turn]:
    held = {fact["turn"] for fact in holder.said("held")}
    return [turn for turn in turns if turn.key.turn in held]


def hit(house: House, target: str, process: Process | NatsServer, turns: Sequence[Turn]) -> None:
    with house.nemesis(f"killer of {target}").recording(Fault(kind="kill", target=target)) as killing:
        at = monotonic_ns()
        process.signal(SIGKILL)
        killing.ok()
    for turn in turns:
        turn.killer, turn.killed = target, at
