"""The dialects: what each entry looks like to a client, and that all of them tell the fold's story."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.clients.dialect import Frame
from tailrace.gateway.clients.native.stream import TAILRACE
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.proto import entries
from tailrace.proto.entries import Entry, Failure, Mode, Outcome, Stored
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage
from tests.event_stream import parse
from tests.handwritten import NOON, Handwritten, closing, junk, opening, raw
from tests.reading import data, rendered, told
from tests.saying import SAYS

KEY = TurnKey(Tenant("alice"), TurnId("turn-1"))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
LATER_MODES: st.SearchStrategy[Mode] = st.sampled_from(["continue", "restart"])
OUTCOMES: st.SearchStrategy[Outcome | None] = st.sampled_from(["completed", "cancelled", "failed", None])
OVERLOADED = Failure("backend_overloaded", "Claude is overloaded")


def frame(dialect: str, entry: Entry) -> Frame:
    """`entry`, stored at 7, in `dialect`."""
    made, _ = DIALECTS[dialect].render(DIALECTS[dialect].start(KEY), Stored(Seq(7), NOON, entry))
    return made


def ended(log: Handwritten) -> Entry:
    return log.stored[-1].entry


def an_event(what: object) -> entries.Event:
    return entries.Event(prev=Seq(1), attempt=1, event=raw(what))


def failing() -> Handwritten:
    log = Handwritten()
    log.ask()
    log.take()
    log.hear(*opening())
    log.say("half")
    log.end("failed", OVERLOADED)
    return log


START = Handwritten()
START.ask()
START.take()


@pytest.mark.parametrize(
    "given",
    [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "🌊\n\r\u2028"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "newer_delta"}},
        {"type": "newer_event", "x": [1, 2.5, None]},
        {"type": "Not-A-Name"},
    ],
)
def test_an_event_in_anthropic_is_passed_on_as_it_came(given: dict[str, Any]) -> None:
    """Also what this version does not know: its client may."""
    (sent,) = parse(frame("anthropic", an_event(given)).data)
    assert (json.loads(sent.data), sent.id) == (given, 7)
    assert sent.event == (given["type"] if given["type"] != "Not-A-Name" else "")


@pytest.mark.rule("S5")
def test_line_breaks_between_the_tokens_of_an_event_do_not_break_a_line() -> None:
    """Pretty-printed JSON is JSON; on a line of data it would end the line."""
    pretty = json.dumps({"type": "ping2", "a": "b\nc"}, indent=2).replace("\n", "\r\n").encode()
    entry = entries.Event(prev=Seq(1), attempt=1, event=msgspec.Raw(pretty))
    (sent,) = parse(frame("anthropic", entry).data)
    assert json.loads(sent.data) == {"type": "ping2", "a": "b\nc"}


@pytest.mark.parametrize("given", [[], 5, "text", None, {"type": 5}, {"type": None}])
def test_what_is_no_event_is_not_shown(given: object) -> None:
    """It is in the log all the same, and must not break the stream of everybody who reads the turn."""
    assert {name: frame(name, an_event(given)).data for name in DIALECTS} == dict.fromkeys(DIALECTS, b"")


@pytest.mark.parametrize("newer", [b"1e999", b'"\xff"', b"1" * 5000])
def test_what_nobody_can_read_breaks_no_stream(newer: bytes) -> None:
    """A message that says such a thing of itself begins all the same; an event of such a type is not shown."""
    start = b'{"type":"message_start","message":{"id":"msg_1","role":"assistant","newer":%b}}' % newer
    for name in DIALECTS:
        frame(name, entries.Event(prev=Seq(1), attempt=1, event=msgspec.Raw(start)))
        frame(name, entries.Event(prev=Seq(1), attempt=1, event=msgspec.Raw(b'{"type":%b}' % newer)))
    told = frame("anthropic", entries.Event(prev=Seq(1), attempt=1, event=msgspec.Raw(start))).data
    assert b'"id":"msg_turn-1"' in told
    assert newer in told


@pytest.mark.parametrize(
    ("entry", "type_", "is_break"),
    [
        (ended(failing()), "overloaded_error", False),
        (entries.End(prev=Seq(1), attempt=1, outcome="cancelled", text_chars=0, text_sha256=""), "api_error", False),
        (
            entries.End(
                prev=Seq(1),
                attempt=1,
                outcome="failed",
                error=Failure("a_newer_code", "?"),
                text_chars=0,
                text_sha256="",
            ),
            "api_error",
            False,
        ),
    ],
    ids=["failed", "cancelled", "newer code"],
)
def test_what_is_no_whole_answer_in_anthropic_is_an_error(entry: Entry, type_: str, *, is_break: bool) -> None:
    """Its SDKs raise, and their callers ask again."""
    made = frame("anthropic", entry)
    (sent,) = parse(made.data)
    assert (sent.event, json.loads(sent.data)["error"]["type"], made.is_break) == ("error", type_, is_break)


@st.composite
def turns(draw: st.DrawFn) -> Handwritten:
    """A turn as generators write it: some attempts, each continuing or beginning anew, and perhaps an end."""
    log = Handwritten(step=draw(st.integers(1, 3)))
    log.ask()
    for number in range(draw(st.integers(1, 3))):
        mode: Mode = draw(LATER_MODES) if number else "fresh"
        log.take(mode)
        start, block = opening()
        log.hear(start, is_hidden=mode == "continue")
        if mode != "continue":
            log.hear(block)
        log.say(*draw(st.lists(TEXTS, max_size=4)))
        if draw(st.booleans()):
            log.store(junk())
    outcome = draw(OUTCOMES)
    if outcome == "completed":
        log.hear(*closing(3))
    if outcome is not None:
        log.end(outcome, OVERLOADED if outcome == "failed" else None)
    return log


def test_every_dialect_has_a_client() -> None:
    """A new dialect says in tests/saying.py what its clients show, or none of the promises below is kept by it."""
    assert set(SAYS) == set(DIALECTS)


@pytest.mark.rule("S5")
@pytest.mark.parametrize("name", DIALECTS)
@given(log=turns())
def test_every_dialects_text_is_the_folds(name: str, log: Handwritten) -> None:
    """Promise 4, for any turn; from after the last restart on where a dialect cannot take back."""
    dialect = DIALECTS[name]
    last = max((one.seq for one in log.stored if is_restart(one)), default=0)
    seen = [one.sent for one in rendered(KEY, log.stored, name) if dialect.can_reset or one.seq > last]
    assert SAYS[name](b"".join(seen)) == log.turn.text


@pytest.mark.parametrize("name", DIALECTS)
@given(log=turns())
def test_an_archived_turn_says_the_same(name: str, log: Handwritten) -> None:
    """What has left the log is told from the database, whole; a job says it when it is complete, and else nothing."""
    told_whole = DIALECTS[name].render_record(record_from_fold(KEY, log.turn), 0).data
    is_told = name != "job" or log.turn.outcome in ("completed", "cancelled")
    assert SAYS[name](told_whole) == (log.turn.text if is_told else "")


def is_restart(stored: Stored) -> bool:
    return isinstance(stored.entry, entries.Attempt) and stored.entry.mode == "restart"


@given(turns(), st.data())
def test_a_dialect_without_a_state_can_be_resumed_at_any_frame(log: Handwritten, made: st.DataObject) -> None:
    """What follows a cursor is what would have followed without the cut."""
    dialect = made.draw(st.sampled_from(sorted(name for name, one in DIALECTS.items() if not one.is_stateful)))
    whole = rendered(KEY, log.stored, dialect)
    cut = made.draw(st.integers(0, len(whole)))
    cursor = whole[cut - 1].seq if cut else 0
    rest = [frame_of(dialect, one) for one in log.stored if one.seq > cursor and not is_junk(one)]
    assert [one for one in rest if one] == [one.sent for one in whole[cut:]]


def frame_of(dialect: str, stored: Stored) -> bytes:
    made, _ = DIALECTS[dialect].render(DIALECTS[dialect].start(KEY), stored)
    return bytes(made.data)


def is_junk(stored: Stored) -> bool:
    return isinstance(stored.entry, entries.Unreadable)


def archived(log: Handwritten) -> TurnRecord:
    return record_from_fold(KEY, log.turn)


@given(turns().filter(lambda log: log.chain.is_ended))
def test_a_turn_from_the_database_is_told_as_from_the_log(log: Handwritten) -> None:
    """Promise 4: text, usage, outcome, count and hash; the end with the same id."""
    sent = parse(TAILRACE.render_record(archived(log), 0).data)
    live = rendered(KEY, log.stored)
    assert told(one.raw for one in sent) == told(one.sent for one in live)
    assert data(sent[-1].raw) == data(live[-1].sent)
    assert [one.id for one in sent if one.id is not None] == [live[-1].seq]
    assert data(sent[0].raw) == {"type": "reset"}


@pytest.mark.parametrize(
    ("outcome", "is_break"), [("completed", False), ("cancelled", False), ("failed", True), ("running", True)]
)
def test_half_an_answer_from_the_database_is_broken_off_in_bare_text(outcome: Any, *, is_break: bool) -> None:
    """As it was when it came from the log: nobody may take it for a whole one."""
    half = msgspec.structs.replace(archived(failing()), outcome=outcome)
    assert DIALECTS["text"].render_record(half, 0) == Frame(text=b"half", is_break=is_break)


def test_a_turn_that_left_the_log_before_its_end_has_failed() -> None:
    """Nobody will ever end it; each dialect says so in its way."""
    log = Handwritten()
    log.ask()
    running = archived(log)
    end = data(parse(TAILRACE.render_record(running, 0).data)[-1].raw)
    error = json.loads(parse(DIALECTS["anthropic"].render_record(running, 0).data)[-1].data)["error"]
    assert (end["type"], end["code"], error["type"]) == ("error", "internal", "api_error")


def test_a_cancelled_turn_from_the_database_ends_as_from_the_log_in_anthropic() -> None:
    """Promise 4: the same last event, whichever of the two was asked."""
    cancelled = entries.End(prev=Seq(1), attempt=1, outcome="cancelled", text_chars=0, text_sha256="")
    kept = msgspec.structs.replace(archived(failing()), outcome="cancelled", error=None)
    (wanted,) = parse(frame("anthropic", cancelled).data)
    assert parse(DIALECTS["anthropic"].render_record(kept, 0).data)[-1].data == wanted.data


def test_an_archived_message_opens_with_every_count() -> None:
    """As the API's own `message_start` has them."""
    log = Handwritten()
    log.ask()
    start = json.loads(parse(DIALECTS["anthropic"].render_record(archived(log), 0).data)[0].data)
    assert start["message"]["usage"] == msgspec.structs.asdict(Usage())
