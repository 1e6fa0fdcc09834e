"""When a stored entry is due: by the times at which entries were written, and nothing else. No clock is asked."""

import pytest
from starlette.requests import Request

from tailrace.gateway.streaming.pacing import Pace, pace_of
from tailrace.proto.errors import Refused
from tests.harness.turn_builder import answered

# One a second, all in the past.
STORED = answered("a", "b", "c").stored


@pytest.mark.parametrize(("speed", "due"), [(1.0, [1, 2, 3]), (2.0, [1, 3, 5]), (0.5, [1, 1, 2])])
def test_entries_come_as_long_after_one_another_as_they_were_written(speed: float, due: list[int]) -> None:
    """The first that a reader gets comes at once, wherever it begins."""
    for first in (0, 2):
        pace = Pace(speed)
        assert [pace.due(STORED[first:], 0, 99, 100.0 + second) for second in range(3)] == due


def test_no_more_is_due_than_is_asked_for_or_is_there() -> None:
    """A reader takes them in pieces."""
    pace = Pace(1000)
    assert pace.due(STORED, 0, 99, 0.0) == 1
    assert pace.due(STORED, 1, 2, 9.0) == 2
    assert pace.due(STORED, 3, 99, 9.0) == len(STORED) - 3
    assert pace.due(STORED, len(STORED), 99, 9.0) == 0


def test_what_is_being_written_is_due() -> None:
    """Whoever has waited for an entry gets it when it comes."""
    pace = Pace(1)
    pace.due(STORED, 0, 1, 0.0)
    assert pace.due_in_s(STORED[3], 2.0) == 1.0
    assert pace.due_in_s(STORED[3], 60.0) <= 0


def request(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


@pytest.mark.parametrize("text", ["1", "999", "0.5", "2.25", "0.001", "10"])
def test_a_pace_is_a_number(text: str) -> None:
    """Above nothing, and not so slow that a reader would be there for years."""
    assert pace_of(request(f"pace={text}")) is not None


@pytest.mark.parametrize("text", ["", "0", "0.0", "-1", "1e3", "nan", "inf", "1000", "01", "1.", "1_0", "٣", "0.0001"])
def test_anything_else_is_none(text: str) -> None:
    """What Python takes for a number is more than a pace."""
    with pytest.raises(Refused):
        pace_of(request(f"pace={text}"))


def test_without_one_a_turn_is_told_at_once() -> None:
    """It is what a reader who comes back wants."""
    assert pace_of(request("")) is None
