"""Which entries of a log are valid: one table, and what follows from it for every log."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto import entries
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.entries import Attempt, End, Entry, Progress, Unknown, Unreadable
from tailrace.proto.ids import Seq
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import raw, request

AFTER_REQUEST = Chain(Seq(10))
AFTER_ATTEMPT = Chain(Seq(20), attempt=2)
AFTER_END = Chain(Seq(30), attempt=2, is_ended=True)


def an_attempt(prev: int, number: int) -> Attempt:
    return Attempt(prev=Seq(prev), attempt=number, generator="g", backend="claude", mode="fresh")


def an_event(prev: int, attempt: int) -> entries.Event:
    return entries.Event(prev=Seq(prev), attempt=attempt, event=raw({"type": "ping"}))


def an_end(prev: int, attempt: int) -> End:
    return End(prev=Seq(prev), attempt=attempt, outcome="completed", text_chars=0, text_sha256="")


def unknown(prev: int, attempt: int) -> Unknown:
    return Unknown(prev=Seq(prev), attempt=attempt)


def progress(prev: int, attempt: int) -> Progress:
    return Progress(prev=Seq(prev), attempt=attempt, done=1, failed=0, of=2)


VALID: dict[str, tuple[Chain, Entry, Chain]] = {
    "a request comes first": (START, request(), Chain(Seq(99), length=1, first=Seq(99))),
    "an attempt takes the turn": (AFTER_REQUEST, an_attempt(10, 1), Chain(Seq(99), 1)),
    "a later attempt takes it over": (AFTER_ATTEMPT, an_attempt(20, 3), Chain(Seq(99), 3)),
    "an attempt may leave numbers out": (AFTER_ATTEMPT, an_attempt(20, 7), Chain(Seq(99), 7)),
    "the attempt that holds the turn goes on": (AFTER_ATTEMPT, an_event(20, 2), Chain(Seq(99), 2)),
    "the progress of a batch is a link": (AFTER_ATTEMPT, progress(20, 2), Chain(Seq(99), 2)),
    "it ends the turn": (AFTER_ATTEMPT, an_end(20, 2), Chain(Seq(99), 2, is_ended=True)),
    "a turn may end before anybody took it": (AFTER_REQUEST, an_end(10, 0), Chain(Seq(99), 0, is_ended=True)),
    "a newer kind is a link": (AFTER_ATTEMPT, unknown(20, 2), Chain(Seq(99), 2)),
    "a newer attempt than the last is the current one": (AFTER_ATTEMPT, an_event(20, 3), Chain(Seq(99), 3)),
}

INVALID: dict[str, tuple[Chain, Entry]] = {
    "anything but a request first": (START, an_event(0, 0)),
    "an attempt first": (START, an_attempt(0, 1)),
    "an end first": (START, an_end(0, 0)),
    "a newer kind first": (START, unknown(0, 0)),
    "a second request": (AFTER_REQUEST, request()),
    "a request with a predecessor": (AFTER_REQUEST, msgspec.structs.replace(request(), prev=Seq(10))),
    "an earlier predecessor": (AFTER_ATTEMPT, an_event(10, 2)),
    "a later predecessor": (AFTER_ATTEMPT, an_event(21, 2)),
    "an event of an older attempt": (AFTER_ATTEMPT, an_event(20, 1)),
    "an end of an older attempt": (AFTER_ATTEMPT, an_end(20, 1)),
    "the progress of an older attempt": (AFTER_ATTEMPT, progress(20, 1)),
    "a newer kind of an older attempt": (AFTER_ATTEMPT, unknown(20, 1)),
    "the same attempt again": (AFTER_ATTEMPT, an_attempt(20, 2)),
    "an older attempt": (AFTER_ATTEMPT, an_attempt(20, 1)),
    "what cannot be read": (AFTER_ATTEMPT, Unreadable()),
    "what cannot be read, with the right predecessor": (AFTER_ATTEMPT, Unreadable(Seq(20))),
    "an event after the end": (AFTER_END, an_event(30, 2)),
    "a second end": (AFTER_END, an_end(30, 2)),
    "an attempt after the end": (AFTER_END, an_attempt(30, 3)),
}


@pytest.mark.rule("R11")
@pytest.mark.parametrize("case", VALID)
def test_a_valid_entry_is_the_next_link(case: str) -> None:
    """It names the last valid entry, its attempt is not older than the current one, and nothing has ended."""
    chain, entry, longer = VALID[case]
    assert link(chain, Seq(99), entry) == longer


@pytest.mark.rule("R11")
@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_entry_is_no_link(case: str) -> None:
    """Every process that applies the rule skips it, so that all read the same turn."""
    chain, entry = INVALID[case]
    assert link(chain, Seq(99), entry) is None


@pytest.mark.rule("R11")
@given(logs())
def test_the_rule_finds_the_valid_entries_of_any_log(log: MadeUp) -> None:
    """Forks, late writers and junk are skipped wherever they stand; all else is taken."""
    chain, valid = START, []
    for stored in log.stored:
        longer = link(chain, stored.seq, stored.entry)
        if longer is not None:
            chain = longer
            valid.append(stored)
    assert valid == log.valid


@pytest.mark.rule("R11")
@given(logs(), st.data())
def test_a_chain_can_be_read_off_its_last_entry(log: MadeUp, data: st.DataObject) -> None:
    """A reader that starts at a cursor knows one entry, and must accept the same entries after it as others."""
    chain = START
    for stored in log.valid[: data.draw(st.integers(1, len(log.valid)))]:
        chain = link(chain, stored.seq, stored.entry) or chain
    last = stored.entry
    length = log.valid.index(stored) + 1
    first = log.valid[0].seq
    assert chain == Chain(stored.seq, getattr(last, "attempt", 0), isinstance(last, End), length, first)
