"""The dialect `ui`: AI SDK's UI message stream, for `useChat` and the workflow transport. It knows no request.

A turn is one step of a message. Where it answers a tool's result, it goes on with the message that called the tool:
then `start` names no message, and a client that was there adds to what it has. A client that was not begins with
nothing, so UI_REPLAY tells the steps before it too; the request has them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from tailrace.gateway.clients.ai_sdk.part import Chunk, Part, added, broken, closed, opened, output, whole
from tailrace.gateway.clients.dialect import SILENT, Dialect, Frame
from tailrace.gateway.clients.failure import LOST
from tailrace.gateway.streaming import sse
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, Failure, Message, Request, Stored
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import NANO_USD_PER_USD, Usage

# In a request's metadata: what the client calls the message that the answer goes on with.
MESSAGE = "ui_message"
DONE = b"[DONE]"
# As AI SDK's own provider for Anthropic has them.
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "max_cost": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool-calls",
    "refusal": "content-filter",
}
RESET: Chunk = {"type": "reset-step"}
OPENING_CHUNKS = 3

_encode = msgspec.json.Encoder().encode


class StreamState(msgspec.Struct, frozen=True):
    """The blocks that are open, by their index. `is_replay`: for who has not been told the message's steps before."""

    turn: TurnId
    is_replay: bool = False
    open: Mapping[int, Part] = {}


def render(told: StreamState, stored: Stored) -> tuple[Frame, StreamState]:
    chunks, told = _entry(told, stored)
    is_end = isinstance(stored.entry, End)
    return (_frame(chunks, stored.seq, is_end=is_end) if chunks else SILENT), told


def render_record(record: TurnRecord, seen: int) -> Frame:
    """Who has seen more than the opening forgets it: deltas were joined, so there is no telling how far that went."""
    told = chunks(record)
    rest = told[seen:] if seen <= OPENING_CHUNKS else [RESET, *told[OPENING_CHUNKS:]]
    return _frame(rest, record.cursor, is_end=True)


def chunks(record: TurnRecord) -> list[Chunk]:
    """A turn that is not streamed."""
    begun = {"turn": record.turn, "session": record.session, "model": record.model, "asked_at": record.asked_at}
    said = [chunk for index, block in enumerate(record.content) for chunk in whole(index, block)]
    if said and _broke_off(record):
        said[-1] = broken(said[-1])
    outcome = "failed" if record.outcome == "running" else record.outcome
    ended = _ended(outcome, record.usage, record.cost_usd, usage_is_estimated=record.usage_is_estimated)
    finish = _finish(outcome, record.stop_reason, record.error, ended)
    return [*_opening(record.turn, record.metadata, begun), *said, *finish]


def _broke_off(record: TurnRecord) -> bool:
    """Whether its last block is a call that has no input because half of one is none (proto/fold.py)."""
    is_cut = record.outcome != "completed" or FINISH_REASONS.get(record.stop_reason or "") == "length"
    return is_cut and record.content[-1].get("type") == "tool_use" and not record.content[-1].get("input")


def message_id(turn: TurnId, metadata: Mapping[str, str]) -> str:
    """What a client calls the message that holds the answer."""
    return metadata.get(MESSAGE, f"msg_{turn}")


def _entry(told: StreamState, stored: Stored) -> tuple[list[Chunk], StreamState]:
    match stored.entry:
        case Request() as request:
            begun = {"turn": told.turn, "session": request.session, "model": request.model, "asked_at": stored.at}
            opening = _opening(told.turn, request.metadata or {}, begun)
            if told.is_replay and MESSAGE in (request.metadata or {}):
                start = {**opening[0], "messageId": message_id(told.turn, request.metadata or {})}
                opening = [start, *_earlier(request.messages), *opening[1:]]
            return opening, told
        case Attempt(mode="restart"):
            return [RESET], StreamState(told.turn, told.is_replay)
        case Event(event=raw, is_hidden=False):
            return _event(told, events.decode(raw))
        case End() as end:
            cut = [chunk for part in told.open.values() for chunk in closed(part)]
            cost_usd = end.cost_nano_usd / NANO_USD_PER_USD
            ended = _ended(end.outcome, end.usage, cost_usd, usage_is_estimated=end.usage_is_estimated)
            return [*cut, *_finish(end.outcome, end.stop_reason, end.error, ended)], told
        case _:
            return [], told


def _event(told: StreamState, event: events.Event | events.UnknownEvent) -> tuple[list[Chunk], StreamState]:
    match event:
        case events.BlockStart(index, block):
            chunks, part = opened(index, block)
            return chunks, _with(told, {**told.open, index: part})
        case events.BlockDelta(index, delta) if index in told.open:
            chunks, part = added(told.open[index], delta)
            return chunks, _with(told, {**told.open, index: part})
        case events.BlockStop(index) if index in told.open:
            rest = {number: part for number, part in told.open.items() if number != index}
            return closed(told.open[index]), _with(told, rest)
        case _:
            return [], told


def _with(told: StreamState, parts: Mapping[int, Part]) -> StreamState:
    return StreamState(told.turn, told.is_replay, parts)


def _opening(turn: TurnId, metadata: Mapping[str, str], begun: dict[str, Any]) -> list[Chunk]:
    named = {} if MESSAGE in metadata else {"messageId": message_id(turn, metadata)}
    place = {"turn": turn, "session": begun.get("session")}
    return [
        {"type": "start", **named, "messageMetadata": begun},
        # Before the step: a restart takes back what comes after its beginning.
        {"type": "data-tailrace", "id": turn, "data": place},
        {"type": "start-step"},
    ]


def _earlier(messages: list[Message]) -> list[Chunk]:
    """The steps of the message that the last of `messages`, a tool's result, goes on with."""
    told: list[Chunk] = []
    for message in messages[_asked(messages) + 1 :]:
        blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
        if message.role == "assistant":
            said = [chunk for index, block in enumerate(blocks) for chunk in whole(index, block)]
            told += [{"type": "start-step"}, *said, {"type": "finish-step"}]
        else:
            told += results(blocks)
    return told


def results(blocks: Iterable[dict[str, Any]]) -> list[Chunk]:
    """What the client's tools have brought, among the blocks of a message."""
    return [
        output(block["tool_use_id"], block.get("content", ""), is_error=bool(block.get("is_error")))
        for block in blocks
        if block.get("type") == "tool_result" and isinstance(block.get("tool_use_id"), str)
    ]


def _asked(messages: list[Message]) -> int:
    """The index of the last message that a person wrote; -1 when there is none."""
    written = (
        index
        for index, message in enumerate(messages)
        if message.role == "user"
        and not (isinstance(message.content, list) and any(one.get("type") == "tool_result" for one in message.content))
    )
    return max(written, default=-1)


def _ended(outcome: str, usage: Usage, cost_usd: float, *, usage_is_estimated: bool) -> dict[str, Any]:
    # All the counts: a client merges this into what an earlier turn has said of the same message.
    counts = asdict(usage)
    return {"outcome": outcome, "usage": counts, "usage_is_estimated": usage_is_estimated, "cost_usd": cost_usd}


def _finish(outcome: str, stop_reason: str | None, error: Failure | None, ended: dict[str, Any]) -> list[Chunk]:
    """Each ends with `finish`: without one the workflow transport would come back for ever."""
    step: Chunk = {"type": "finish-step"}
    match outcome:
        case "completed":
            reason = FINISH_REASONS.get(stop_reason or "", "other")
            return [step, {"type": "finish", "finishReason": reason, "messageMetadata": ended}]
        case "cancelled":
            # Not `interrupted`: the workflow transport brings an `ai` of its own, which is older and refuses the word.
            finish = {"type": "finish", "finishReason": "other", "messageMetadata": ended}
            return [step, {"type": "abort", "reason": "cancelled"}, finish]
        case _:
            # `useChat` reads no further than `error`, so what is known is said before it.
            metadata = {"type": "message-metadata", "messageMetadata": ended}
            failed = {"type": "error", "errorText": (error or LOST).message}
            return [step, metadata, failed, {"type": "finish", "finishReason": "error"}]


def _frame(chunks: list[Chunk], seq: int, *, is_end: bool) -> Frame:
    """The last event has the id: an entry was seen when all of it was."""
    lines = [*map(_encode, chunks), *([DONE] if is_end else [])]
    return Frame((*map(sse.Event, lines[:-1]), sse.Event(lines[-1], seq)))


UI = Dialect(
    name="ui",
    media_type=sse.MEDIA_TYPE,
    heartbeat=sse.HEARTBEAT,
    is_self_delimited=False,
    can_reset=True,
    start=lambda key: StreamState(key.turn),
    render=render,
    render_record=render_record,
    is_stateful=True,
    headers={"x-vercel-ai-ui-message-stream": "v1"},
)


def _replay(key: TurnKey) -> StreamState:
    return StreamState(key.turn, is_replay=True)


UI_REPLAY = UI._replace(name="ui-replay", start=_replay)
