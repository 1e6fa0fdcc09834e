"""Schedules with budgets: nothing is held for a turn that does not exist, and nothing is left that is spent."""

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest

from tailrace.features.limits.reconciler import Reconciler
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.nats.counters import Once
from tests.schedules.budgets import BudgetSchedule, judge

SEEDS, CHUNKS = 120, 2
HAPPENINGS = {
    *("lost request", "lost acknowledgement", "late write", "gateway killed", "generator killed"),
    *("persistence killed", "gateway frozen", "cancelled"),
}


def play(seed: int) -> BudgetSchedule:
    schedule = BudgetSchedule(seed)
    schedule.play()
    return schedule


@pytest.mark.rule("R37")
@pytest.mark.rule("R148")
@pytest.mark.rule("F36")
@pytest.mark.rule("F37")
@pytest.mark.rule("F40")
@pytest.mark.no_cover
@pytest.mark.timeout(240)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_budget_is_right_within_two_minutes_after_all_faults(chunk: int) -> None:
    """Whatever is lost, late, frozen or killed, also when a day or a month ends. Every fault happens."""
    size = SEEDS // CHUNKS
    broken, happened = list[str](), Counter[str]()
    for seed in range(chunk * size, (chunk + 1) * size):
        schedule = play(seed)
        verdict = judge(schedule)
        broken += [] if verdict.is_green else [verdict.evidence]
        happened.update(schedule.nats.happened)
    assert broken == []
    assert {one for one in HAPPENINGS if not happened[one]} == set()


@pytest.mark.no_cover
def test_without_corrections_some_budget_holds_money_for_no_turn() -> None:
    """The judge would notice it."""

    async def correct_nothing(*_: Any) -> Once:
        return Once(BEFORE_FIRST, is_new=False)

    with patch.object(Reconciler, "_correct", correct_nothing):
        assert any("for no turn" in judge(play(seed)).evidence for seed in range(SEEDS))
