"""Reading what is stored although one answer may be behind: what is asked, and what is believed."""

from contextlib import suppress

import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.entries import Stored
from tailrace.proto.errors import CursorUnknown, LogUnavailable, TurnUnknown
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.nats.replay import chain_at, confirm_known, folded, folded_now
from tailrace.proto.nats.step import Confirm, Page, Pause, Reached, Read
from tailrace.proto.subjects import TurnKey
from tests.handwritten import NOON, Handwritten, opening, says

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


@pytest.mark.rule("R72")
def test_a_running_turn_is_told_as_far_as_the_leader_has_it() -> None:
    """Who has seen more at another server would see its answer grow shorter."""
    log = begun()
    steps = folded_now(KEY, now=lambda: 0.0)
    next(steps)
    assert steps.send(Page(log.stored[:2], is_last=True)) == Reached()
    assert isinstance(steps.send(log.stored[-1].seq), Pause)
    for _ in range(100):
        assert next(steps) == Read(log.stored[1].seq)
        assert isinstance(steps.send(NOTHING_THERE), Pause)
    next(steps)
    with pytest.raises(StopIteration) as there:
        steps.send(Page(log.stored[2:], is_last=True))
    assert there.value.value == fold(log.stored)


@pytest.mark.rule("R72")
def test_a_running_turn_that_cannot_be_read_so_far_is_not_told_shorter() -> None:
    """Nor is it unknown: whoever asks again is told it as soon as its server has it."""
    log, times = begun(), iter([0.0, 0.0, 60.0])
    steps = folded_now(KEY, now=lambda: next(times))
    next(steps)
    steps.send(Page(log.stored[:2], is_last=True))
    with pytest.raises(LogUnavailable):
        steps.send(log.stored[-1].seq)


@pytest.mark.rule("R72")
def test_a_turn_that_has_ended_is_told_without_a_leader() -> None:
    """Nothing follows an end: it can be read while most servers are away."""
    log = begun()
    log.end()
    steps = folded_now(KEY, now=lambda: 0.0)
    next(steps)
    with pytest.raises(StopIteration) as there:
        steps.send(Page(log.stored, is_last=True))
    assert there.value.value == fold(log.stored)


@pytest.mark.rule("R72")
def test_a_turn_that_the_leader_has_forgotten_is_unknown() -> None:
    """It was deleted, and the server that was read is behind."""
    steps = folded_now(KEY, now=lambda: 0.0)
    next(steps)
    steps.send(Page(begun().stored, is_last=True))
    assert steps.send(Seq(0)) == Confirm()
    steps.send(False)
    next(steps)
    with pytest.raises(TurnUnknown):
        steps.send(False)


def begun() -> Handwritten:
    """A turn whose answer has begun."""
    log = Handwritten()
    log.ask()
    log.take()
    log.hear(*opening())
    log.say("Hi")
    return log


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
