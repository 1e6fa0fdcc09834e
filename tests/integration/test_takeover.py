"""Takeover: a generator is frozen in the middle of a turn. tests/kills has those that are killed."""

from pathlib import Path
from signal import SIGCONT

import pytest

from tailrace.proto.nats import Deliveries
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import GENERATORS
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import read_stats, words
from tests.harness.own_system import OwnSystem
from tests.harness.processes import generator
from tests.harness.until import until, until_equal


@pytest.mark.rule("F3")
@pytest.mark.rule("R13")
async def test_another_generator_continues_the_turn_of_a_frozen_one(own: OwnSystem, tmp_path: Path) -> None:
    """The frozen one continues beside its successor: it appends nothing valid, closes its call to the model and does
    not acknowledge the turn."""
    await own.shorten_lease(1.0)
    one, two = (generator(tmp_path, own.server.url, own.claude, TAILRACE_GENERATOR=name) for name in ("one", "two"))
    async with one, two:
        key = await own.append_request("words=150 rate=40")

        async def has_begun() -> bool:
            return len((await own.log.read_turn(ScopedKey.whole(key))).text) >= 100

        await until(has_begun)
        (attempt,) = await own.attempts(key)
        frozen = one if attempt.generator.startswith("one-") else two
        freeze(frozen)
        await until_equal(lambda: own.modes(key), ["fresh", "continue"])
        await own.wait_for_open_streams(2)
        frozen.signal(SIGCONT)
        await until(lambda: frozen.find_lines("turn taken by another writer"))
        await own.wait_for_open_streams(1)
        backlog = await (await Deliveries.open(own.connection, GENERATORS)).backlog()
        assert backlog.leased == 1
        assert (await own.log.read_turn(ScopedKey.whole(key))).end is None
        turn = await own.wait_for_end(key)
        assert (turn.text, turn.outcome, turn.attempt, turn.skipped) == (words(150), "completed", 2, 0)
        assert frozen.find_lines("turn ended") == []
        counted = await read_stats(own.claude)
        assert (counted["calls"], counted["streams_aborted"]) == (2, 1)
        await own.wait_until_acknowledged()
