"""One round of kills: post turns, pause each at its entry, kill, continue, and read every turn to its end."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from signal import SIGKILL, SIGTERM, SIGUSR1
from time import monotonic_ns

import msgspec

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.gateway import DIALECTS
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.runtime.gather import gather_limited
from tests.checker.history import Fault
from tests.checker.recorded_client import Client
from tests.checker.recorded_system import RecordedSystem
from tests.harness import readers
from tests.harness.processes import Process
from tests.harness.until import until
from tests.kills.cell import MAX_TOKENS, Cell, entry_names
from tests.kills.dialect_reader import Reader
from tests.kills.paused_process import PAUSES, WAITS

PROCESSES = ("generator", "gateway", "persistence", "nats-server")
PAUSED_S_MAX = 60.0
ENDED_S_MAX = 60.0
# All at once, the last of them would wait for longer than the log lets a read wait.
READ_AT_ONCE = 16


class Turn(msgspec.Struct):
    """A turn that was paused, its readers, and the state of its log right before the kill."""

    cell: Cell
    process: str
    key: TurnKey
    client: Client
    readers: list[Reader]
    tail: Seq = Seq(0)
    entry: str = ""
    """The name of its last entry."""
    killed_at: int = 0
    killed: str = ""
    """The generator's name in the log, or the name of the round: it tells the kills of a cell apart."""


async def run_round(
    system: RecordedSystem, process: str, cells: Sequence[Cell], name: str, dialects: Sequence[str], *, victims: int
) -> list[Turn]:
    """Returns the turns when all of their readers have received the end, or ENDED_S_MAX has passed.

    The turns are distributed over `victims` generators if generators are killed, all at once.
    """
    async with AsyncExitStack() as stack:
        count = victims if process == "generator" else 1
        # With this concurrency each generator takes an equal part of the turns, which are all of one tenant.
        slots = {"TAILRACE_CONCURRENCY": -(-len(cells) // count), "TAILRACE_TENANT_SHARE": 1}
        pausing = [await system.new_generator(KILLS_ROLE=PAUSES, **slots) for _ in range(count)]
        waiting = [await system.new_generator(KILLS_ROLE=WAITS)] if process == "generator" else []
        async with asyncio.TaskGroup() as group:
            for one in (*pausing, *waiting):
                group.create_task(stack.enter_async_context(one))
        turns = await asyncio.gather(
            *(post(system, process, cell, f"{name}-{n}", dialects) for n, cell in enumerate(cells))
        )
        reading = [asyncio.create_task(read(turn)) for turn in turns]
        try:
            await until(lambda: {turn.key.turn for turn in turns} <= paused_turns(pausing), PAUSED_S_MAX)
            await gather_limited(partial(note_tail, system), turns, READ_AT_ONCE)
            await kill(system, process, pausing, turns, name)
            for one in waiting or pausing:
                one.signal(SIGUSR1)
            await asyncio.wait(reading, timeout=ENDED_S_MAX)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        with suppress(AssertionError):
            await system.wait_until_settled(ENDED_S_MAX)
        for one in (*waiting, *pausing):
            await one.stop(SIGTERM)
        if system.gateways[0].is_gone:
            await system.gateways[0].start()
    return turns


async def post(system: RecordedSystem, process: str, cell: Cell, name: str, dialects: Sequence[str]) -> Turn:
    client = system.client(f"reader {name}")
    key = await client.post(cell.question(name), on_interrupt=cell.policy, max_tokens=MAX_TOKENS)
    assert key is not None, f"the POST of {name} failed"
    return Turn(cell, process, key, client, [Reader(key, dialect, system.clients) for dialect in dialects])


async def read(turn: Turn) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(turn.client.read_to_end(turn.key))
        for reader in turn.readers:
            group.create_task(reader.read())


def paused_turns(generators: Sequence[Process]) -> set[str]:
    return {fact["turn"] for generator in generators for fact in generator.find_lines("paused")}


async def note_tail(system: RecordedSystem, turn: Turn) -> None:
    """Records the turn's last entry once all of its readers have received it."""
    stored = await readers.read_all_entries(system.log, turn.key)
    turn.tail, turn.entry = stored[-1].seq, entry_names(stored, turn.cell.kind)[-1]
    frames = {dialect: readers.render_frames(turn.key, stored, dialect) for dialect in DIALECTS}
    expected = {dialect: b"".join(frame.sent for frame in some) for dialect, some in frames.items()}
    await until(lambda: turn.client.seen == frames["tailrace"][-1].seq, ENDED_S_MAX)
    await until(lambda: all(reader.kept == expected[reader.dialect] for reader in turn.readers), ENDED_S_MAX)


async def kill(
    system: RecordedSystem, process: str, pausing: Sequence[Process], turns: Sequence[Turn], name: str
) -> None:
    """Sends SIGKILL. Starts persistence and the nats-server again, of which there is only one."""
    match process:
        case "generator":
            for generator in pausing:
                paused = paused_turns([generator])
                victims = [turn for turn in turns if turn.key.turn in paused]
                kill_one(system, generator.find_lines("ready")[-1]["generator"], generator, victims)
        case "gateway":
            kill_one(system, name, system.gateways[0], turns)
        case "persistence":
            kill_one(system, name, system.persistence, turns)
            await until(lambda: system.persistence.is_gone)
            await system.persistence.start()
        case "nats-server":
            kill_one(system, name, system.servers[0], turns)
            await system.servers[0].process.wait()
            await system.servers[0].start()


def kill_one(system: RecordedSystem, target: str, process: Process | NatsServer, turns: Sequence[Turn]) -> None:
    with system.recorder(f"killer of {target}").recording(Fault(kind="kill", target=target)) as recording:
        at = monotonic_ns()
        process.signal(SIGKILL)
        recording.ok()
    for turn in turns:
        turn.killed, turn.killed_at = target, at
