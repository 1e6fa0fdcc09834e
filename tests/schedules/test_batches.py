"""Batches whose generators are killed before or after each entry that is appended, on the simulator."""

from itertools import count

import pytest

from tailrace.proto.entries import Via
from tests.schedules.batches import KEY, SCRIPT, BatchSchedule
from tests.schedules.generator import CONCURRENCY
from tests.schedules.model import text_of

INPUTS = 3
# A batch has more entries than that.
KILLS_MIN = 20


@pytest.mark.rule("R63")
@pytest.mark.rule("R67")
@pytest.mark.parametrize(
    ("via", "is_before", "later"),
    [("messages", True, 0), ("messages", False, 2), ("message_batches", True, 2), ("message_batches", False, 0)],
)
def test_a_batch_whose_generators_are_killed_at_any_entry_runs_each_input_once(
    via: Via, is_before: bool, later: int
) -> None:
    """One is killed, or a second one `later` entries after it. Only turns that were running need another call.

    Each pair of these conditions occurs.
    """
    for killed_at in count(1):
        kills = {killed_at, killed_at + later}
        schedule = BatchSchedule(via, INPUTS, kills, is_before=is_before)
        schedule.play()
        batch = schedule.turn(KEY)
        assert (batch.outcome, batch.skipped) == ("completed", 0), kills
        assert schedule.progress == sorted(set(schedule.progress)), kills
        assert schedule.progress[-1] == (INPUTS, 0)
        for child in schedule.children:
            turn = schedule.turn(child)
            assert (turn.outcome, turn.text, turn.skipped) == ("completed", text_of(SCRIPT.blocks), 0), kills
            assert schedule.requests_of(child) == 1
        if via == "message_batches":
            assert (len(schedule.made), schedule.calls) == (1, 0), kills
        else:
            assert INPUTS <= schedule.calls <= INPUTS + CONCURRENCY * len(kills), kills
        if schedule.appends < killed_at:
            break
    assert killed_at > KILLS_MIN
