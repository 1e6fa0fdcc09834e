"""The dialect openai-chat: properties for every turn, and OpenAI's own types. tests/golden has examples."""

import json
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tailrace.features.gateway import DIALECTS
from tailrace.proto import events
from tailrace.proto.entries import Attempt
from tailrace.proto.fold import fold
from tailrace.proto.records import record_from_fold
from tailrace.protocols.openai.chat_object import render_completion
from tests.harness.readers import render_frames
from tests.harness.sse_parser import parse
from tests.harness.strategies import MadeUp, answers, logs
from tests.harness.turn_builder import KEY, MODEL, Handwritten, answer_block, attempted_turn, opening_events

CHAT, COUNTED = "openai-chat", "openai-chat-usage"
# The dialect cannot take an answer back.
ANSWERS = answers(has_restarts=False, outcomes=("completed", None))


def chunks(log: Handwritten, dialect: str = CHAT) -> list[dict[str, Any]]:
    sent = b"".join(frame.sent for frame in render_frames(KEY, log.stored, dialect))
    return [json.loads(event.data) for event in parse(sent) if event.data != "[DONE]"]


def deltas(log: Handwritten) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(log)]


def merge_delta(message: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """Concatenates strings, and tool calls by index, as clients of the protocol do."""
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append({"id": call["id"], "type": "function", "function": {"name": "", "arguments": ""}})
        for name, piece in call["function"].items():
            calls[call["index"]]["function"][name] += piece
    for name in ("content", "reasoning_content"):
        if delta.get(name):
            message[name] = message.get(name, "") + delta[name]
    if "annotations" in delta:
        assert "annotations" not in message
        message["annotations"] = delta["annotations"]
    return message


def value(arguments: str) -> object:
    """Deltas may contain white space, and the end may show that there are no arguments. Half a value is only text."""
    try:
        return json.loads(arguments or "{}")
    except json.JSONDecodeError:
        return arguments


def normalize(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{**one, "function": value(one["function"]["arguments"])} for one in message.get("tool_calls", ())]
    return {"content": message.get("content") or "", "thoughts": message.get("reasoning_content"), "calls": calls}


@given(ANSWERS)
def test_stream_database_and_completion_have_the_same_message(log: Handwritten) -> None:
    """Promise 4, with tool calls and thinking."""
    record = record_from_fold(KEY, log.turn)
    kept = [
        json.loads(event.data) for event in parse(DIALECTS[CHAT].render_record(record, 0).data) if "{" in event.data
    ]
    streamed: dict[str, Any] = reduce(merge_delta, deltas(log), {})
    archived: dict[str, Any] = reduce(merge_delta, (one["choices"][0]["delta"] for one in kept if "id" in one), {})
    completion = json.loads(render_completion(record))
    message = completion["choices"][0]["message"]
    assert normalize(streamed) == normalize(archived) == normalize(message)
    if log.chain.is_ended:
        assert streamed.get("annotations") == archived.get("annotations") == message.get("annotations")
    heads = {(one["id"], one["created"], one["model"]) for one in (*chunks(log), *kept, completion) if "id" in one}
    assert heads == {("chatcmpl-turn-1", int(log.stored[0].at.timestamp()), MODEL)}
    assert [delta["role"] for delta in deltas(log) if "role" in delta] == ["assistant"] * (log.turn.message is not None)


@pytest.mark.parametrize("stop_reason", ["max_tokens", "max_cost", "budget"])
@pytest.mark.parametrize("pieces", [(), ('{"q":"Pa',)], ids=["no argument", "a part of one"])
def test_a_call_that_was_cut_has_the_arguments_so_far(stop_reason: str, pieces: tuple[str, ...]) -> None:
    """As OpenAI sends them. `{}` would be a complete call without arguments."""
    log = attempted_turn(opening_events()[0], *answer_block(0, "tool_use"), *answer_block(1, "tool_use", *pieces))
    log.store_events(events.MessageDelta(events.StopReason(stop_reason), events.UsageSoFar(output_tokens=3)))
    log.end()
    record = record_from_fold(KEY, log.turn)
    archived = [json.loads(one.data) for one in parse(DIALECTS[CHAT].render_record(record, 0).data) if "{" in one.data]
    for message in (
        reduce(merge_delta, deltas(log), dict[str, Any]()),
        reduce(merge_delta, (one["choices"][0]["delta"] for one in archived), dict[str, Any]()),
        json.loads(render_completion(record))["choices"][0]["message"],
    ):
        assert [call["function"]["arguments"] for call in message["tool_calls"]] == ["{}", "".join(pieces)]


@given(ANSWERS)
def test_chunks_and_completions_match_openais_types(log: Handwritten) -> None:
    """The only additional fields are the documented ones."""
    for chunk in [*chunks(log, CHAT), *chunks(log, COUNTED)]:
        made = ChatCompletionChunk.model_validate(chunk)
        assert set(made.model_extra or {}) <= {"cursor", "warnings"}
        for choice in made.choices:
            assert set(choice.delta.model_extra or {}) <= {"reasoning_content", "annotations"}
    completion = ChatCompletion.model_validate_json(render_completion(record_from_fold(KEY, log.turn)))
    assert (
        {"session_id", "project_id"}
        <= (completion.model_extra or {}).keys()
        <= {"session_id", "project_id", "warnings"}
    )
    assert set(completion.choices[0].message.model_extra or {}) <= {"reasoning_content"}


@given(log=logs())
def test_any_log_is_rendered_as_data_lines_with_cursors(log: MadeUp) -> None:
    """No `id:`, `retry:` or `event:`, on which some clients fail; `[DONE]` only after a completed turn."""
    turn = fold(log.stored)
    restarts = {one.seq for one in log.stored if isinstance(one.entry, Attempt)}
    for dialect in (CHAT, COUNTED):
        frames = render_frames(KEY, log.stored, dialect)
        for frame in frames:
            sent = parse(frame.sent)
            assert {(event.id, event.event, event.retry_ms) for event in sent} == {(None, "", None)}
            last = [json.loads(event.data) for event in sent if event.data != "[DONE]"][-1]
            is_error = frame.seq in restarts or (turn.end is not None and frame.seq == turn.chain.last)
            assert last.get("cursor") == frame.seq or (is_error and "error" in last)
        done = [b"[DONE]" in frame.sent for frame in frames]
        assert done.count(True) == (turn.outcome == "completed")
        assert not any(done[:-1])
