"""Takeover: generators are killed or frozen in the middle of a turn, and another one continues it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from signal import SIGCONT, SIGKILL

import pytest

from tailrace.deploy.local.nats_server import NatsServer
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

LEASE_S = 0.2


async def follow(log: TurnLog, key: TurnKey) -> list[Stored]:
    """Returns the entries that a reader receives from the beginning to the end."""
    seen: list[Stored] = []
    async with aclosing(log.follow(key)) as follower:
        async for some in follower:
            seen += some
    return seen


@pytest.mark.rule("R19")
@pytest.mark.rule("F1")
@pytest.mark.rule("F2")
@pytest.mark.parametrize("line", ["thinking=3 words=3 rate=200", "words=2 tool=look rate=200"])
@pytest.mark.timeout(120)
async def test_a_turn_whose_generator_is_killed_after_any_entry_is_finished(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str, line: str
) -> None:
    """After the first entry, the second, the third … until one ends unharmed: the same answer, two calls at most."""
    await shorten_lease(own_connection, LEASE_S)
    finished: list[Turn] = []
    for appends in range(1, 99):
        calls = (await stats(own_claude))["calls"]
        key = await ask(own_log, line, tenant=Tenant(f"t{appends}"))
        following = asyncio.create_task(follow(own_log, key))
        is_killed = await killed_after(appends, own_server.url, own_claude)
        before = await own_log.turn(key)
        async with working(own_server.url, own_claude):
            async with asyncio.timeout(10):
                seen = await following
            await until(lambda: is_acknowledged(own_connection))
        turn = await own_log.turn(key)
        assert fold(seen) == turn, appends
        assert [stored.seq for stored in seen] == [stored.seq for stored in await own_log.replay(key)]
        if before.end is not None:
            assert turn == before, "entries were added to a turn that had ended when its generator was killed"
        # Only a killed attempt is paid for again.
        assert turn.attempt <= 2
        assert (await stats(own_claude))["calls"] - calls <= turn.attempt
        finished.append(turn)
        if not is_killed:
            break
    # The attempt, the message's start, and a block's start, delta and stop: a busy machine joins deltas.
    assert [turn.attempt for turn in finished].count(2) >= 5
    assert finished[-1].attempt == 1
    answers = [(turn.outcome, turn.stop, turn.blocks) for turn in finished]
    assert answers == answers[-1:] * len(answers)


@pytest.mark.rule("R73")
async def test_a_turn_that_moves_forward_outlives_more_generators_than_it_has_attempts(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str
) -> None:
    """Each of them stores a word or two of the answer."""
    await shorten_lease(own_connection, LEASE_S)
    key = await ask(own_log, "words=50 rate=200")
    for _ in range(4):
        assert await killed_after(5, own_server.url, own_claude)
    async with working(own_server.url, own_claude, attempts_max=2):
        turn = await ended(own_log, key)
    assert (turn.outcome, turn.text, turn.attempt) == ("completed", words(50), 5)


@pytest.fixture
async def generators(
    tmp_path: Path, own_server: NatsServer, own_connection: Connection, own_claude: str
) -> AsyncIterator[dict[str, Process]]:
    """Two generators by name, each a process."""
    await shorten_lease(own_connection, 1.0)
    processes = {
        name: generator(tmp_path, own_server.url, own_claude, TAILRACE_GENERATOR=name) for name in ("one", "two")
    }
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            for process in processes.values():
                group.create_task(stack.enter_async_context(process))
        yield processes


@pytest.mark.rule("F1")
@pytest.mark.rule("F3")
@pytest.mark.rule("R13")
async def test_another_generator_continues_the_turns_of_a_frozen_and_of_a_killed_one(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    own_claude: str,
    generators: dict[str, Process],
    new_gateway: NewGateway,
    tenant: Tenant,
) -> None:
    """The frozen one continues beside its successor: it appends nothing valid, closes its call to the model and does
    not acknowledge the turn. After the kill an HTTP reader receives every byte once."""

    async def holder(key: TurnKey) -> Process:
        """Returns the generator of a turn in the middle of its answer."""

        async def begun() -> Turn | None:
            turn = await own_log.turn(key)
            return turn if len(turn.text) >= 100 else None

        turn = await until(begun)
        assert turn is not None
        return generators[turn.generator.rpartition("-")[0]]

    async def is_taken_over() -> bool:
        return len(await attempts(own_log, key)) == 2

    key = await ask(own_log, "words=150 rate=40")
    frozen = await holder(key)
    freeze(frozen)
    await until(is_taken_over)
    await open_streams(own_claude, 2)
    frozen.signal(SIGCONT)
    await until(lambda: frozen.said("turn taken by another writer"), 5)
    await open_streams(own_claude, 1)
    backlog = await (await Deliveries.open(own_connection, GENERATORS)).backlog()
    assert backlog.leased == 1
    assert (await own_log.turn(key)).end is None
    turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt, turn.skipped) == (words(150), "completed", 2, 0)
    assert frozen.said("turn ended") == []
    counted = await stats(own_claude)
    assert (counted["calls"], counted["streams_aborted"]) == (2, 1)
    await until(lambda: is_acknowledged(own_connection))

    gateway = await new_gateway(own_server.url)
    key = await ask(own_log, "words=120 rate=60", tenant=tenant)
    reader = asyncio.create_task(readers.read(gateway.client, key.turn))
    await (await holder(key)).stop(SIGKILL)
    turn = await ended(own_log, key)
    history = await readers.history(own_log, key, readers.reader("there", key, await reader))
    assert (turn.text, turn.outcome, turn.attempt) == (words(120), "completed", 2)
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert history.readers[0].received == Story(words(120), turn.usage, "completed")
    assert judge(history, (no_gap, no_repeat, one_end)).is_green
    assert await modes(own_log, key) == ["fresh", "continue"]
    assert (await stats(own_claude))["calls"] == 4
