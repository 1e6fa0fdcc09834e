"""The checker of the six promises: a correct history passes, and each single defect is found."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.records import record_from_fold
from tailrace.proto.usage import Usage
from tests.harness.turn_builder import NOON, completed_turn, text_delta
from tests.promises import (
    PROMISES,
    Budget,
    Frame,
    History,
    Promise,
    Reader,
    ReaderConnection,
    Story,
    judge,
    no_gap,
    no_repeat,
    nothing_forgotten,
    nothing_held,
    one_end,
    one_story,
)

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))
LOG = completed_turn("The", " sky", " is", " blue.", step=10)
# Frames of the entries that a reader sees: not the request (10), not the attempt (20).
WHOLE = tuple(Frame(stored.seq, f"id: {stored.seq}\n\n".encode()) for stored in LOG.stored[2:])
STORY = Story("The sky is blue.", Usage(input_tokens=10, output_tokens=4), "completed")

SLOTS = Budget(name="running", limit=3, left=2, reserved=1)

Break = Callable[[History], History]


def good_history() -> History:
    """One turn; one reader that was cut after 50 and came back, one that came late with a cursor and left early."""
    cut = ReaderConnection(Seq(0), WHOLE[:3], "cut")
    back = ReaderConnection(Seq(50), WHOLE[3:], "ended")
    patient = Reader(name="patient", key=KEY, dialect="tailrace", connections=(cut, back), received=STORY)
    hasty = Reader(
        name="hasty", key=KEY, dialect="tailrace", connections=(ReaderConnection(Seq(40), WHOLE[2:4], "left"),)
    )
    return History(
        posted={KEY: True, TurnKey(Tenant("t"), TurnId("turn-2")): False},
        readers=(patient, hasty),
        log={KEY: tuple(LOG.stored)},
        rendered={(KEY, "tailrace"): WHOLE},
        records={KEY: record_from_fold(KEY, LOG.turn)},
        budgets=(Budget(name="usd_month", limit=100, left=60, recorded=30, reserved=10), SLOTS),
        samples=(Budget(name="usd_month", limit=100, left=70, recorded=30), SLOTS),
    )


def with_frames(change: Callable[[tuple[Frame, ...]], tuple[Frame, ...]]) -> Break:
    """Breaks what the patient reader received on its second connection."""

    def break_history(history: History) -> History:
        patient, hasty = history.readers
        cut, back = patient.connections
        back = msgspec.structs.replace(back, frames=change(back.frames))
        patient = msgspec.structs.replace(patient, connections=(cut, back))
        return msgspec.structs.replace(history, readers=(patient, hasty))

    return break_history


def with_reader(**given: Any) -> Break:
    def break_history(history: History) -> History:
        patient, hasty = history.readers
        return msgspec.structs.replace(history, readers=(msgspec.structs.replace(patient, **given), hasty))

    return break_history


def with_log(change: Callable[[tuple[StoredEntry, ...]], tuple[StoredEntry, ...]]) -> Break:
    return lambda history: msgspec.structs.replace(history, log={KEY: change(history.log[KEY])})


def with_row(**given: Any) -> Break:
    def break_history(history: History) -> History:
        assert history.records is not None
        return msgspec.structs.replace(history, records={KEY: msgspec.structs.replace(history.records[KEY], **given)})

    return break_history


def without_entries(**given: Any) -> Break:
    return lambda history: msgspec.structs.replace(history, **given)


def with_budget(**given: Any) -> Break:
    def break_history(history: History) -> History:
        assert history.budgets is not None
        money, slots = history.budgets
        return msgspec.structs.replace(history, budgets=(msgspec.structs.replace(money, **given), slots))

    return break_history


END = LOG.stored[-1]
SECOND_END = StoredEntry(Seq(END.seq + 10), NOON, msgspec.structs.replace(END.entry, prev=END.seq))
FORK = StoredEntry(Seq(END.seq + 10), NOON, text_delta(LOG.chain, "late"))
OLD_FORK = StoredEntry(Seq(55), NOON, msgspec.structs.replace(LOG.stored[5].entry, prev=Seq(30)))
NEVER_SEEN = Frame(Seq(999), b"")

BREAKS: dict[str, tuple[Promise, bool | None, Break]] = {
    "a frame dropped": (no_gap, False, with_frames(lambda frames: frames[:1] + frames[2:])),
    "the last frame dropped": (no_gap, False, with_frames(lambda frames: frames[:-1])),
    "two frames swapped": (no_gap, False, with_frames(lambda frames: (frames[1], frames[0], *frames[2:]))),
    "a frame that is not in the log": (no_gap, False, with_frames(lambda frames: (*frames, NEVER_SEEN))),
    "a cursor further than it had seen": (
        no_gap,
        False,
        with_reader(
            connections=(ReaderConnection(Seq(0), WHOLE[:3], "cut"), ReaderConnection(Seq(60), WHOLE[4:], "ended"))
        ),
    ),
    "a reader that never came back": (
        no_gap,
        None,
        with_reader(connections=(ReaderConnection(Seq(0), WHOLE[:3], "cut"),)),
    ),
    "a dialect that was not rendered": (no_gap, None, without_entries(rendered={})),
    "no readers": (no_gap, None, without_entries(readers=())),
    "a frame doubled": (no_repeat, False, with_frames(lambda frames: (frames[0], *frames))),
    "a frame from before the cursor": (no_repeat, False, with_frames(lambda frames: (WHOLE[2], *frames))),
    "a reader that never connected": (no_repeat, None, with_reader(connections=())),
    "no end": (one_end, False, with_log(lambda log: log[:-1])),
    "a second end": (one_end, False, with_log(lambda log: (*log, SECOND_END))),
    "an event after the end": (one_end, False, with_log(lambda log: (*log, FORK))),
    "a frame after the end": (one_end, False, with_frames(lambda frames: (*frames, NEVER_SEEN))),
    "no turns": (one_end, None, without_entries(posted={})),
    "a row with another text": (one_story, False, with_row(text="The sky is green.")),
    "a row with another cost": (one_story, False, with_row(cost_usd=1.0)),
    "a row that was not read": (one_story, None, without_entries(records=None)),
    "a reader with another text": (one_story, False, with_reader(received=Story("The sky.", STORY.usage, "completed"))),
    "a reader with another outcome": (one_story, False, with_reader(received=Story(STORY.text, None, "failed"))),
    "a reader without a text": (one_story, None, with_reader(received=None)),
    "other bytes for the same entry": (
        one_story,
        False,
        with_frames(lambda frames: (Frame(frames[0].seq, b"other"), *frames[1:])),
    ),
    "an entry of the log lost": (one_story, False, with_log(lambda log: (*log[:5], *_relink_without_first(log[5:])))),
    "an end with another hash": (one_story, False, with_log(lambda log: _other_end(log, text_sha256="0" * 64))),
    "an end with other usage": (one_story, False, with_log(lambda log: _other_end(log, usage=Usage(1, 1)))),
    "a turn that is still running": (one_story, None, with_log(lambda log: log[:-1])),
    "an acknowledged turn that is not in the log": (nothing_forgotten, False, with_log(lambda log: log[:0])),
    "an acknowledged turn without an end": (nothing_forgotten, False, with_log(lambda log: log[:-1])),
    "an ended turn without a row": (nothing_forgotten, False, without_entries(records={})),
    "an ended turn that is running in its row": (nothing_forgotten, False, with_row(outcome="running")),
    "rows that were not read": (nothing_forgotten, None, without_entries(records=None)),
    "money that no turn holds": (nothing_held, False, with_budget(left=59)),
    "money that is left although it is reserved": (nothing_held, False, with_budget(left=61)),
    "a slot that no turn holds": (nothing_held, False, with_budget(name="running", recorded=0, left=89)),
    "money that was left although it was spent": (
        nothing_held,
        False,
        without_entries(samples=(Budget(name="usd_month", limit=100, left=71, recorded=30),)),
    ),
    "budgets that were not read": (nothing_held, None, without_entries(budgets=None)),
    "no budgets": (nothing_held, None, without_entries(budgets=(), samples=())),
}


def _relink_without_first(log: tuple[StoredEntry, ...]) -> tuple[StoredEntry, ...]:
    """The log without its first entry, with the chain closed over the hole: only the hash can still tell."""
    first, second, *rest = log
    entry = msgspec.structs.replace(second.entry, prev=first.entry.prev)
    return (msgspec.structs.replace(second, entry=entry), *rest)


def _other_end(log: tuple[StoredEntry, ...], **given: Any) -> tuple[StoredEntry, ...]:
    return (*log[:-1], msgspec.structs.replace(log[-1], entry=msgspec.structs.replace(log[-1].entry, **given)))


def test_a_good_history_is_green() -> None:
    assert judge(good_history(), PROMISES).is_green


@pytest.mark.parametrize("broken", BREAKS)
def test_a_history_that_breaks_one_promise_is_not_green(broken: str) -> None:
    """Each promise says no, or unknown, to the one thing that breaks it; and the worst answer wins."""
    promise, answer, break_it = BREAKS[broken]
    verdict = promise(break_it(good_history()))
    assert verdict.holds is answer, verdict
    assert verdict.evidence
    assert not judge(break_it(good_history()), PROMISES).is_green


def test_an_empty_history_is_unknown() -> None:
    """A run in which nothing happened proves nothing."""
    assert judge(History()).holds is None


def test_a_skipped_fork_breaks_no_promise() -> None:
    """An entry that names an earlier predecessor is stored and is not part of the story."""
    forked = with_log(lambda log: (*log[:5], OLD_FORK, *log[5:]))(good_history())
    assert forked.fold(KEY).skipped == 1
    # `records` was folded without the fork; a skipped entry changes nothing that a row holds.
    assert judge(forked).is_green


def test_a_continued_fork_breaks_no_promise() -> None:
    """Its writer was acknowledged and continued, also past the turn's end."""
    end = LOG.stored[-1]
    late = StoredEntry(Seq(end.seq + 10), NOON, text_delta(Chain(OLD_FORK.seq, 1), "further"))
    later = StoredEntry(Seq(late.seq + 10), NOON, text_delta(Chain(late.seq, 1), "and further"))
    assert judge(with_log(lambda log: (*log[:5], OLD_FORK, *log[5:], late, later))(good_history())).is_green


def test_a_turn_that_was_never_acknowledged_owes_nothing() -> None:
    """A POST without a response may have stored nothing."""
    refused = without_entries(posted={KEY: True, TurnKey(Tenant("t"), TurnId("lost")): False})(good_history())
    assert judge(refused).is_green


def test_false_is_worse_than_unknown() -> None:
    unknown_and_false = with_row(text="other")(with_reader(received=None)(good_history()))
    verdict = judge(unknown_and_false)
    assert verdict.holds is False
    assert verdict.evidence.startswith("one_story: turn-1: text is 'other' in SQLite")


def test_a_running_turn_has_a_prefix_that_is_no_gap() -> None:
    """Before the end, what a cut reader has seen only has to be a beginning."""
    running = with_log(lambda log: log[:-1])(
        with_reader(connections=(ReaderConnection(Seq(0), WHOLE[:3], "cut"),))(good_history())
    )
    assert no_gap(running).is_green
