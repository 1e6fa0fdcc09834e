"""WatchedTurn: what the looks at a turn's readers have found."""

from datetime import UTC, datetime, timedelta

from tailrace.features.unread_tokens.gateway import WatchedTurn
from tests.harness.turn_builder import KEY

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_turn_that_runs_for_an_hour_keeps_one_look_for_each_change() -> None:
    """One each five seconds would be 40 kB, and a delta belongs to the next look."""
    turn = WatchedTurn(KEY, "claude")
    looks = [BEGAN + timedelta(seconds=5 * number) for number in range(720)]
    for number, time in enumerate(looks):
        turn.note(time, is_unread=100 <= number < 200)
    assert turn.times == [looks[99], looks[199], looks[-1]]
    assert turn.is_unread == [False, True, False]
