"""Generators die, freeze and wake up in the middle of a turn: another one goes on, and no reader can tell where."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from signal import SIGCONT, SIGKILL

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.proto.entries import Stored
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.subjects import GENERATORS, TurnKey
from tests.harness import readers
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import (
    ask,
    attempts,
    ended,
    is_acknowledged,
    modes,
    open_streams,
    shorten_lease,
    stats,
    words,
    working,
)
from tests.harness.killable_generator import killed_after
from tests.harness.processes import Process, generator
from tests.harness.until import until
from tests.integration.conftest import NewGateway
from tests.promises import Story, judge, no_gap, no_repeat, one_end

# Whoever takes a turn here is alone, or loses it on purpose: nobody has to be given the time to be slow.
LEASE_S = 0.2
KINDS = {
    "text": "words=6 rate=200",
    "thinking": "thinking=3 words=3 rate=200",
    "tool": "words=2 tool=look rate=200",
}


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


async def followed(log: TurnLog, key: TurnKey) -> list[Stored]:
    """What a reader is given who is there from the beginning."""
    seen: list[Stored] = []
    async with aclosing(log.follow(key)) as follower:
        async for some in follower:
            seen += some
    return seen


@pytest.mark.rule("R19")
@pytest.mark.rule("F1")
@pytest.mark.rule("F2")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(120)
async def test_killed_after_any_entry_a_turn_is_finished_by_another(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str, kind: str
) -> None:
    """After the 1st, the 2nd, the 3rd … until one comes through unharmed: the same answer, at two calls at the most."""
    await shorten_lease(own_connection, LEASE_S)
    finished: list[Turn] = []
    for appends in range(1, 99):
        calls = (await stats(claude))["calls"]
        key = await ask(own_log, KINDS[kind], tenant=Tenant(f"t{appends}"))
        following = asyncio.create_task(followed(own_log, key))
        is_harmed = await killed_after(appends, own_server.url, claude)
        left_behind = await own_log.turn(key)
        async with working(own_server.url, claude):
            async with asyncio.timeout(10):
                seen = await following
            await until(lambda: is_acknowledged(own_connection))
        turn = await own_log.turn(key)
        assert fold(seen) == turn, appends
        assert [stored.seq for stored in seen] == [stored.seq for stored in await own_log.replay(key)]
        if left_behind.end is not None:
            assert turn == left_behind, "a turn that had ended when its generator died was added to"
        # What a killed attempt was told is paid for again, and nothing else.
        assert turn.attempt <= 2
        assert (await stats(claude))["calls"] - calls <= turn.attempt
        finished.append(turn)
        if not is_harmed:
            break
    # The attempt, the answer's beginning, and a block's beginning, text and end: deltas are joined on a busy machine.
    assert [turn.attempt for turn in finished].count(2) >= 5
    assert finished[-1].attempt == 1
    answers = [(turn.outcome, turn.stop, turn.blocks) for turn in finished]
    assert answers == answers[-1:] * len(answers)


@pytest.mark.rule("F27")
async def test_a_turn_that_kills_every_generator_ends(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Attempts are counted in the log, where they outlive the processes that made them."""
    await shorten_lease(own_connection, LEASE_S)
    key = await ask(own_log, "words=50 rate=200")
    for _ in range(3):
        assert await killed_after(4, own_server.url, claude)
    async with working(own_server.url, claude, attempts_max=3):
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.attempt) == ("failed", "attempts_exhausted", 3)
    assert turn.text
    assert words(50).startswith(turn.text)
    assert (await stats(claude))["calls"] == 3


class Two:
    """Two generators, each a process, and which of them holds a turn."""

    def __init__(self, log: TurnLog, processes: dict[str, Process]) -> None:
        self.log = log
        self.processes = processes

    async def holder(self, key: TurnKey, chars: int) -> Process:
        """Who carries the turn, once so much of it is told."""

        async def told() -> Turn | None:
            turn = await self.log.turn(key)
            return turn if len(turn.text) >= chars else None

        turn = await until(told)
        assert turn is not None
        return self.processes[turn.generator.rpartition("-")[0]]


@pytest.fixture
async def two(
    tmp_path: Path, own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> AsyncIterator[Two]:
    await shorten_lease(own_connection, 1.0)
    processes = {name: generator(tmp_path, own_server.url, claude, TAILRACE_GENERATOR=name) for name in ("one", "two")}
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            for process in processes.values():
                group.create_task(stack.enter_async_context(process))
        yield Two(own_log, processes)


@pytest.mark.rule("F1")
@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-5-5"])
async def test_a_killed_generators_turn_is_continued_by_another(
    own_server: NatsServer, own_log: TurnLog, claude: str, two: Two, new_gateway: NewGateway, tenant: Tenant, model: str
) -> None:
    """kill -9 in the middle of a word's way: an HTTP reader gets every byte of the answer, once."""
    gateway = await new_gateway(own_server.url)
    key = await ask(own_log, "words=120 rate=60", tenant=tenant, model=model)
    reader = asyncio.create_task(readers.read(gateway.client, key.turn))
    killed = await two.holder(key, chars=100)
    await killed.stop(SIGKILL)
    turn = await ended(own_log, key)
    history = await readers.history(own_log, key, readers.reader("there", key, await reader))
    assert (turn.text, turn.outcome, turn.attempt) == (words(120), "completed", 2)
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert history.readers[0].told == Story(words(120), turn.usage, "completed")
    assert judge(history, (no_gap, no_repeat, one_end)).is_green
    assert await modes(own_log, key) == ["fresh", "continue"]
    assert (await stats(claude))["calls"] == 2


@pytest.mark.rule("R13")
@pytest.mark.rule("F3")
async def test_a_generator_that_wakes_up_too_late_is_fenced_off(
    own_connection: Connection, own_log: TurnLog, claude: str, two: Two
) -> None:
    """Frozen for longer than its lease, it wakes up beside its successor: no entry of its is valid, it closes its call
    to the model, and it does not acknowledge what is not its own any more."""
    key = await ask(own_log, "words=150 rate=40")
    frozen = await two.holder(key, chars=100)
    freeze(frozen)

    async def is_taken_over() -> bool:
        return len(await attempts(own_log, key)) == 2

    await until(is_taken_over)
    await open_streams(claude, 2)
    frozen.signal(SIGCONT)
    await until(lambda: frozen.said("turn taken by another writer"), 5)
    await open_streams(claude, 1)
    backlog = await (await Deliveries.open(own_connection, GENERATORS)).backlog()
    assert backlog.leased == 1
    assert (await own_log.turn(key)).end is None
    turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt, turn.skipped) == (words(150), "completed", 2, 0)
    assert frozen.said("turn ended") == []
    counted = await stats(claude)
    assert (counted["calls"], counted["streams_aborted"]) == (2, 1)
    await until(lambda: is_acknowledged(own_connection))
