"""Reading what is stored although one answer may be behind: what is asked, and what is believed."""

from contextlib import suppress

import pytest

from proto.chain import Chain
from proto.entries import Stored
from proto.errors import CursorUnknown, LogUnavailable, TurnUnknown
from proto.ids import Seq, Tenant, TurnId
from proto.replay import chain_at, confirm_known, folded
from proto.step import Confirm, Page, Pause, Read
from proto.subjects import TurnKey
from tests.handwritten import NOON, says

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))
CURSOR = Seq(7)
BEFORE = Chain(Seq(6), 1)
NOTHING_THERE = Page([], is_last=True)


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


@pytest.mark.rule("R15")
def test_a_cursor_that_the_leader_has_is_read_until_it_is_seen() -> None:
    """A server whose way to the others is slow is seconds behind, and its readers come from one that is not."""
    steps = chain_at(KEY, CURSOR, lambda: 0.0)
    assert next(steps) == Read(Seq(6), 1)
    for _ in range(100):
        assert steps.send(NOTHING_THERE) == Confirm(CURSOR)
        assert isinstance(steps.send(True), Pause)
        assert next(steps) == Read(Seq(6), 1)
    with pytest.raises(StopIteration) as there:
        steps.send(Page([Stored(CURSOR, NOON, says(BEFORE, "a"))], is_last=True))
    assert there.value.value == Chain(CURSOR, 1)


@pytest.mark.rule("R15")
def test_a_cursor_that_stands_and_cannot_be_read_is_not_refused() -> None:
    """To an EventSource a refusal is the end; who waits for the log comes back with the same cursor."""
    times = iter([0.0, 60.0])
    steps = chain_at(KEY, CURSOR, lambda: next(times))
    next(steps)
    steps.send(NOTHING_THERE)
    with pytest.raises(LogUnavailable):
        steps.send(True)


@pytest.mark.rule("R15")
def test_a_cursor_that_the_leader_denies_twice_is_refused() -> None:
    """Or whose place a server has something later for: that one is not behind."""
    steps = chain_at(KEY, CURSOR, lambda: 0.0)
    next(steps)
    assert steps.send(NOTHING_THERE) == Confirm(CURSOR)
    assert isinstance(steps.send(False), Pause)
    assert next(steps) == Confirm(CURSOR)
    with pytest.raises(CursorUnknown):
        steps.send(False)
    later = chain_at(KEY, CURSOR, lambda: 0.0)
    next(later)
    with pytest.raises(CursorUnknown):
        later.send(Page([Stored(Seq(8), NOON, says(BEFORE, "a"))], is_last=True))
