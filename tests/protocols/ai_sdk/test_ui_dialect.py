"""The dialect ui and the messages of the history. tests/golden has whole turns."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.streaming.dialect import Dialect
from tailrace.proto import events
from tailrace.proto.entries import Event, Message, Outcome
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.protocols.ai_sdk import message
from tailrace.protocols.ai_sdk.part import content_chunks
from tailrace.protocols.ai_sdk.stream import UI, Earlier, replay_dialect, step_chunks
from tailrace.protocols.common.earlier_steps import steps_of
from tests.harness.displayed_text import ui as displayed_text
from tests.harness.sse_parser import parse
from tests.harness.strategies import answers
from tests.harness.turn_builder import KEY, Handwritten, attempted_turn, opening_events, started_turn

UI_REPLAY = replay_dialect(Earlier())
CALL = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}

Chunk = dict[str, Any]


def bytes_of(log: Handwritten, dialect: Dialect = UI) -> bytes:
    state, data = dialect.start(KEY), b""
    for stored in log.stored:
        frame, state = dialect.render(state, stored)
        data += frame.data
    return data


def chunks(data: bytes) -> list[Chunk]:
    return [json.loads(event.data) for event in parse(data) if event.data != "[DONE]"]


def log_with(*events_: events.Event) -> Handwritten:
    """A turn that has begun and stored these events."""
    return attempted_turn(opening_events()[0], *events_)


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize(
    ("outcome", "stop_reason", "kinds"),
    [
        ("completed", "tool_use", {"tool-input-available"}),
        ("completed", "max_tokens", set()),
        ("completed", "max_cost", set()),
        ("completed", "budget", set()),
        ("failed", None, set()),
        ("cancelled", None, set()),
    ],
)
def test_a_call_that_was_cut_before_its_input_stays_open(
    outcome: Outcome, stop_reason: str | None, kinds: set[str], *, is_stopped: bool
) -> None:
    """`useChat` would run the tool without input. With an error of the call, a page that sends the results of tools by
    itself would continue after a stop or a limit. A turn from the database has the same chunks.
    """
    ended: list[events.Event] = [events.BlockStop(0)] if is_stopped else []
    if stop_reason is not None:
        ended.append(events.MessageDelta(events.StopReason(stop_reason)))
    log = log_with(events.BlockStart(0, CALL), *ended)
    log.end(outcome)
    for data in (bytes_of(log), UI.render_record(record_of(log), 0).data):
        sent = {chunk["type"] for chunk in chunks(data)}
        assert sent & {"tool-input-available", "tool-input-error"} == kinds


@pytest.mark.parametrize("text", ['{"q', "[1]"])
@pytest.mark.parametrize(("stop_reason", "last"), [("tool_use", ["tool-input-error"]), ("max_tokens", [])])
def test_an_invalid_input_that_was_not_cut_is_an_error(text: str, stop_reason: str, last: list[str]) -> None:
    """The model may correct it. In a message of the history, the call has the same state."""
    delta = events.BlockDelta(0, events.InputJsonDelta(text))
    stop = events.MessageDelta(events.StopReason(stop_reason))
    log = log_with(events.BlockStart(0, CALL), delta, events.BlockStop(0), stop)
    log.end()
    live, late = (chunks(data) for data in (bytes_of(log), UI.render_record(record_of(log), 0).data))
    assert live[:-1] == late[:-1]
    assert [chunk["type"] for chunk in live[3:-2]] == ["tool-input-start", "tool-input-delta", *last]


def test_a_call_without_arguments_before_another_block_is_whole() -> None:
    """The provider would have cut the last block only."""
    log = log_with(events.BlockStart(0, CALL), events.BlockStop(0), events.BlockStart(1, {"type": "text", "text": ""}))
    kinds = [chunk["type"] for chunk in chunks(bytes_of(log))]
    assert kinds[3:] == ["tool-input-start", "tool-input-available", "text-start"]


def answering_a_tool() -> Handwritten:
    """A turn that goes on after a tool's result, in the message that called it. It has the whole conversation."""
    messages = [
        Message("user", "q"),
        Message("assistant", [{"type": "thinking", "thinking": "hm", "signature": "s"}, {**CALL, "input": {"q": 1}}]),
        Message("user", [{"type": "tool_result", "tool_use_id": "c1", "content": "found"}]),
    ]
    return started_turn(messages=messages, history=2, metadata={"ui_message": "msg_turn-0"})


def test_replay_includes_the_earlier_steps() -> None:
    """A reloaded page replaces its message by the replay, and would lose the call."""
    log = answering_a_tool()
    steps = steps_of(log.turn.request.messages) if log.turn.request else []
    start, *rest = chunks(bytes_of(log, replay_dialect(Earlier("msg_turn-0", step_chunks(steps)))))
    assert start["messageId"] == "msg_turn-0"
    assert rest[4] == {"type": "tool-input-start", "toolCallId": "c1", "toolName": "look"}
    assert [chunk["type"] for chunk in rest] == [
        *("start-step", "reasoning-start", "reasoning-delta", "reasoning-end", "tool-input-start"),
        *("tool-input-delta", "tool-input-available", "finish-step", "tool-output-available", "data-tailrace"),
        *("start-step", "text-start"),
    ]
    assert rest[8] == {"type": "tool-output-available", "toolCallId": "c1", "output": "found"}


@given(answers(), st.integers(0, 60))
def test_chunk_counts_are_stable(log: Handwritten, count: int) -> None:
    """Every read has the same chunks, and a replay of a plain turn is the same stream."""
    data = bytes_of(log)
    assert bytes_of(log, UI_REPLAY) == data
    whole = chunks(data)
    for upto in range(len(log.stored)):
        part = Handwritten()
        part.stored = log.stored[:upto]
        assert whole[: len(chunks(bytes_of(part)))] == chunks(bytes_of(part))


@given(answers().filter(lambda log: log.chain.is_ended), st.integers(0, 60))
def test_resume_from_the_database_starts_with_a_reset(log: Handwritten, seen: int) -> None:
    """The database has no deltas: after the opening the answer is sent again after a reset."""
    record = record_from_fold(KEY, log.turn)
    whole, rest = (chunks(UI.render_record(record, count).data) for count in (0, seen))
    assert rest == (whole[seen:] if seen <= 3 else [{"type": "reset-step"}, *whole[3:]])
    assert displayed_text(UI.render_record(record, seen).data) == record.text


def record_of(log: Handwritten, **given: Any) -> TurnRecord:
    return msgspec.structs.replace(record_from_fold(KEY, log.turn), **given)


def test_a_call_of_an_mcp_server_has_a_start_and_its_result_an_error() -> None:
    """The package `ai` throws an error for the input of a call that has not begun."""
    call = {"type": "mcp_tool_use", "id": "m1", "name": "look", "server_name": "s", "input": {"q": 1}}
    result = {"type": "mcp_tool_result", "tool_use_id": "m1", "is_error": True, "content": "no"}
    found = content_chunks([call, result])
    kinds = ["tool-input-start", "tool-input-delta", "tool-input-available", "tool-output-error"]
    assert [chunk["type"] for chunk in found] == kinds
    assert (found[2]["input"], found[2]["providerExecuted"], found[3]["toolCallId"]) == ({"q": 1}, True, "m1")
    assert [chunk.get("dynamic") for chunk in found] == [True, None, True, True]


def test_a_result_without_its_call_is_a_data_part() -> None:
    """After a pause that the client has continued. The package `ai` throws an error for it."""
    result = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}
    log = log_with(events.BlockStart(0, result), events.BlockStop(0))
    log.end()
    for data in (bytes_of(log), UI.render_record(record_of(log), 0).data):
        assert {"type": "data-web_search_tool_result", "data": result} in chunks(data)


def test_a_block_without_a_chunk_is_a_data_part() -> None:
    """With what its deltas have added. An unknown event reaches the page's `onData`, and no message."""
    log = log_with(events.BlockStart(0, {"type": "compaction", "content": None}))
    for fields in (
        {"type": "content_block_delta", "index": 0, "delta": {"type": "compaction_delta", "content": "so far"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "song_delta", "note": "c"}},
    ):
        raw = msgspec.Raw(msgspec.json.encode(fields))
        log.store(Event(prev=log.chain.last, attempt=1, event=raw))
    log.store_events(events.BlockStop(0))
    log.end()
    part = {"type": "data-compaction", "data": {"type": "compaction", "content": "so far"}}
    live, late = chunks(bytes_of(log)), chunks(UI.render_record(record_of(log), 0).data)
    assert live[3:5] == [{"type": "data-event", "data": fields, "transient": True}, part]
    assert late[3] == part
    assert message.build_messages([record_of(log)])[1].parts[2] == part


@pytest.mark.parametrize(("kind", "part"), [("text", "text"), ("thinking", "reasoning")])
def test_further_fields_of_a_text_are_metadata_of_its_part(kind: str, part: str) -> None:
    """Those of its start, and of a delta of a type that this version does not know."""
    log = log_with(events.BlockStart(0, {"type": kind, kind: "", "tone": "calm", "of_tomorrow": None}))
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "song_delta", "note": "c"}}
    log.store(Event(prev=log.chain.last, attempt=1, event=msgspec.Raw(msgspec.json.encode(delta))))
    log.store_events(events.BlockDelta(0, events.SignatureDelta("s")) if kind == "thinking" else events.BlockStop(0))
    log.end()
    signature = {"signature": "s"} if kind == "thinking" else {}
    metadata = {"anthropic": {**signature, "tone": "calm", "note": "c"}}
    for data in (bytes_of(log), UI.render_record(record_of(log), 0).data):
        assert {"type": f"{part}-end", "id": "0", "providerMetadata": metadata} in chunks(data)
    assert message.build_messages([record_of(log)])[1].parts[-1]["providerMetadata"] == metadata


def test_history_with_many_tool_calls_takes_linear_time() -> None:
    """Results are matched to calls by id."""

    def took_s(count: int) -> float:
        calls = [{**CALL, "id": f"c{number}"} for number in range(count)]
        results = [
            {"type": "tool_result", "tool_use_id": f"c{number}", "content": f"r{number}"} for number in range(count)
        ]
        record = record_of(log_with(), input=[Message("assistant", calls), Message("user", results)])
        began = time.process_time()
        (whole,) = message.build_messages([record])
        took_s = time.process_time() - began
        assert [part["output"] for part in whole.parts] == [f"r{number}" for number in range(count)]
        return took_s

    assert took_s(10_000) < 40 * min(took_s(1_000) for _ in range(3))


def test_running_answer_is_not_in_the_history() -> None:
    """`resume: true` streams it."""
    (user,) = message.build_messages([record_of(log_with())])
    assert (user.id, user.role, user.parts) == ("turn-1_0", "user", [{"type": "text", "text": "Why is the sky blue?"}])
