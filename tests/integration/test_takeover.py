"""Takeover: generators are killed or frozen in the middle of a turn, and another one continues it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL

import pytest

from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Deliveries
from tailrace.proto.subjects import GENERATORS, TurnKey
from tests.harness import readers
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import (
    read_stats,
    words,
)
from tests.harness.own_system import OwnSystem
from tests.harness.processes import Process, generator
from tests.harness.until import until
from tests.integration.conftest import NewGateway
from tests.promises import Story, judge, no_gap, no_repeat, one_end

LEASE_S = 0.2


@pytest.mark.rule("R73")
async def test_a_turn_that_moves_forward_outlives_more_generators_than_it_has_attempts(own: OwnSystem) -> None:
    """Each of them stores a word or two of the answer."""
    await own.shorten_lease(LEASE_S)
    key = await own.append_request("words=50 rate=200")
    for _ in range(4):
        assert await own.run_and_kill_after(5)
    async with own.running_generator(attempts_max=2):
        turn = await own.wait_for_end(key)
    assert (turn.outcome, turn.text, turn.attempt) == ("completed", words(50), 5)


@pytest.fixture
async def generators(tmp_path: Path, own: OwnSystem) -> AsyncIterator[dict[str, Process]]:
    """Two generators by name, each a process."""
    await own.shorten_lease(1.0)
    processes = {
        name: generator(tmp_path, own.server.url, own.claude, TAILRACE_GENERATOR=name) for name in ("one", "two")
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
    own: OwnSystem, generators: dict[str, Process], new_gateway: NewGateway, tenant: Tenant
) -> None:
    """The frozen one continues beside its successor: it appends nothing valid, closes its call to the model and does
    not acknowledge the turn. After the kill an HTTP reader receives every byte once."""

    async def holder(key: TurnKey) -> Process:
        """Returns the generator of a turn in the middle of its answer."""

        async def find_begun_turn() -> Turn | None:
            turn = await own.log.read_turn(key)
            return turn if len(turn.text) >= 100 else None

        turn = await until(find_begun_turn)
        assert turn is not None
        return generators[turn.generator.rpartition("-")[0]]

    async def is_taken_over() -> bool:
        return len(await own.attempts(key)) == 2

    key = await own.append_request("words=150 rate=40")
    frozen = await holder(key)
    freeze(frozen)
    await until(is_taken_over)
    await own.wait_for_open_streams(2)
    frozen.signal(SIGCONT)
    await until(lambda: frozen.find_lines("turn taken by another writer"), 5)
    await own.wait_for_open_streams(1)
    backlog = await (await Deliveries.open(own.connection, GENERATORS)).backlog()
    assert backlog.leased == 1
    assert (await own.log.read_turn(key)).end is None
    turn = await own.wait_for_end(key)
    assert (turn.text, turn.outcome, turn.attempt, turn.skipped) == (words(150), "completed", 2, 0)
    assert frozen.find_lines("turn ended") == []
    counted = await read_stats(own.claude)
    assert (counted["calls"], counted["streams_aborted"]) == (2, 1)
    await own.wait_until_acknowledged()

    gateway = await new_gateway(own.server.url)
    key = await own.append_request("words=120 rate=60", tenant=tenant)
    reader = asyncio.create_task(readers.read(gateway.client, key.turn))
    await (await holder(key)).stop(SIGKILL)
    turn = await own.wait_for_end(key)
    history = await readers.read_history(own.log, key, readers.build_reader("there", key, await reader))
    assert (turn.text, turn.outcome, turn.attempt) == (words(120), "completed", 2)
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert history.readers[0].received == Story(words(120), turn.usage, "completed")
    assert judge(history, (no_gap, no_repeat, one_end)).is_green
    assert await own.modes(key) == ["fresh", "continue"]
    assert await own.calls() == 4
