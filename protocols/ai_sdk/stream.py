"""The dialect `ui`: AI SDK's UI message stream, for `useChat` and WorkflowChatTransport.

A turn is one step of a message. A turn that answers a tool's result continues the message with the tool call. If the
page has sent the result, the `start` chunk has no message id, and `useChat` appends to its last message. Another page
may not have that message, or not as it is now, so `replay_dialect` also renders the earlier steps.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import asdict, replace

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Attempt, End, Event, Message, Request, StoredEntry
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.protocols.ai_sdk.part import (
    Calls,
    Chunk,
    OpenPart,
    add_delta,
    add_other_delta,
    call_ids,
    close_part,
    content_chunks,
    is_call,
    may_be_cut,
    open_part,
    tool_output,
)
from tailrace.protocols.common.event_count import DONE
from tailrace.protocols.common.failure import LOST

# The key in a request's metadata for the id of the message that the answer continues.
MESSAGE = "ui_message"
# The mapping of AI SDK's own provider for Anthropic, but `other` for `pause_turn` and for unknown reasons:
# with `stop`, a page would show the answer as whole.
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "max_cost": "length",
    "budget": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool-calls",
    "refusal": "content-filter",
}
RESET: Chunk = {"type": "reset-step"}
OPENING_CHUNKS = 3

_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, Any])


class Earlier(NamedTuple):
    """The message that an answer continues, if the page has not sent it with the request."""

    message: str = ""
    """The id of the message; empty: there is none."""
    steps: tuple[Chunk, ...] = ()


EMPTY = Earlier()


class UiState(msgspec.Struct, frozen=True):
    """`open`: the parts without their last chunk, by block index."""

    turn: TurnId
    open: Mapping[int, OpenPart] = {}
    last: int = -1
    """The block that was opened last: a limit cuts no other call."""
    calls: Calls = frozenset()
    earlier: Earlier = EMPTY


def render(state: UiState, stored: StoredEntry) -> tuple[Frame, UiState]:
    chunks, state = _entry_chunks(state, stored)
    is_end = isinstance(stored.entry, End)
    return (_frame(chunks, stored.seq, is_end=is_end) if chunks else SILENT), state


def render_record(record: TurnRecord, seen: int, earlier: Earlier = EMPTY) -> Frame:
    """Renders a whole turn after `seen` chunks. Deltas were joined, so a reset follows the opening."""
    chunks = record_chunks(record, earlier)
    opening = OPENING_CHUNKS + len(earlier.steps)
    rest = chunks[seen:] if seen <= opening else [RESET, *chunks[opening:]]
    return _frame(rest, record.cursor, is_end=True)


def record_chunks(record: TurnRecord, earlier: Earlier = EMPTY) -> list[Chunk]:
    """Returns the chunks of a whole turn."""
    content = content_chunks(record.content, _calls(record, earlier))
    if content and _is_input_cut(record):
        content.pop()
    return [*_opening(record.turn, record, record.asked_at, earlier), *content, *_finish(record)]


def _is_input_cut(record: TurnRecord) -> bool:
    """Returns whether the last block is a tool call whose input was cut, which the fold drops (proto/fold.py).

    Its last chunk is left out, as in the stream.
    """
    is_cut = _is_cut(record.outcome, record.stop_reason)
    last = record.content[-1]
    return is_cut and events.is_tool_use(str(last.get("type"))) and not last.get("input")


def _is_cut(outcome: str, stop_reason: str | None) -> bool:
    """Returns whether the answer ended before the model had completed it."""
    return outcome != "completed" or FINISH_REASONS.get(stop_reason or "") == "length"


def message_id(turn: TurnId, metadata: Mapping[str, str]) -> str:
    """Returns the id of the UI message that contains the answer."""
    return metadata.get(MESSAGE, f"msg_{turn}")


def _entry_chunks(state: UiState, stored: StoredEntry) -> tuple[list[Chunk], UiState]:
    match stored.entry:
        case Request() as request:
            opening = _opening(state.turn, request, stored.at, state.earlier)
            return opening, UiState(state.turn, calls=_calls(request, state.earlier))
        case Attempt(mode="restart"):
            return [RESET], UiState(state.turn, calls=state.calls)
        case Event(event=raw, is_hidden=False):
            event = events.decode(raw)
            return (
                _unknown_chunks(state, event, raw)
                if isinstance(event, events.UnknownEvent)
                else _event_chunks(state, event)
            )
        case End() as end:
            is_cut = _is_cut(end.outcome, end.stop_reason)
            # A call that was cut stays open. An error would be its result, and a page that sends results of tools by
            # itself would continue an answer that the user or a limit has ended.
            parts = [part for part in state.open.values() if not (is_cut and is_call(part))]
            closing = [chunk for part in parts for chunk in close_part(part)]
            # The page reads the next turn: its message is another one of the chat.
            steered = {"type": "data-steered", "data": {"turn": end.successor}, "transient": True}
            return [*closing, *([] if end.successor is None else [steered]), *_finish(end)], state
        case _:
            return [], state


def _unknown_chunks(state: UiState, event: events.UnknownEvent, raw: msgspec.Raw) -> tuple[list[Chunk], UiState]:
    """Adds a delta of another type to its part. Passes other events on to the page's `onData` only."""
    if isinstance(event, events.OtherDelta) and event.index in state.open:
        part = add_other_delta(state.open[event.index], event.delta)
        if part is not None:
            return [], replace(state, open={**state.open, event.index: part})
    try:
        fields = _fields.decode(raw)
    except DECODE_ERRORS:
        return [], state
    if not isinstance(fields.get("type"), str):
        return [], state
    # Not in the message: a turn from the database has no such event.
    return [{"type": "data-event", "data": fields, "transient": True}], state


def _event_chunks(state: UiState, event: events.Event) -> tuple[list[Chunk], UiState]:
    match event:
        case events.BlockStart(index, block):
            chunks, part = open_part(index, block, state.calls)
            waiting = [chunk for earlier in state.open.values() if earlier.is_stopped for chunk in close_part(earlier)]
            rest = {number: earlier for number, earlier in state.open.items() if not earlier.is_stopped}
            calls = None if state.calls is None else state.calls | call_ids(block)
            return waiting + chunks, replace(state, open={**rest, index: part}, last=index, calls=calls)
        case events.BlockDelta(index, delta) if index in state.open:
            chunks, part = add_delta(state.open[index], delta)
            return chunks, replace(state, open={**state.open, index: part})
        case events.BlockStop(index) if index == state.last and index in state.open and may_be_cut(state.open[index]):
            stopped = replace(state.open[index], is_stopped=True)
            return [], replace(state, open={**state.open, index: stopped})
        case events.BlockStop(index) if index in state.open:
            rest = {number: part for number, part in state.open.items() if number != index}
            return close_part(state.open[index]), replace(state, open=rest)
        case _:
            return [], state


def _calls(asked: Request | TurnRecord, earlier: Earlier) -> Calls:
    """Returns the calls that may get a result before the answer has any."""
    return None if earlier.message or MESSAGE in (asked.metadata or {}) else frozenset()


def _opening(turn: TurnId, asked: Request | TurnRecord, at: datetime, earlier: Earlier) -> list[Chunk]:
    given = asked.metadata or {}
    name = earlier.message or ("" if MESSAGE in given else message_id(turn, given))
    ids = {"turn": turn, "session": asked.session}
    metadata = {**ids, "model": asked.model, "asked_at": at}
    return [
        {"type": "start", **({"messageId": name} if name else {}), "messageMetadata": metadata},
        *earlier.steps,
        # Before the step, because a reset discards what follows the step's start.
        {"type": "data-tailrace", "id": turn, "data": ids},
        {"type": "start-step"},
    ]


def step_chunks(messages: Iterable[Message]) -> tuple[Chunk, ...]:
    """Returns the chunks of the earlier steps of a message."""
    steps: list[Chunk] = []
    for message in messages:
        blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
        if message.role == "assistant":
            steps += [{"type": "start-step"}, *content_chunks(blocks, None), {"type": "finish-step"}]
        else:
            steps += tool_results(blocks)
    return tuple(steps)


def tool_results(blocks: Iterable[dict[str, Any]]) -> list[Chunk]:
    """Returns the chunks of the tool results among the blocks of a message."""
    return [
        tool_output(block["tool_use_id"], block.get("content", ""), is_error=bool(block.get("is_error")))
        for block in blocks
        if block.get("type") == "tool_result" and isinstance(block.get("tool_use_id"), str)
    ]


def _finish(ended: End | TurnRecord) -> list[Chunk]:
    """Returns the last chunks. They end with `finish`, without which the workflow transport reconnects forever."""
    metadata = {
        "outcome": ended.outcome,
        "stop_reason": ended.stop_reason,
        # Every count: a client merges this into the metadata of an earlier turn of the same message.
        "usage": asdict(ended.usage),
        "usage_is_estimated": ended.usage_is_estimated,
        "cost_usd": ended.cost_usd,
        **({} if ended.answered_by is None else {"model": ended.answered_by}),
    }
    step: Chunk = {"type": "finish-step"}
    match ended.outcome:
        case "completed":
            reason = FINISH_REASONS.get(ended.stop_reason or "", "other")
            return [step, {"type": "finish", "finishReason": reason, "messageMetadata": metadata}]
        case "cancelled":
            # Not `interrupted`: the workflow transport includes an older `ai`, which rejects that reason.
            finish = {"type": "finish", "finishReason": "other", "messageMetadata": metadata}
            return [step, {"type": "abort", "reason": "cancelled"}, finish]
        case _:
            # `useChat` stops reading at `error`, so the metadata comes before it.
            end = {"type": "message-metadata", "messageMetadata": metadata}
            failed = {"type": "error", "errorText": (ended.error or LOST).message}
            return [step, end, failed, {"type": "finish", "finishReason": "error"}]


def _frame(chunks: list[Chunk], seq: int, *, is_end: bool) -> Frame:
    """Renders the chunks of an entry. Only the last has the id, so that a client resumes after whole entries."""
    lines = [*map(_encode, chunks), *([DONE] if is_end else [])]
    return Frame((*map(sse.Event, lines[:-1]), sse.Event(lines[-1], seq)))


UI = Dialect(
    name="ui",
    can_reset=True,
    start=lambda key: UiState(key.turn),
    render=render,
    render_record=render_record,
    is_stateful=True,
    headers={"x-vercel-ai-ui-message-stream": "v1"},
)


def replay_dialect(earlier: Earlier) -> Dialect:
    """Returns the dialect that also renders the earlier steps of the message."""
    return UI._replace(
        name="ui-replay",
        start=lambda key: UiState(key.turn, earlier=earlier),
        render_record=lambda record, seen: render_record(record, seen, earlier),
    )
