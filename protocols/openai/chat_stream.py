"""The dialect `openai-chat`: chunks of a chat completion, for OpenAI's SDKs and compatible clients.

The chunks are OpenAI's (API reference, "Chat completion chunk") with three more fields: `reasoning_content`, the
model's thinking, named as other servers name it; `cursor`, in the last chunk of each entry, after which the stream can
be resumed; and `warnings`, if there are any, in the chunk with the `finish_reason`. There are no `id:` and
`retry:` lines, because some clients fail on them. `[DONE]` follows a complete answer only; an incomplete one ends with
an error.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.text_order import NO_BLOCKS, TextOrder, text_of_event
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events, odd_json
from tailrace.proto.entries import Attempt, End, Event, Failure, Request, StoredEntry
from tailrace.proto.fold import CUT
from tailrace.proto.ids import TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import NOTHING, LeftOut, types_of, warnings_of
from tailrace.protocols.common.failure import error_type, failure_of
from tailrace.protocols.openai import chat_object
from tailrace.protocols.openai.annotations import Spans, chat_annotations, measure, text_spans
from tailrace.protocols.openai.chat_object import Head, as_tool_use, finish_reason, usage_of

NAME, NAME_WITH_USAGE = "openai-chat", "openai-chat-usage"
RESTARTED = "the answer starts again; discard its text and read /v1/turns/{turn}/events?dialect={dialect}"
DONE = sse.frame(b"[DONE]")

_encode = msgspec.json.Encoder().encode

Delta = dict[str, Any]


class ChatState(msgspec.Struct, frozen=True):
    """The part of the answer that the client has received."""

    head: Head
    include_usage: bool
    """Whether the client has requested the usage."""
    tools: tuple[int, ...] = ()
    """The block of each tool call, in the order of the indices that the client sees."""
    pending: tuple["_PendingCall", ...] = ()
    """The calls whose arguments have not begun."""
    last_block: int = -1
    """The block that was opened last."""
    order: TextOrder = NO_BLOCKS
    thinking_order: TextOrder = NO_BLOCKS
    left_out: LeftOut = NOTHING
    texts: Spans = ()
    """The text blocks in their order: their lengths give the indices of the annotations at the end."""


class _PendingCall(NamedTuple):
    """A call whose arguments have not begun. Without a delta, the arguments are the input in its block's start.

    The model sends no delta for a call without arguments, and an empty string is not JSON. A call that was cut sends
    no arguments.
    """

    block: int
    input: dict[str, Any]
    is_stopped: bool = False


def start(key: TurnKey, *, include_usage: bool) -> ChatState:
    return ChatState(Head(key.turn), include_usage)


def render(state: ChatState, stored: StoredEntry) -> tuple[Frame, ChatState]:
    match stored.entry:
        case Request(model=model):
            return SILENT, msgspec.structs.replace(state, head=Head(state.head.turn, model, stored.at))
        case Attempt(mode="restart"):
            dialect = NAME_WITH_USAGE if state.include_usage else NAME
            failure = Failure("backend_broken", RESTARTED.format(turn=state.head.turn, dialect=dialect))
            return Frame(_render_error(failure), is_break=True), ChatState(state.head, state.include_usage)
        case Event(event=raw, is_hidden=False):
            event = events.decode(raw)
            left_out = state.left_out.add(event, raw, chat_object.SHOWN)
            delta, state = _delta(msgspec.structs.replace(state, left_out=left_out), event)
            return (Frame(_render_chunk(state, delta, stored.seq)) if delta else SILENT), state
        case End() as end:
            return Frame(_render_ended(state, end, stored.seq)), state
        case _:
            return SILENT, state


def render_record(record: TurnRecord, _: int, *, include_usage: bool) -> Frame:
    message = chat_object.message_of(record)
    state = ChatState(
        chat_object.head_of(record),
        include_usage,
        left_out=LeftOut(types_of(record.content, chat_object.SHOWN)),
        texts=text_spans(record.content),
    )
    calls = [{"index": number, **call} for number, call in enumerate(message.pop("tool_calls", ()))]
    deltas: list[Delta] = [{"role": "assistant", "content": ""}]
    deltas += [{name: message[name]} for name in ("reasoning_content", "content") if message.get(name)]
    deltas += [{"tool_calls": calls}] if calls else []
    answer = tuple(event for delta in deltas for event in _render_chunk(state, delta))
    return Frame(answer + _render_ended(state, record, record.cursor))


def _delta(state: ChatState, event: events.Event | events.UnknownEvent) -> tuple[Delta | None, ChatState]:
    """Returns the delta of an event, None if it has none, and the state after it."""
    text, order = text_of_event(state.order, event)
    thinking, thinking_order = text_of_event(state.thinking_order, event, "thinking")
    state = msgspec.structs.replace(
        state, order=order, thinking_order=thinking_order, texts=measure(state.texts, event)
    )
    calls, state = _call_deltas(state, event)
    fields = {"content": text, "reasoning_content": thinking, "tool_calls": calls}
    delta: Delta = {name: value for name, value in fields.items() if value}
    if isinstance(event, events.MessageStart):
        delta = {"role": "assistant", "content": ""}
    return delta or None, state


def _call_deltas(state: ChatState, event: events.Event | events.UnknownEvent) -> tuple[list[Delta], ChatState]:
    """Returns the deltas that an event adds to tool calls, and the state after it."""
    if isinstance(event, events.BlockStart):
        event = events.BlockStart(event.index, as_tool_use(event.content_block))
    match event:
        case events.BlockStart(block, content):
            # Another block follows: calls that have ended without a delta were not cut.
            calls, state = _flush(state, [one for one in state.pending if one.is_stopped])
            state = msgspec.structs.replace(state, last_block=block)
            match content:
                case {"type": "tool_use", "id": str(call), "name": str(name), **rest}:
                    function = {"name": name, "arguments": ""}
                    calls.append({"index": len(state.tools), "id": call, "type": "function", "function": function})
                    given = rest.get("input")
                    pending = _PendingCall(block, given if isinstance(given, dict) else {})
                    state = msgspec.structs.replace(
                        state, tools=(*state.tools, block), pending=(*state.pending, pending)
                    )
            return calls, state
        case events.BlockDelta(block, events.InputJsonDelta(text)) if text and block in state.tools:
            pending_calls = tuple(one for one in state.pending if one.block != block)
            return [_arguments(state, block, text)], msgspec.structs.replace(state, pending=pending_calls)
        case events.BlockStop(block):
            stopped = tuple(one._replace(is_stopped=True) if one.block == block else one for one in state.pending)
            state = msgspec.structs.replace(state, pending=stopped)
            # An input that the start of the block has was not cut.
            return _flush(state, [one for one in stopped if one.block == block and one.input])
        case _:
            return [], state


def _flush(state: ChatState, calls: list[_PendingCall]) -> tuple[list[Delta], ChatState]:
    """Returns the arguments of pending calls, and the state without them."""
    deltas = [_arguments(state, one.block, odd_json.encode(one.input).decode()) for one in calls]
    rest = tuple(one for one in state.pending if one not in calls)
    return deltas, msgspec.structs.replace(state, pending=rest)


def _arguments(state: ChatState, block: int, arguments: str) -> Delta:
    return {"index": state.tools.index(block), "function": {"arguments": arguments}}


def _closing(state: ChatState, stop_reason: str | None) -> Delta:
    """Returns what is still missing at the end of a completed answer: held text, and arguments of calls."""

    def is_whole(call: _PendingCall) -> bool:
        """Returns whether no limit has cut the call before its first argument."""
        return bool(call.input) or stop_reason not in CUT or (call.is_stopped and call.block != state.last_block)

    calls, _ = _flush(state, [call for call in state.pending if is_whole(call)])
    return _held(state) | ({"tool_calls": calls} if calls else {})


def _held(state: ChatState) -> Delta:
    """Returns the text and the thinking that wait for earlier blocks."""
    fields = {"content": state.order.rest(), "reasoning_content": state.thinking_order.rest()}
    return {name: text for name, text in fields.items() if text}


def _render_ended(state: ChatState, ended: End | TurnRecord, seq: int) -> sse.Events:
    if ended.outcome != "completed":
        held = _held(state)
        return (_render_chunk(state, held) if held else ()) + _render_error(failure_of(ended))
    if ended.answered_by is not None:
        # Known only now: the model may have handed over to another one within its answer.
        head = msgspec.structs.replace(state.head, model=ended.answered_by)
        state = msgspec.structs.replace(state, head=head)
    finish = finish_reason(ended.stop_reason)
    closing = _closing(state, ended.stop_reason)
    last = _render_chunk(state, closing) if closing else ()
    warnings = warnings_of(ended, state.left_out.types, state.head.turn)
    if annotations := chat_annotations(state.texts):
        # In one chunk, as OpenAI does: its SDKs cannot concatenate lists without an index.
        last += _render_chunk(state, {"annotations": annotations})
    if not state.include_usage:
        return last + _render_chunk(state, {}, seq, finish, warnings) + DONE
    usage = usage_of(ended.usage, ended.envelope)
    usage_chunk = {**state.head.fields("chat.completion.chunk"), "choices": [], "usage": usage, "cursor": seq}
    return last + _render_chunk(state, {}, None, finish, warnings) + sse.frame(_encode(usage_chunk)) + DONE


def _render_chunk(
    state: ChatState, delta: Delta, seq: int | None = None, finish: str | None = None, warnings: Sequence[Any] = ()
) -> sse.Events:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {**state.head.fields("chat.completion.chunk"), "choices": [choice]}
    if state.include_usage:
        chunk["usage"] = None
    if warnings:
        chunk["warnings"] = warnings
    if seq is not None:
        chunk["cursor"] = seq
    return sse.frame(_encode(chunk))


def _render_error(failure: Failure) -> sse.Events:
    error = {"message": failure.message, "type": error_type(failure), "param": None, "code": failure.code}
    return sse.frame(_encode({"error": error}))


def _dialect(name: str, *, include_usage: bool) -> Dialect:
    return Dialect(
        name=name,
        # Not self-delimited: the SDKs treat a stream that stops as complete, also without `[DONE]`.
        start=lambda key: start(key, include_usage=include_usage),
        render=render,
        render_record=lambda record, seen: render_record(record, seen, include_usage=include_usage),
        is_stateful=True,
        render_json=chat_object.render_completion,
    )


OPENAI_CHAT = _dialect(NAME, include_usage=False)
OPENAI_CHAT_USAGE = _dialect(NAME_WITH_USAGE, include_usage=True)
