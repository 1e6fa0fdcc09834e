"""Schedules in which the log loses an entry: every reader is served, and the turn ends."""

from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import pytest

from tailrace.proto.fold import fold
from tailrace.proto.nats import follower, replay
from tests.schedules.losses import Loss, judge

SEEDS = 300
HAPPENINGS = {"lost entry", "damaged", "log_damaged", "from the database", "cut short", "fork"}


def play(seed: int) -> Loss:
    schedule = Loss(seed)
    schedule.play()
    return schedule


@pytest.mark.rule("F34", "R144")
@pytest.mark.no_cover
@pytest.mark.timeout(240)
def test_whatever_entry_is_lost_the_turn_ends_and_no_reader_waits() -> None:
    """Beside all faults of the other schedules. Each way in which a loss ends happens."""
    broken, happened = list[str](), Counter[str]()
    for seed in range(SEEDS):
        schedule = play(seed)
        verdict = judge(schedule)
        broken += [] if verdict.is_green else [verdict.evidence]
        happened.update(schedule.server.happened)
        turn = fold(schedule.server.stored)
        conditions = {
            "damaged": bool(schedule.server.damaged),
            "log_damaged": turn.error is not None and turn.error.code == "log_damaged",
            "from the database": any(reader.is_recorded for reader in schedule.readers),
            "cut short": any(reader.broken for reader in schedule.readers),
            "fork": turn.skipped > 0,
        }
        happened.update(name for name, is_met in conditions.items() if is_met)
    assert broken == []
    assert {one for one in HAPPENINGS if not happened[one]} == set()


async def ask_nothing(*_: object) -> None:
    """Takes the place of a check."""


async def is_always_valid(*_: object) -> bool:
    return True


@pytest.mark.rule("R144")
@pytest.mark.no_cover
@pytest.mark.timeout(240)
@pytest.mark.parametrize("rule", ["gap", "end", "own last entry"])
def test_without_a_check_some_reader_waits(rule: str) -> None:
    with ExitStack() as stack:
        match rule:
            case "gap":
                stack.enter_context(patch.object(follower, "require_whole", ask_nothing))
                stack.enter_context(patch.object(replay, "require_whole", ask_nothing))
            case "end":
                stack.enter_context(patch.object(follower, "require_end_not_lost", ask_nothing))
            case _:
                stack.enter_context(patch.object(follower, "is_valid", is_always_valid))
        assert any(not judge(play(seed)).is_green for seed in range(SEEDS))
