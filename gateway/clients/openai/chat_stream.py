"""The dialect `openai-chat`: chunks of a chat completion, for OpenAI's SDKs and compatible clients.

The chunks are OpenAI's (API reference, "Chat completion chunk") with two more fields: `reasoning_content`, the model's
thinking, named as other servers name it; and `cursor`, in the last chunk of each entry, after which the stream can be
resumed. There are no `id:` and `retry:` lines, because some clients fail on them. `[DONE]` follows a complete answer
only; an incomplete one ends with an error.
"""

from typing import Any

import msgspec

from tailrace.gateway.clients.failure import error_type, failure_of
from tailrace.gateway.clients.openai import chat_object
from tailrace.gateway.clients.openai.annotations import Annotation, chat_annotations
from tailrace.gateway.clients.openai.chat_object import Head, as_tool_use, finish_reason, usage_of
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, Failure, Request, StoredEntry
from tailrace.proto.fold import CUT
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey

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
    pending: tuple[int, bytes] | None = None
    """A call whose arguments have not begun: its block, and the arguments that are sent if no delta follows.

    A call that was cut sends none.
    """
    chars: int = 0
    """The length of the text so far."""
    block_start: int = 0
    """Where the last text block starts in it."""
    citations: tuple[dict[str, Any], ...] = ()
    """The citations of that block. They become annotations at its end, when its length is known."""
    annotations: tuple[Annotation, ...] = ()


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
            delta, state = _delta(state, events.decode(raw))
            return (Frame(_render_chunk(state, delta, stored.seq)) if delta else SILENT), state
        case End() as end:
            return Frame(_render_ended(state, end, stored.seq)), state
        case _:
            return SILENT, state


def render_record(record: TurnRecord, _: int, *, include_usage: bool) -> Frame:
    message = chat_object.message_of(record)
    state = ChatState(chat_object.head_of(record), include_usage, annotations=tuple(message.get("annotations", ())))
    calls = [{"index": number, **call} for number, call in enumerate(message.pop("tool_calls", ()))]
    deltas: list[Delta] = [{"role": "assistant", "content": ""}]
    deltas += [{name: message[name]} for name in ("reasoning_content", "content") if message.get(name)]
    deltas += [{"tool_calls": calls}] if calls else []
    answer = tuple(event for delta in deltas for event in _render_chunk(state, delta))
    return Frame(answer + _render_ended(state, record, record.cursor))


def _delta(state: ChatState, event: events.Event | events.UnknownEvent) -> tuple[Delta | None, ChatState]:
    """Returns the delta of an event, None if it has none, and the state after it."""
    if isinstance(event, events.BlockStart):
        event = events.BlockStart(event.index, as_tool_use(event.content_block))
    match event:
        case events.BlockStart() if state.pending is not None:
            # The model sends no delta for a call without arguments, and an empty string is not JSON.
            calls = _pending_arguments(state)["tool_calls"]
            delta, state = _delta(msgspec.structs.replace(state, pending=None), event)
            return {**(delta or {}), "tool_calls": [*calls, *(delta or {}).get("tool_calls", [])]}, state
        case events.MessageStart():
            return {"role": "assistant", "content": ""}, state
        case events.BlockStart(_, {"type": "text", "text": str(text)}):
            return _text(msgspec.structs.replace(state, block_start=state.chars), text)
        case events.BlockDelta(_, events.TextDelta(text)):
            return _text(state, text)
        case events.BlockDelta(_, events.CitationsDelta(citation)):
            return None, msgspec.structs.replace(state, citations=(*state.citations, citation))
        case events.BlockDelta(_, events.ThinkingDelta(text)):
            return ({"reasoning_content": text} if text else None), state
        case events.BlockStart(block, {"type": "tool_use", "id": str(call), "name": str(name), **rest}):
            function = {"name": name, "arguments": ""}
            opened = {"index": len(state.tools), "id": call, "type": "function", "function": function}
            pending = (block, _encode(rest.get("input") or {}))
            state = msgspec.structs.replace(state, tools=(*state.tools, block), pending=pending)
            return {"tool_calls": [opened]}, state
        case events.BlockDelta(block, events.InputJsonDelta(delta)) if delta and block in state.tools:
            return _arguments(state, block, delta), msgspec.structs.replace(state, pending=None)
        case events.BlockStop() if state.citations:
            found = chat_annotations(state.citations, state.block_start, state.chars)
            return None, msgspec.structs.replace(state, citations=(), annotations=(*state.annotations, *found))
        case _:
            return None, state


def _text(state: ChatState, text: str) -> tuple[Delta | None, ChatState]:
    return ({"content": text} if text else None), msgspec.structs.replace(state, chars=state.chars + len(text))


def _arguments(state: ChatState, block: int, arguments: str) -> Delta:
    return {"tool_calls": [{"index": state.tools.index(block), "function": {"arguments": arguments}}]}


def _pending_arguments(state: ChatState) -> Delta:
    assert state.pending is not None  # noqa: S101  # the callers have checked it
    block, arguments = state.pending
    return _arguments(state, block, arguments.decode())


def _render_ended(state: ChatState, ended: End | TurnRecord, seq: int) -> sse.Events:
    if ended.outcome != "completed":
        return _render_error(failure_of(ended))
    finish = finish_reason(ended.stop_reason)
    # A call that was cut before its first argument has none.
    has_arguments = state.pending is not None and ended.stop_reason not in CUT
    arguments = _render_chunk(state, _pending_arguments(state)) if has_arguments else ()
    # In one chunk, as OpenAI does: its SDKs cannot concatenate lists without an index.
    annotations = _render_chunk(state, {"annotations": state.annotations}) if state.annotations else ()
    last = arguments + annotations
    if not state.include_usage:
        return last + _render_chunk(state, {}, seq, finish) + DONE
    usage = usage_of(ended.usage, ended.envelope)
    usage_chunk = {**state.head.fields("chat.completion.chunk"), "choices": [], "usage": usage, "cursor": seq}
    return last + _render_chunk(state, {}, None, finish) + sse.frame(_encode(usage_chunk)) + DONE


def _render_chunk(state: ChatState, delta: Delta, seq: int | None = None, finish: str | None = None) -> sse.Events:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {**state.head.fields("chat.completion.chunk"), "choices": [choice]}
    if state.include_usage:
        chunk["usage"] = None
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
