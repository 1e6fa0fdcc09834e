"""The dialect `openai-chat`: chunks of a chat completion, for OpenAI's SDKs and all that speak their protocol.

The chunks are OpenAI's (API reference, "Chat completion chunk") with two fields more: `reasoning_content`, the model's
thoughts, under the name that clients of other servers read; and, in the last chunk of each entry, `cursor`, after which
the stream can be resumed. `id:` and `retry:` lines are left out: some clients fail on them. `[DONE]` follows a whole
answer only; an answer that is not whole is an error.
"""

from typing import Any

import msgspec

from tailrace.gateway.clients.dialect import SILENT, Dialect, Frame
from tailrace.gateway.clients.failure import CANCELLED, of_record, type_of
from tailrace.gateway.clients.openai import chat_object
from tailrace.gateway.clients.openai.annotations import Annotation, of_chat
from tailrace.gateway.clients.openai.chat_object import Head, finish_reason, usage_of
from tailrace.gateway.streaming import sse
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, Failure, Request, Stored
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage

BEGUN_ANEW = (
    "the answer begins anew, and what came of it does not count: it is at /v1/turns/{turn}/events?dialect=openai-chat"
)
DONE = sse.frame(b"[DONE]")

_encode = msgspec.json.Encoder().encode

Delta = dict[str, Any]


class StreamState(msgspec.Struct, frozen=True):
    """What the client knows by now. `tools` are the blocks of its tool calls, by the index that it knows them under."""

    head: Head
    is_counted: bool
    """Whether the client has asked for the usage."""
    tools: tuple[int, ...] = ()
    untold: tuple[int, bytes] | None = None
    """The block of a call that has no arguments yet, and what they are if none come."""
    chars: int = 0
    """How long the text is by now, and `begun_at` where its last block begins."""
    begun_at: int = 0
    citations: tuple[dict[str, Any], ...] = ()
    """Those of that block: it is not known yet how far it goes."""
    annotations: tuple[Annotation, ...] = ()


def start(key: TurnKey, *, is_counted: bool) -> StreamState:
    return StreamState(Head(key.turn), is_counted)


def render(told: StreamState, stored: Stored) -> tuple[Frame, StreamState]:
    match stored.entry:
        case Request(model=model):
            return SILENT, msgspec.structs.replace(told, head=Head(told.head.turn, model, stored.at))
        case Attempt(mode="restart"):
            failure = Failure("backend_broken", BEGUN_ANEW.format(turn=told.head.turn))
            return Frame(_error(failure), is_break=True), StreamState(told.head, told.is_counted)
        case Event(event=raw, is_hidden=False):
            delta, told = _heard(told, events.decode(raw))
            return (Frame(_chunk(told, delta, stored.seq)) if delta else SILENT), told
        case End(outcome="completed") as end:
            return Frame(_completed(told, end.stop_reason, end.usage, stored.seq)), told
        case End(error=failure):
            return Frame(_error(failure or CANCELLED)), told
        case _:
            return SILENT, told


def render_record(record: TurnRecord, _: int, *, is_counted: bool) -> Frame:
    message = chat_object.message_of(record)
    told = StreamState(chat_object.head_of(record), is_counted, annotations=tuple(message.get("annotations", ())))
    calls = [{"index": number, **call} for number, call in enumerate(message.pop("tool_calls", ()))]
    deltas: list[Delta] = [{"role": "assistant", "content": ""}]
    deltas += [{name: message[name]} for name in ("reasoning_content", "content") if message.get(name)]
    deltas += [{"tool_calls": calls}] if calls else []
    said = tuple(event for delta in deltas for event in _chunk(told, delta))
    if record.outcome == "completed":
        return Frame(said + _completed(told, record.stop_reason, record.usage, record.cursor))
    return Frame(said + _error(of_record(record)))


def _heard(told: StreamState, event: events.Event | events.UnknownEvent) -> tuple[Delta | None, StreamState]:
    """What a client is told of an event, and what it knows then."""
    match event:
        case events.MessageStart():
            return {"role": "assistant", "content": ""}, told
        case events.BlockStart(_, {"type": "text", "text": str(text)}):
            return _text(msgspec.structs.replace(told, begun_at=told.chars), text)
        case events.BlockDelta(_, events.TextDelta(text)):
            return _text(told, text)
        case events.BlockDelta(_, events.CitationsDelta(citation)):
            return None, msgspec.structs.replace(told, citations=(*told.citations, citation))
        case events.BlockDelta(_, events.ThinkingDelta(text)):
            return ({"reasoning_content": text} if text else None), told
        case events.BlockStart(block, {"type": "tool_use", "id": str(call), "name": str(name), **rest}):
            function = {"name": name, "arguments": ""}
            opened = {"index": len(told.tools), "id": call, "type": "function", "function": function}
            untold = (block, _encode(rest.get("input") or {}))
            return {"tool_calls": [opened]}, msgspec.structs.replace(told, tools=(*told.tools, block), untold=untold)
        case events.BlockDelta(block, events.InputJsonDelta(piece)) if piece and block in told.tools:
            return _arguments(told, block, piece), msgspec.structs.replace(told, untold=None)
        case events.BlockStop(block) if told.untold is not None and told.untold[0] == block:
            # A tool without arguments streams none, and an empty string is no JSON.
            return _arguments(told, block, told.untold[1].decode()), msgspec.structs.replace(told, untold=None)
        case events.BlockStop() if told.citations:
            found = of_chat(told.citations, told.begun_at, told.chars)
            return None, msgspec.structs.replace(told, citations=(), annotations=(*told.annotations, *found))
        case _:
            return None, told


def _text(told: StreamState, text: str) -> tuple[Delta | None, StreamState]:
    return ({"content": text} if text else None), msgspec.structs.replace(told, chars=told.chars + len(text))


def _arguments(told: StreamState, block: int, piece: str) -> Delta:
    return {"tool_calls": [{"index": told.tools.index(block), "function": {"arguments": piece}}]}


def _completed(told: StreamState, stop_reason: str | None, usage: Usage, seq: int) -> sse.Events:
    finish = finish_reason(stop_reason)
    # All at once, as OpenAI does: its SDKs do not add up lists of what has no index.
    cited = _chunk(told, {"annotations": told.annotations}) if told.annotations else ()
    if not told.is_counted:
        return cited + _chunk(told, {}, seq, finish) + DONE
    counted = {**told.head.fields("chat.completion.chunk"), "choices": [], "usage": usage_of(usage), "cursor": seq}
    return cited + _chunk(told, {}, None, finish) + sse.frame(_encode(counted)) + DONE


def _chunk(told: StreamState, delta: Delta, seq: int | None = None, finish: str | None = None) -> sse.Events:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {**told.head.fields("chat.completion.chunk"), "choices": [choice]}
    if told.is_counted:
        chunk["usage"] = None
    if seq is not None:
        chunk["cursor"] = seq
    return sse.frame(_encode(chunk))


def _error(failure: Failure) -> sse.Events:
    error = {"message": failure.message, "type": type_of(failure), "param": None, "code": failure.code}
    return sse.frame(_encode({"error": error}))


def _dialect(name: str, *, is_counted: bool) -> Dialect:
    return Dialect(
        name=name,
        media_type=sse.MEDIA_TYPE,
        heartbeat=sse.HEARTBEAT,
        # Its SDKs take a stream that just ends for a whole one, with or without `[DONE]`.
        is_self_delimited=False,
        can_reset=False,
        start=lambda key: start(key, is_counted=is_counted),
        render=render,
        render_record=lambda record, seen: render_record(record, seen, is_counted=is_counted),
        is_stateful=True,
        render_json=chat_object.whole,
    )


OPENAI_CHAT = _dialect("openai-chat", is_counted=False)
OPENAI_CHAT_USAGE = _dialect("openai-chat-usage", is_counted=True)
