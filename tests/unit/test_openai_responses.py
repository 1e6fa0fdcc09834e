"""The dialect openai-responses: properties for every turn, and the SDK's types. tests/golden has examples."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import BaseModel, omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Frame
from tailrace.gateway.streaming.writer import skip_events
from tailrace.proto import events
from tailrace.proto.entries import Attempt, Outcome, StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.records import record_from_fold
from tailrace.protocols.openai.responses_object import CANCELLED
from tailrace.protocols.openai.responses_stream import render_snapshot, response_of
from tests.harness.sse_parser import parse
from tests.harness.strategies import TEXTS, answers
from tests.harness.turn_builder import (
    KEY,
    Handwritten,
    answer_block,
    attempted_turn,
    completed_turn,
    opening_events,
    started_turn,
)

DIALECT = DIALECTS["openai-responses"]
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
Data = list[dict[str, Any]]


def frames(stored: list[StoredEntry]) -> list[Frame]:
    """The frame of each valid entry."""
    state, found = DIALECT.start(KEY), []
    for one in stored:
        frame, state = DIALECT.render(state, one)
        found.append(frame)
    return found


def data(sent: bytes) -> Data:
    """The events, each under its own name and without an id or a `retry:`, which some clients fail on."""
    found = []
    for event in parse(sent):
        shown: dict[str, Any] = json.loads(event.data)
        assert (event.event, event.id, event.retry_ms) == (shown["type"], None, None)
        found.append(shown)
    return found


def events_of(stored: list[StoredEntry]) -> Data:
    return data(b"".join(frame.data for frame in frames(stored)))


def after_last_restart(stored: list[StoredEntry]) -> list[StoredEntry]:
    """Returns the entries with which a new reader begins: those after the last restart."""
    is_restart = [isinstance(one.entry, Attempt) and one.entry.mode == "restart" for one in stored]
    return stored[len(stored) - is_restart[::-1].index(True) :] if True in is_restart else stored


def render_for_new_reader(log: Handwritten) -> Data:
    """The events that a new reader is sent."""
    skipped = len(log.stored) - len(after_last_restart(log.stored))
    return data(b"".join(frame.data for frame in frames(log.stored)[skipped:]))


def unknown_fields(model: object, path: str = "") -> list[str]:
    """The fields that the SDK's types do not have, however deep."""
    match model:
        case BaseModel():
            extra = [f"{path}.{name}" for name in model.model_extra or {}]
            inner = [unknown_fields(getattr(model, name), f"{path}.{name}") for name in type(model).model_fields]
            return [*extra, *itertools.chain.from_iterable(inner)]
        case list():
            return [name for one in model for name in unknown_fields(one, path)]
        case _:
            return []


def with_openais_reason(sent: dict[str, Any]) -> dict[str, Any]:
    """Returns an event or a response in which the one reason that openai's types do not have is one of theirs."""
    response = sent.get("response", sent)
    if response.get("incomplete_details") != {"reason": CANCELLED}:
        return sent
    typed = {**response, "incomplete_details": {"reason": "content_filter"}}
    return {**sent, "response": typed} if "response" in sent else typed


def read(sent: Data) -> Any:
    """Returns the completed response that the SDK's accumulator builds, or None. Events out of order are an error."""
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    events = [
        one
        for event in sent
        if event["type"] != "error"
        for one in state.handle_event(EVENTS.validate_python(with_openais_reason(event)))
    ]
    return next((one.response for one in events if one.type == "response.completed"), None)


@given(answers())
def test_every_event_matches_the_sdks_types(log: Handwritten) -> None:
    whole = data(DIALECT.render_record(record_from_fold(KEY, log.turn), 0).data)
    for event in [
        *events_of(log.stored),
        *whole,
        *data(sse.encode(render_snapshot(KEY, log.turn, len(events_of(log.stored))))),
    ]:
        assert set(unknown_fields(EVENTS.validate_python(with_openais_reason(event), strict=True))) <= {
            ".response.warnings"
        }


@given(answers())
def test_sequence_numbers_count_from_0_through_restarts(log: Handwritten) -> None:
    """The number of an event never changes."""
    numbers = [event["sequence_number"] for event in events_of(log.stored)]
    assert numbers == list(range(len(numbers)))


@given(answers(), st.data())
def test_starting_after_skips_exactly_the_received_events(log: Handwritten, made: st.DataObject) -> None:
    """The rest is equal byte for byte, up to a break, which is sent once."""
    whole = frames(log.stored)
    numbered = parse(b"".join(frame.data for frame in whole))
    seen = made.draw(st.integers(1, len(numbered)))
    rest, left = skip_events(whole, seen)
    assert b"".join(frame.data for frame in rest) == b"".join(event.raw for event in numbered[seen:])
    assert left == 0
    broken = [json.loads(event.data)["type"] == "error" for event in numbered[seen:]]
    assert sum(frame.is_break for frame in rest) == sum(broken)


@given(answers())
def test_sdk_accumulates_the_stream_of_a_new_reader(log: Handwritten) -> None:
    """From the log and from the database: the fold's text, and a complete response if the turn is."""
    live = render_for_new_reader(log)
    for sent in (live, data(DIALECT.render_record(record_from_fold(KEY, log.turn), 0).data)) if live else ():
        whole = read(sent)
        text = "".join(event["delta"] for event in sent if event["type"] == "response.output_text.delta")
        assert text == log.turn.text
        assert (whole.output_text if whole else None) == (text if sent[-1]["type"] == "response.completed" else None)


@given(answers(), st.data())
def test_snapshot_joins_the_stream(log: Handwritten, made: st.DataObject) -> None:
    """The numbers continue, and the text equals the fold's."""
    at = made.draw(st.integers(1, len(log.stored)))
    whole = frames(log.stored)
    number = len(data(b"".join(frame.data for frame in whole[:at])))
    rest = after_last_restart(log.stored[at:])
    if len(rest) < len(log.stored[at:]):
        return  # a restart takes the snapshot back, and breaks its reader off
    sent = data(
        sse.encode(render_snapshot(KEY, fold(log.stored[:at]), number)) + b"".join(frame.data for frame in whole[at:])
    )
    numbers = [event["sequence_number"] for event in sent]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    assert not numbers or (numbers[0] >= 0 and numbers[-1] == len(events_of(log.stored)) - 1)
    read(sent)
    assert "".join(one["delta"] for one in sent if one["type"] == "response.output_text.delta") == log.turn.text


@given(answers().filter(lambda log: log.chain.is_ended))
def test_last_event_has_the_response_of_the_record(log: Handwritten) -> None:
    """Promise 4."""
    last, looked_up = events_of(log.stored)[-1]["response"], response_of(record_from_fold(KEY, log.turn))
    for one in (last, looked_up):
        Response.model_validate(with_openais_reason(one), strict=True)
        for item in one["output"]:
            # Deltas may contain white space.
            if "arguments" in item and item["status"] == "completed":
                item["arguments"] = json.loads(item["arguments"])
    if log.turn.outcome == "completed":
        assert last == looked_up
    else:
        assert (last["id"], last["status"], last["error"], last["usage"]) == tuple(
            looked_up[name] for name in ("id", "status", "error", "usage")
        )


@given(answers(), st.integers(1, 50))
def test_resume_from_the_database_sends_only_done_events(log: Handwritten, seen: int) -> None:
    """No delta is repeated, and the numbers continue."""
    sent = data(DIALECT.render_record(record_from_fold(KEY, log.turn), seen).data)
    assert [event["sequence_number"] for event in sent] == list(range(seen, seen + len(sent)))
    assert {event["type"].rpartition(".")[2] for event in sent[:-1]} <= {"done"}
    whole = [event["text"] for event in sent if event["type"] == "response.output_text.done"]
    assert "".join(whole) == log.turn.text


@given(st.lists(TEXTS, max_size=5))
def test_numbers_from_the_database_are_not_lower_than_from_the_log(texts: list[str]) -> None:
    """A client that drops received events by number (the SDK's `.stream`) keeps the end."""
    log = completed_turn(*texts)
    numbers = [
        event["sequence_number"] for event in data(DIALECT.render_record(record_from_fold(KEY, log.turn), 0).data)
    ]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= events_of(log.stored)[-1]["sequence_number"]


def test_a_restarted_answer_has_no_snapshot_before_its_first_event() -> None:
    """The golden case `restart` has the error, the break and the new response."""
    log = started_turn("old")
    log.store_attempt("restart")
    assert render_snapshot(KEY, log.turn, 9) == ()


@pytest.mark.parametrize(
    ("outcome", "stop_reason"),
    [("completed", "max_tokens"), ("completed", "max_cost"), ("completed", "budget"), ("cancelled", None)],
)
@pytest.mark.parametrize("pieces", [[], ['{"q":"Pa'], ["[1]"]], ids=["no argument", "a part of one", "no object"])
def test_a_call_that_was_cut_is_incomplete(outcome: Outcome, stop_reason: str | None, pieces: list[str]) -> None:
    """As OpenAI sends it: with the arguments so far, in the stream and in the body. An input that is no object, too."""
    log = attempted_turn(opening_events()[0], *answer_block(0, "tool_use"), *answer_block(1, "tool_use", *pieces)[:-1])
    if outcome == "completed":
        log.close_block()
    if stop_reason is not None:
        log.store_events(events.MessageDelta(events.StopReason(stop_reason), events.UsageSoFar(output_tokens=3)))
    log.end(outcome)
    record = record_from_fold(KEY, log.turn)
    streamed, archived = events_of(log.stored), data(DIALECT.render_record(record, 0).data)
    for response in (streamed[-1]["response"], archived[-1]["response"], response_of(record)):
        assert [(item["status"], item["arguments"]) for item in response["output"]] == [
            ("completed", "{}"),
            ("incomplete", "".join(pieces)),
        ]
    for sent in (streamed, archived):
        assert [one["arguments"] for one in sent if one["type"] == "response.function_call_arguments.done"] == [
            "{}",
            "".join(pieces),
        ]


@pytest.mark.parametrize(("outcome", "stop_reason"), [("completed", "max_tokens"), ("cancelled", None)])
def test_an_item_before_a_cut_block_without_an_item_is_completed(outcome: Outcome, stop_reason: str | None) -> None:
    """The same in the stream and when stored: the limit has cut a search of the web, and not the text before it."""
    log = attempted_turn(opening_events()[0])
    log.store_events(*answer_block(0, "text", "I look."), events.BlockStart(1, {"type": "server_tool_use"}))
    if stop_reason is not None:
        log.store_events(events.BlockStop(1), events.MessageDelta(events.StopReason(stop_reason)))
    log.end(outcome)
    record = record_from_fold(KEY, log.turn)
    for response in (events_of(log.stored)[-1]["response"], response_of(record)):
        assert [item["status"] for item in response["output"]] == ["completed"]


def test_turn_without_an_attempt_is_queued() -> None:
    log = Handwritten()
    log.store_request()
    assert response_of(record_from_fold(KEY, log.turn))["status"] == "queued"
    assert data(sse.encode(render_snapshot(KEY, log.turn, 1))) == events_of(log.stored)
    log.store_attempt()
    assert response_of(record_from_fold(KEY, log.turn))["status"] == "in_progress"
