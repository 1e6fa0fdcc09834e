"""Reading what is stored although one answer may be behind: what is asked, and what is believed."""

from contextlib import suppress

import pytest

from proto.errors import LogUnavailable, TurnUnknown
from proto.ids import Tenant, TurnId
from proto.replay import confirm_known, folded
from proto.step import Confirm, Page, Pause, Read
from proto.subjects import TurnKey

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))


@pytest.mark.rule("R14")
def test_a_turn_that_one_answer_denies_is_asked_for_again() -> None:
    """A leader that was frozen wakes up and answers as if it led: its no is no proof."""
    steps = confirm_known(KEY)
    assert next(steps) == Confirm()
    assert isinstance(steps.send(False), Pause)
    assert next(steps) == Confirm()
    with suppress(StopIteration):
        steps.send(True)


@pytest.mark.rule("R14")
def test_a_turn_that_is_denied_twice_is_unknown() -> None:
    """Who asks for what is not there must be told so, some time."""
    steps = confirm_known(KEY)
    next(steps)
    steps.send(False)
    next(steps)
    with pytest.raises(TurnUnknown):
        steps.send(False)


@pytest.mark.rule("R14")
def test_a_turn_that_is_stored_and_cannot_be_read_is_not_unknown() -> None:
    """A generator that was frozen between a stale read and its next look would acknowledge a turn that nobody ends."""
    times = iter([0.0, 60.0, 60.0])
    steps = folded(KEY, now=lambda: next(times))
    assert isinstance(next(steps), Read)
    assert steps.send(Page([], is_last=True)) == Confirm()
    with pytest.raises(LogUnavailable):
        steps.send(True)
