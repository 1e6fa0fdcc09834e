"""What the counter of a budget has to be, from one reading of it and a later one of the database."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from tailrace.features.limits.reconciliation import (
    Held,
    Owed,
    Reading,
    correction,
    lost_with_stream,
    owed,
)
from tailrace.features.limits.reservations import counters_at, parse_budget, rows_of
from tailrace.proto.entries import Batch, Reservation
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, child_id
from tailrace.proto.records import record_from_fold
from tests.harness.turn_builder import NOON, Handwritten

NOW = NOON
LONG_AGO = NOW - timedelta(hours=1)
# The value of the counter is 100 after the increment 50, which was the last one for half an hour.
QUIET = Reading(100, Seq(50), LONG_AGO, NOW, LONG_AGO - timedelta(days=9))
# The same, read at once: other increments may follow.
BUSY = QUIET._replace(at=NOW, until=NOW)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def held(amount: int, seq: int, asked_s: float, ended_s: float | None = None, cost: int = 0, **given: Any) -> Held:
    ended_at = None if ended_s is None else ago(ended_s)
    return Held(TurnId("t"), amount, Seq(seq), ago(asked_s), ended_at, cost, **given)


# The reading, the recorded cost, a turn, and the range of what the counter had to be.
CASES: dict[str, tuple[Reading, int, Held | None, Owed]] = {
    "no turn runs": (QUIET, 70, None, Owed(70, 70)),
    "a running turn is reserved": (QUIET, 70, held(30, 50, 3600), Owed(100, 100)),
    "a turn that was reserved after the reading": (BUSY, 70, held(30, 51, -1), Owed(70, 70)),
    "a turn that was reserved after the reading, and has ended": (BUSY, 75, held(30, 51, -1, -2, 5), Owed(70, 70)),
    "a turn that ended after the reading": (BUSY, 75, held(30, 49, 60, -5, 5), Owed(100, 100)),
    "a turn that ended just before the reading": (BUSY, 75, held(30, 49, 60, 3, 5), Owed(75, 100)),
    "a turn that cost more than it had reserved": (BUSY, 75, held(30, 49, 60, 3, 35), Owed(70, 75)),
    "a turn that ended long before the reading": (BUSY, 75, held(30, 49, 60, 30, 5), Owed(75, 75)),
    "a turn whose end is as old as the last increment, long ago": (
        QUIET,
        75,
        held(30, 49, 7200, 3600, 5),
        Owed(75, 75),
    ),
    "a turn whose settlement is known to be later": (
        *(BUSY, 75),
        held(30, 49, 60, 30, 5, settled_seq=Seq(51)),
        Owed(100, 100),
    ),
    "a turn whose settlement is known to be earlier": (
        *(BUSY, 75),
        held(30, 49, 60, 1, 5, settled_seq=Seq(50)),
        Owed(75, 75),
    ),
    "an older version's turn before the reading": (BUSY, 70, held(30, 0, 60), Owed(100, 100)),
    "an older version's turn shortly after the reading": (BUSY, 70, held(30, 0, -20), Owed(70, 100)),
    "an older version's turn long after the reading": (BUSY, 70, held(30, 0, -60), Owed(70, 70)),
    "a turn of a stream that was lost": (QUIET, 70, held(30, 999, 60), Owed(100, 100)),
    "a turn of a stream that was lost a moment ago": (
        BUSY._replace(created=ago(1)),
        70,
        held(30, 999, 1),
        Owed(100, 100),
    ),
    "a cost in the period without a reservation in it, not settled": (BUSY, 75, held(0, 49, 60, -5, 5), Owed(70, 70)),
    "a cost in the period without a reservation in it, settled": (BUSY, 75, held(0, 49, 60, 30, 5), Owed(75, 75)),
}


@pytest.mark.rule("R148")
@pytest.mark.parametrize("case", CASES)
def test_a_counter_has_recorded_costs_and_reservations(case: str) -> None:
    reading, recorded, turn, expected = CASES[case]
    assert owed(reading, recorded, [turn] if turn is not None else []) == expected


@pytest.mark.rule("R148")
def test_steps_of_a_running_turn_may_be_in_the_counter() -> None:
    """Those of a turn that was settled before the reading are not."""
    steps = {TurnId("t"): 7}
    assert owed(BUSY, 70, [held(30, 50, 60)], steps) == Owed(100, 107)
    assert owed(BUSY, 75, [held(30, 50, 60, 30, 5)], steps) == Owed(75, 75)
    assert owed(BUSY, 70, [held(30, 51, -1)], steps) == Owed(70, 70)


@pytest.mark.rule("R148")
def test_a_correction_goes_to_the_next_bound_of_the_range() -> None:
    """What a gateway gives back after the reading is not subtracted twice."""
    for value, given_back, expected in (
        *((100, 0, 0), (110, 0, 0), (99, 0, 1), (111, 0, -1), (131, 20, -1), (131, 21, 0), (131, 50, 0), (90, 50, 10)),
    ):
        assert correction(QUIET._replace(value=value), Owed(100, 110), given_back) == expected


@pytest.mark.rule("R148")
def test_a_lost_counter_had_the_costs_and_reservations_at_that_time() -> None:
    created = ago(10)
    turns = [held(30, 9, 60), held(30, 9, 60, 5, 4), held(30, 9, 60, 20, 8), held(30, 9, 3), held(30, 9, 3, 1, 2)]
    # Recorded: 70 before, and the costs of the turns that have ended.
    assert lost_with_stream(created, 70 + 4 + 8 + 2, turns) == 70 + 8 + 30 + 30
    assert lost_with_stream(created, 2, turns[-1:]) == 0


@pytest.mark.rule("R148")
def test_the_range_has_what_is_owed_in_every_schedule_and_only_that_in_quiet() -> None:
    """Turns are reserved, stored, ended and settled at random times, or are never stored; readings in between."""
    chance = Random(87)
    wide = 0
    for _ in range(2000):
        reserved, settled = dict[int, float](), dict[int, float]()
        turns = dict[int, Held]()
        for number in range(chance.randrange(1, 6)):
            reserved[number] = chance.uniform(0, 100)
            asked = reserved[number] + chance.uniform(0, 40)
            ended = asked + chance.uniform(0, 60) if chance.random() < 0.7 else None
            amount, cost = chance.randrange(1, 50), chance.randrange(60)
            if chance.random() < 0.7:
                turns[number] = held(amount, 0, -asked, None if ended is None else -ended, cost)
                if ended is not None:
                    settled[number] = ended + chance.uniform(0, 9)
        times = sorted([*reserved.values(), *settled.values()])
        rows = [one._replace(seq=Seq(times.index(reserved[number]) + 1)) for number, one in turns.items()]
        recorded = sum(turns[number].cost for number in settled)
        for moment in (chance.uniform(0, 200), 1000.0):
            before = [time for time in times if time <= moment]
            last = ago(-before[-1]) if before else LONG_AGO
            reading = Reading(0, Seq(len(before)), last, ago(-moment), LONG_AGO)
            right = sum(
                one.cost if settled.get(number, 9999) <= moment else one.amount
                for number, one in turns.items()
                if reserved[number] <= moment
            )
            least, most = owed(reading, recorded, rows)
            assert least <= right <= most
            wide += least < most
            if moment == 1000:
                assert least == most
    assert 0 < wide < 1000


@pytest.mark.rule("R148")
def test_rows_have_what_a_turn_reserves_and_the_period_in_which_it_costs() -> None:
    """A turn that is stored after midnight costs on its own day, and has a row there. Tokens have none."""
    night = datetime(2025, 12, 31, tzinfo=UTC)
    holds = [
        Reservation("limits.ours.tenant.tokens.60000-1", "tokens", 5, Seq(1)),
        Reservation(f"budgets.ours.tenant.usd_day.{NOON:%Y-%m-%d}", "nusd", 7, Seq(2), 100),
        Reservation(f"budgets.ours.k_1.usd_month.{night:%Y-%m}", "nusd", 7, Seq(3), 100),
    ]
    added = rows(TurnId("turn-1"), holds=holds, by="key_1")
    assert added["put_reservations"]["held"] == (
        '[["budgets.ours.tenant.usd_day.2026-01-01",7,2,1],'
        '["budgets.ours.k_1.usd_month.2025-12",7,3,0],["budgets.ours.k_1.usd_month.2026-01",0,3,1]]'
    )
    assert added["put_budget_keys"] == {"owners": '["k_1"]', "key": "key_1"}
    assert rows(TurnId("turn-1"), holds=holds[:1], by="key_1") == {}
    assert "put_budget_keys" not in rows(TurnId("turn-1"), holds=holds[1:2], by="key_1")


@pytest.mark.rule("R148")
def test_a_batch_holds_what_its_inputs_reserve_together() -> None:
    """That of Anthropic's Message Batches also after its end, unless it is completed."""
    day = Reservation(f"budgets.ours.tenant.usd_day.{NOON:%Y-%m-%d}", "nusd", 30, Seq(2), 100)
    batch = Batch("0" * 64, 1, 3, 1, holds=[day])
    name = TurnId("01a22ed3-2ce8-7f89-b001-5019f14e5620")
    of_batch = rows(name, batch=batch, holds=[day])["put_reservations"]
    assert (of_batch["held"], of_batch["batch"]) == ('[["budgets.ours.tenant.usd_day.2026-01-01",30,2,null]]', None)
    of_child = rows(child_id(name, 0), parent=name, holds=[day])["put_reservations"]
    assert of_child["batch"] == name
    for via, outcome, is_over in (
        *(("messages", "cancelled", True), ("message_batches", "cancelled", False)),
        ("message_batches", "completed", True),
    ):
        found = rows(name, outcome, batch=batch, via=via)["put_reservations"]
        assert (found["ended_at"] is not None, found["kept_until"] is not None) == (is_over, via == "message_batches")


def rows(turn: TurnId, outcome: Any = None, **given: Any) -> Any:
    log = Handwritten()
    log.store_request(**given)
    if outcome is not None:
        log.end(outcome)
    key = TurnKey(Tenant("ours"), turn)
    return rows_of(key, log.turn, record_from_fold(key, log.turn))


def test_a_counter_names_its_period() -> None:
    day = parse_budget("budgets.ours.k_1.usd_day.2026-02-28")
    month = parse_budget("budgets.ours.tenant.usd_month.2026-12")
    assert [[one.isoformat() for one in budget.days] for budget in (day, month)] == [
        ["2026-02-28", "2026-02-28"],
        ["2026-12-01", "2026-12-31"],
    ]
    assert month.subject == "budgets.ours.tenant.usd_month.2026-12"


def test_counters_of_both_periods_are_compared_around_midnight() -> None:
    """The clock of a gateway may be some minutes late."""
    kinds = ("", "_back", "_recorded", "_lost")
    noon = [f"budgets.*.*.usd_day{kind}.2026-01-01" for kind in kinds]
    assert counters_at(NOON) == [*noon, *(f"budgets.*.*.usd_month{kind}.2026-01" for kind in kinds)]
    assert len(counters_at(NOON.replace(hour=0))) == 4 * len(kinds)
    assert len(counters_at(NOON.replace(day=2, hour=0))) == 3 * len(kinds)
