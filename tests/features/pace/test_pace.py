"""Paced replay: when a stored entry is due. The functions read no clock."""

import pytest

from tailrace.features.gateway import ROUTES
from tailrace.features.pace.gateway import PACED, Pace, parse_pace
from tailrace.gateway import app
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused
from tests.harness.turn_builder import completed_turn

# One a second, all in the past.
STORED = completed_turn("a", "b", "c").stored


@pytest.mark.parametrize(("speed", "due"), [(1.0, [1, 2, 3]), (2.0, [1, 3, 5]), (0.5, [1, 1, 2])])
def test_entries_have_the_distances_in_which_they_were_written(speed: float, due: list[int]) -> None:
    """The first entry of a reader is due at once, wherever it begins."""
    for first in (0, 2):
        pace = Pace(speed)
        assert [pace.count_due(STORED[first:], 0, 99, 100.0 + second) for second in range(3)] == due


def test_due_entries_are_limited_by_the_request_and_the_log() -> None:
    """A reader takes them in pages."""
    pace = Pace(1000)
    assert pace.count_due(STORED, 0, 99, 0.0) == 1
    assert pace.count_due(STORED, 1, 2, 9.0) == 2
    assert pace.count_due(STORED, 3, 99, 9.0) == len(STORED) - 3
    assert pace.count_due(STORED, len(STORED), 99, 9.0) == 0


def test_an_entry_that_has_just_been_written_is_due() -> None:
    pace = Pace(1)
    pace.count_due(STORED, 0, 1, 0.0)
    assert pace.due_in_s(STORED[3], 2.0) == 1.0
    assert pace.due_in_s(STORED[3], 60.0) <= 0


@pytest.mark.parametrize("text", ["1", "999", "0.5", "2.25", "0.001", "10"])
def test_a_pace_is_a_number(text: str) -> None:
    """Above 0, and not so slow that a reader stays for years."""
    parse_pace(text)


@pytest.mark.parametrize("text", ["", "0", "0.0", "-1", "1e3", "nan", "inf", "1000", "01", "1.", "1_0", "٣", "0.0001"])
def test_an_invalid_pace_is_refused(text: str) -> None:
    """Python's float() accepts more."""
    with pytest.raises(Refused):
        parse_pace(text)


def test_the_feature_adds_the_parameter_to_the_routes_that_stream_one_turn() -> None:
    """And to no other one: the guard refuses the parameter there. Without the feature no route has it."""
    having = {(route.method, route.path) for route in ROUTES if "pace" in route.query_names}
    assert having == PACED
    assert not [route.path for route in app.routes_of(()) if "pace" in route.query_names]
    # The requests that start a turn and may have its stream as their response.
    streamed = {
        (route.method, route.path)
        for route in ROUTES
        if route.method == "POST" and (route.streams or hasattr(route.body, "stream") or route.body is NewTurn)
    }
    assert having == streamed | {("GET", "/v1/turns/{turn}/events")}
