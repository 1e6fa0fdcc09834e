"""Dialects: properties that hold for every turn and every dialect. tests/golden has what each renders."""

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.clients.native.stream import OF_SESSION, TAILRACE
from tailrace.gateway.history_client import close_record
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.proto import entries, events
from tailrace.proto.entries import Entry, Failure, StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.protocols.tutorials.state_stream import GROWTH
from tests.golden import CASES, read_case
from tests.harness.displayed_text import SAYS
from tests.harness.readers import decode_data, render_frames, story_of
from tests.harness.sse_parser import parse
from tests.harness.strategies import FILE, TEXT_CITATION, answers
from tests.harness.turn_builder import (
    KEY,
    NOON,
    Handwritten,
    answer_block,
    attempted_turn,
    opening_events,
    started_turn,
)


def frame(dialect: str, entry: Entry) -> Frame:
    """`entry`, stored at 7, in `dialect`."""
    made, _ = DIALECTS[dialect].render(DIALECTS[dialect].start(KEY), StoredEntry(Seq(7), NOON, entry))
    return made


def an_event(raw_event: bytes) -> entries.Event:
    return entries.Event(prev=Seq(1), attempt=1, event=msgspec.Raw(raw_event))


@pytest.mark.parametrize("case", CASES)
def test_an_event_of_a_session_stream_has_its_turn_before_its_other_fields(case: str) -> None:
    of_turn, of_session = events_of(TAILRACE, case), events_of(OF_SESSION, case)
    assert [event.data for event in of_session] == [name_turn(event.data) for event in of_turn]
    assert [event.seq for event in of_session] == [event.seq for event in of_turn]


def events_of(dialect: Dialect, case: str) -> list[sse.Event]:
    """Returns the events of a turn that a reader follows, and those of the turn from the database."""
    log, state, made = read_case(case), dialect.start(KEY), list[sse.Event]()
    for stored in log:
        rendered, state = dialect.render(state, stored)
        made += rendered.events
    return [*made, *dialect.render_record(close_record(record_from_fold(KEY, fold(log))), 0).events]


def name_turn(data: bytes) -> bytes:
    fields = msgspec.json.decode(data)
    if fields["type"] == "steered":
        # The next turn has a `start` there.
        fields |= {"type": "done", "turn": KEY.turn}
    return data if fields["type"] == "start" else msgspec.json.encode({"turn": KEY.turn} | fields)


@pytest.mark.rule("S5")
def test_anthropic_removes_line_breaks_between_json_tokens() -> None:
    """They would end the data line."""
    pretty = json.dumps({"type": "ping2", "a": "b\nc"}, indent=2).replace("\n", "\r\n").encode()
    (sent,) = parse(frame("anthropic", an_event(pretty)).data)
    assert json.loads(sent.data) == {"type": "ping2", "a": "b\nc"}


@pytest.mark.parametrize("text", ['{"city": "Pa', "[1]", "{}"])
def test_anthropic_sends_late_readers_the_text_of_an_input_that_was_cut_or_is_no_object(text: str) -> None:
    """Without it, they would run the tool with an empty input."""
    log = attempted_turn(opening_events()[0], *answer_block(0, "tool_use", text))
    log.end()
    live = b"".join(frame("anthropic", stored.entry).data for stored in log.stored)
    late = DIALECTS["anthropic"].render_record(render_archived(log), 0).data
    for data in (live, late):
        sent = [json.loads(event.data) for event in parse(data)]
        assert "".join(one["delta"]["partial_json"] for one in sent if one["type"] == "content_block_delta") == text
        assert [one["content_block"]["input"] for one in sent if one["type"] == "content_block_start"] == [{}]
        assert all("partial_json" not in one.get("content_block", {}) for one in sent)


@pytest.mark.parametrize("given", [[], 5, "text", None, {"type": 5}, {"type": None}])
def test_invalid_event_is_not_rendered(given: object) -> None:
    """It is in the log, and must not break the streams of the turn's readers."""
    event = an_event(json.dumps(given).encode())
    assert {name: frame(name, event).data for name in DIALECTS} == dict.fromkeys(DIALECTS, b"")


@pytest.mark.parametrize("newer", [b"1e999", b'"\xff"', b"1" * 5000])
def test_undecodable_json_does_not_break_a_stream(newer: bytes) -> None:
    """A message_start with such a value is passed on; an event of such a type is not rendered."""
    start = b'{"type":"message_start","message":{"id":"msg_1","role":"assistant","newer":%b}}' % newer
    for name in DIALECTS:
        frame(name, an_event(start))
        frame(name, an_event(b'{"type":%b}' % newer))
    data = frame("anthropic", an_event(start)).data
    assert b'"id":"msg_turn-1"' in data
    assert newer in data


def test_a_failure_without_a_reason_is_not_rendered_as_cancelled() -> None:
    """The stream says the same as the database: that the turn has failed."""
    log = Handwritten()
    log.store_request()
    log.end("failed")
    for name, dialect in DIALECTS.items():
        live, archived = frame(name, log.stored[-1].entry).data, dialect.render_record(render_archived(log), 0).data
        assert b"cancelled" not in live + archived, name


@pytest.mark.rule("S5")
@given(log=answers())
def test_streamed_text_equals_the_folds_text(log: Handwritten) -> None:
    """Promise 4, in every dialect. After the last restart, where a dialect cannot reset.

    A dialect whose events repeat the text may lack the last 1/32 of a running turn.
    """
    last = max((one.seq for one in log.stored if is_restart(one)), default=0)
    for name, dialect in DIALECTS.items():
        seen = [one.sent for one in render_frames(KEY, log.stored, name) if dialect.can_reset or one.seq > last]
        text, whole = SAYS[name](b"".join(seen)), log.turn.text
        if name in ("state", "job") and log.turn.outcome == "running":
            assert whole.startswith(text), name
            assert len(whole) - len(text) < max(1, len(whole) * GROWTH), name
        else:
            assert text == whole, name


def test_a_reset_says_why_the_answer_starts_again() -> None:
    """The error that ended the attempt before, and what could not be continued, if the entry has them."""
    whys: list[dict[str, Any]] = [{}, {"cause": "backend_broken"}, {"cause": "backend_broken", "reason": "tool_use"}]
    for why in whys:
        restart = entries.Attempt(prev=Seq(1), attempt=2, generator="g", backend="claude", mode="restart", **why)
        assert decode_data(frame("tailrace", restart).data) == {"type": "reset", **why}


@pytest.mark.rule("S5")
def test_html_is_escaped_and_its_line_breaks_end_no_data_line() -> None:
    text = '<img src=x onerror="alert(1)">&amp; \'\r\nid: 9\n'
    log = started_turn(text)
    log.end("failed", Failure("backend_overloaded", "<b>overloaded"))
    sent = parse(b"".join(one.sent for one in render_frames(KEY, log.stored, "html")))
    assert [(event.event, event.data) for event in sent] == [
        ("delta", "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;amp; &#x27;&#13;&#10;id: 9&#10;"),
        ("failed", "&lt;b&gt;overloaded"),
        ("done", "failed"),
    ]


def test_states_of_a_long_answer_are_few() -> None:
    """An event repeats the text: a few a second, and all of them a limited multiple of the text."""
    log = started_turn()
    for _ in range(2000):
        log.store_texts("ten chars ")
    log.end()
    quick = [replace(stored, at=NOON + timedelta(milliseconds=10 * stored.seq)) for stored in log.stored]
    sent = [one.sent for one in render_frames(KEY, quick, "state") if one.sent]
    seconds = 2000 / 100
    assert seconds < len(sent) < 4 * seconds + 5


def test_states_continue_when_the_servers_clock_is_set_back() -> None:
    log = started_turn("before ")
    log.store_texts(*["after "] * 3)
    late = [replace(stored, at=stored.at - timedelta(hours=stored.seq > 5)) for stored in log.stored]
    sent = [decode_data(one.sent)["text"] for one in render_frames(KEY, late, "state") if one.sent]
    assert sent[-1] == log.turn.text
    assert sum(map(len, sent)) < 34 * len(log.turn.text) + 200 * len(sent)
    slow = [replace(stored, at=NOON + timedelta(seconds=stored.seq)) for stored in log.stored]
    assert sum(len(one.sent) for one in render_frames(KEY, slow, "state")) < 34 * len(log.turn.text) + 200 * 2000


@given(log=answers())
def test_text_from_the_database_equals_the_folds_text(log: Handwritten) -> None:
    for name, dialect in DIALECTS.items():
        assert SAYS[name](dialect.render_record(render_archived(log), 0).data) == log.turn.text, name


def is_restart(stored: StoredEntry) -> bool:
    return isinstance(stored.entry, entries.Attempt) and stored.entry.mode == "restart"


@given(answers(), st.data())
def test_stateless_dialect_resumes_after_any_entry(log: Handwritten, made: st.DataObject) -> None:
    """The frames after a cursor are those of the uncut stream."""
    dialect = made.draw(st.sampled_from(sorted(name for name, one in DIALECTS.items() if not one.is_stateful)))
    whole = render_frames(KEY, log.stored, dialect)
    cut = made.draw(st.integers(0, len(whole)))
    cursor = whole[cut - 1].seq if cut else 0
    after = [one for one in log.stored if one.seq > cursor and not isinstance(one.entry, entries.Unreadable)]
    rest = [DIALECTS[dialect].render(DIALECTS[dialect].start(KEY), one)[0].data for one in after]
    assert [one for one in rest if one] == [one.sent for one in whole[cut:]]


def render_archived(log: Handwritten) -> TurnRecord:
    return close_record(record_from_fold(KEY, log.turn))


@given(answers().filter(lambda log: log.chain.is_ended))
def test_turn_from_the_database_equals_the_turn_from_the_log(log: Handwritten) -> None:
    """Promise 4: text, usage, outcome, length and hash; the end has the same id."""
    sent = parse(TAILRACE.render_record(render_archived(log), 0).data)
    live = render_frames(KEY, log.stored)
    assert story_of(one.raw for one in sent) == story_of(one.sent for one in live)
    assert decode_data(sent[-1].raw) == decode_data(live[-1].sent)
    assert [one.id for one in sent if one.id is not None] == [live[-1].seq]
    assert decode_data(sent[0].raw) == {"type": "reset"}


@pytest.mark.parametrize(
    ("stop_reason", "chat", "responses", "ui"),
    [
        ("end_turn", "stop", None, "stop"),
        ("stop_sequence", "stop", None, "stop"),
        ("tool_use", "tool_calls", None, "tool-calls"),
        ("max_tokens", "length", "max_output_tokens", "length"),
        ("max_cost", "length", "max_output_tokens", "length"),
        ("budget", "length", "max_output_tokens", "length"),
        ("model_context_window_exceeded", "length", "max_output_tokens", "length"),
        ("refusal", "content_filter", "content_filter", "content-filter"),
        ("pause_turn", "length", "max_output_tokens", "other"),
        ("compaction", "length", "max_output_tokens", "other"),
        ("of a newer version", "length", "max_output_tokens", "other"),
    ],
)
def test_only_a_whole_answer_is_shown_as_complete(stop_reason: str, chat: str, responses: str | None, ui: str) -> None:
    """The table of docs/claude_api.toml, "Stop reasons", live and from the database."""
    log = attempted_turn(*opening_events(), events.BlockStop(0), events.MessageDelta(events.StopReason(stop_reason)))
    log.end()
    record = render_archived(log)
    for name in DIALECTS:
        is_whole = responses is None
        for data in (
            b"".join(one.sent for one in render_frames(KEY, log.stored, name)),
            DIALECTS[name].render_record(record, 0).data,
        ):
            found = [json.loads(event.data) for event in parse(data) if event.data.startswith("{")]
            match name:
                case "text":
                    assert data == b""
                case "html":
                    assert (b"data: completed\n" in data, b"data: incomplete\n" in data) == (is_whole, not is_whole)
                    assert data.count(b"event: warning\n") == (not is_whole)
                case "anthropic":
                    shown = "max_tokens" if stop_reason in ("max_cost", "budget") else stop_reason
                    assert found[-2]["delta"]["stop_reason"] == shown
                case "tailrace":
                    assert found[-1]["stop_reason"] == stop_reason
                case "ui":
                    assert found[-1]["finishReason"] == ui
                    assert found[-1]["messageMetadata"]["stop_reason"] == stop_reason
                case "openai-chat" | "openai-chat-usage":
                    (ending,) = [one for one in found if any(it["finish_reason"] for it in one["choices"])]
                    assert ending["choices"][0]["finish_reason"] == chat
                    assert reasons_of(ending) == ([] if is_whole else [stop_reason])
                case "openai-responses":
                    response = found[-1]["response"]
                    assert response["status"] == ("completed" if is_whole else "incomplete")
                    assert response["incomplete_details"] == (None if is_whole else {"reason": responses})
                    assert reasons_of(response) == ([] if is_whole else [stop_reason])
                case "ag-ui" | "ag-ui-1":
                    assert reasons_of(found[-1].get("result", {})) == ([] if is_whole else [stop_reason])
                case "content":
                    assert [(one["content"], one["stop_reason"]) for one in found] == (
                        [] if is_whole else [("", stop_reason)]
                    )
                case _:
                    assert found[-1].get("stop_reason") == (None if is_whole else stop_reason)
                    assert reasons_of(found[-1]) == ([] if is_whole else [stop_reason])


def reasons_of(fields: dict[str, Any]) -> list[str]:
    """Returns the stop reason of each warning about an answer that is not whole, which has a sentence, too."""
    return [one["stop_reason"] for one in fields.get("warnings", []) if one["code"] == "incomplete" and one["message"]]


def test_parts_that_a_dialect_cannot_show_are_named_in_a_warning() -> None:
    """Blocks, citations, deltas and events, each type once. The dialects `tailrace` and `ui` show them."""
    log = attempted_turn(opening_events()[0])
    log.store_events(*answer_block(0, "text", "Hi", citations=[FILE, FILE, TEXT_CITATION]))
    for index, block in enumerate([{"type": "compaction", "content": "c"}, {"type": "newer_block"}] * 2, start=1):
        log.store_events(events.BlockStart(index, block), events.BlockStop(index))
    log.store_events(events.BlockStart(5, {"type": "text", "text": "", "note": "n"}))
    for fields in (
        {"type": "content_block_delta", "index": 5, "delta": {"type": "song_delta", "note": "c"}},
        {"type": "message_sung"},
    ):
        log.store(entries.Event(prev=log.chain.last, attempt=1, event=msgspec.Raw(msgspec.json.encode(fields))))
    log.store_events(events.BlockStop(5), events.MessageDelta(events.StopReason("end_turn")))
    log.end()
    shown_types = ["page_location", "char_location", "compaction", "newer_block"]
    expected = {
        **dict.fromkeys(["delta", "content", "state", "job", "openai-chat", "openai-chat-usage"], shown_types),
        "openai-responses": shown_types[1:],
    }
    for name, types in expected.items():
        live = b"".join(one.sent for one in render_frames(KEY, log.stored, name))
        for data, more in ((live, ["song_delta", "message_sung"]), (archived(log, name), [])):
            found = [json.loads(event.data) for event in parse(data) if event.data.startswith("{")]
            last = found[-1].get("response", found[-1])
            if name == "openai-chat-usage":
                last = found[-2]
            (warning,) = last["warnings"]
            known = [one for one in warning["types"] if one != "text.note"]
            assert (warning["code"], known) == ("left_out", types + more), name
    for name in ("tailrace", "anthropic"):
        live = b"".join(one.sent for one in render_frames(KEY, log.stored, name))
        assert all(sign in live for sign in (b"compaction", b"newer_block", b"song_delta", b"message_sung")), name


def archived(log: Handwritten, name: str) -> bytes:
    return DIALECTS[name].render_record(render_archived(log), 0).data
