"""The dialect `openai-responses`: the events of OpenAI's Responses API, numbered from 0 for the whole turn.

A number is an event's for ever: a reader that says how many it has seen goes on after those. Each block of the answer
is an output item. After a restart the numbers go on, and a new `response.created` begins the answer anew: the protocol
has no "forget that", so who saw the old one is told by an `error`, and broken off.
"""

from collections.abc import Iterable
from datetime import datetime
from itertools import accumulate, count
from typing import Any

import msgspec
from msgspec.structs import replace

from tailrace.gateway.clients.dialect import SILENT, Dialect, Frame
from tailrace.gateway.clients.failure import LOST
from tailrace.gateway.clients.openai.responses_object import (
    Head,
    Item,
    head_of,
    head_of_record,
    response,
    response_of,
    status_of,
)
from tailrace.gateway.clients.openai.responses_output_item import Events, Open, begun, closed, said
from tailrace.gateway.streaming import sse
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, Failure, Request, Stored
from tailrace.proto.fold import Block, Turn
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage

BEGUN_ANEW = "the answer begins anew: ask for it again from its beginning, without starting_after"
# What a response's last event is called; one that was cancelled has no name of its own.
ENDS = {"completed": "response.completed", "failed": "response.failed"}
INCOMPLETE = "response.incomplete"

_encode = msgspec.json.Encoder().encode


class Telling(msgspec.Struct, frozen=True):
    """What a reader of all events has been told since the last restart; `number` is the next event's."""

    head: Head
    number: int = 0
    is_created: bool = False
    is_in_progress: bool = False
    items: tuple[Item, ...] = ()
    open: Open | None = None


def start(key: TurnKey) -> Telling:
    return Telling(Head(key.turn))


def render(telling: Telling, stored: Stored) -> tuple[Frame, Telling]:
    match stored.entry:
        case Request() as request:
            return _framed(*_queued(replace(telling, head=head_of(telling.head.turn, request, stored.at))))
        case Attempt(mode="restart"):
            error = {"type": "error", "code": "server_error", "message": BEGUN_ANEW, "param": None}
            frame, anew = _framed(Telling(telling.head, telling.number), [error])
            return frame._replace(is_break=True), anew
        case Attempt():
            return _framed(*_opened(telling))
        case Event(event=raw, is_hidden=False):
            return _framed(*_told(telling, events.decode(raw)))
        case End(outcome=outcome) as end:
            return _framed(*_ended(telling, outcome, end.stop_reason, end.usage, end.error, stored.at))
        case _:
            return SILENT, telling


def render_record(record: TurnRecord, seen: int) -> Frame:
    """All of it; for who has seen some of it, what is done. Its parts have other numbers than they had in the log.

    A delta here is many of those, so the number after it is as much higher as it has characters. It is then not below
    what it was, and a reader that drops what it has seen by its number does not drop the end.
    """
    telling, told = _retold(Telling(head_of_record(record)), map(_block, record.content))
    outcome = "failed" if record.outcome == "running" else record.outcome
    _, ending = _ended(telling, outcome, record.stop_reason, record.usage, record.error, record.ended_at)
    told += ending
    if seen:
        told = [event for event in told if event["type"].endswith(".done")] + told[-1:]
        return Frame(_numbered(told, count(seen)))
    return Frame(_numbered(told, accumulate((max(1, len(event.get("delta", ""))) for event in told), initial=0)))


def snapshot(key: TurnKey, turn: Turn, number: int) -> sse.Events:
    """What `turn` has said, in the fewest events, the last of them just before `number`: there the stream goes on.

    They are never more than there were, so that the first has a number, too.
    """
    telling = start(key)
    if turn.request is not None and turn.asked_at is not None:
        telling = replace(telling, head=head_of(key.turn, turn.request, turn.asked_at))
    if turn.end is None and turn.message is None and turn.mode == "restart":
        # Nothing is said again until the new answer begins, and that is still to come.
        return ()
    telling, told = _retold(telling, turn.blocks) if turn.attempt else _queued(telling)
    if turn.end is not None:
        end = turn.end
        telling, ending = _ended(telling, end.outcome, end.stop_reason, end.usage, end.error, turn.ended_at)
        told += ending
    return _numbered(told, count(number - len(told)))


def _told(telling: Telling, event: events.Event | events.UnknownEvent) -> tuple[Telling, Events]:
    """What `event` says, after what has to be said before it."""
    if isinstance(event, events.UnknownEvent | events.MessageDelta):
        return telling, []
    telling, told = _opened(telling)
    match event:
        case events.BlockStart(index, block):
            telling, closing = _closed(telling, "completed")
            opened, beginning = begun(telling.head.turn, index, len(telling.items), block)
            return replace(telling, open=opened), told + closing + beginning
        case events.BlockDelta(index, delta) if telling.open is not None and telling.open.block == index:
            opened, saying = said(telling.open, delta)
            return replace(telling, open=opened), told + saying
        case events.BlockStop(index) if telling.open is not None and telling.open.block == index:
            telling, closing = _closed(telling, "completed")
            return telling, told + closing
        case _:
            return telling, told


def _retold(telling: Telling, blocks: Iterable[Block]) -> tuple[Telling, Events]:
    """A whole answer, or what there is of it, as if each block had come in one piece."""
    telling, told = _opened(telling)
    for index, block in enumerate(blocks):
        for event in _events_of(index, block):
            telling, more = _told(telling, event)
            told += more
    return telling, told


def _events_of(index: int, block: Block) -> list[events.Event]:
    delta: events.Delta | None = None
    begins = block.start
    match block.type:
        case "text":
            begins, delta = block.start | {"text": ""}, events.TextDelta(block.text)
        case "thinking":
            delta = events.ThinkingDelta(block.text)
        case "tool_use":
            delta = events.InputJsonDelta(block.text)
    deltas: list[events.Event] = [] if delta is None else [events.BlockDelta(index, delta)]
    if block.signature:
        deltas.append(events.BlockDelta(index, events.SignatureDelta(block.signature)))
    deltas += [events.BlockDelta(index, events.CitationsDelta(citation)) for citation in block.citations]
    return [events.BlockStart(index, begins), *deltas, *([events.BlockStop(index)] if block.is_closed else [])]


def _block(content: dict[str, Any]) -> Block:
    """The block that has this content, whole."""
    kind = str(content.get("type"))
    match content:
        case {"type": "text", "text": str(text)}:
            cited = content.get("citations")
            citations = tuple(each for each in cited if isinstance(each, dict)) if isinstance(cited, list) else ()
            return Block(kind, {"type": "text"}, text, citations=citations, is_closed=True)
        case {"type": "thinking", "thinking": str(thought)}:
            return Block(kind, {"type": "thinking"}, thought, str(content.get("signature", "")), is_closed=True)
        case {"type": "tool_use", "input": given}:
            return Block(kind, content | {"input": {}}, _encode(given).decode(), is_closed=True)
        case _:
            return Block(kind, content, is_closed=True)


def _queued(telling: Telling) -> tuple[Telling, Events]:
    shown = response(telling.head, "queued", [])
    return replace(telling, is_created=True), [_lifecycle("response.created", shown)]


def _opened(telling: Telling) -> tuple[Telling, Events]:
    """Before anything is said: the response is there, and in progress."""
    if telling.is_in_progress:
        return telling, []
    shown = response(telling.head, "in_progress", [])
    created = [] if telling.is_created else [_lifecycle("response.created", shown)]
    opened = replace(telling, is_created=True, is_in_progress=True)
    return opened, [*created, _lifecycle("response.in_progress", shown)]


def _closed(telling: Telling, status: str) -> tuple[Telling, Events]:
    if telling.open is None:
        return telling, []
    item, closing = closed(telling.open, status)
    items = telling.items if item is None else (*telling.items, item)
    return replace(telling, open=None, items=items), closing


def _ended(
    telling: Telling,
    outcome: str,
    stop_reason: str | None,
    usage: Usage,
    failure: Failure | None,
    ended_at: datetime | None,
) -> tuple[Telling, Events]:
    """The last events: what is still open is closed, and the whole response follows."""
    status = status_of(outcome, stop_reason)
    telling, opening = (telling, []) if telling.is_created else _queued(telling)
    telling, closing = _closed(telling, "completed" if outcome == "completed" else "incomplete")
    shown = response(
        telling.head,
        status,
        list(telling.items),
        usage=usage,
        stop_reason=stop_reason,
        failure=failure or (LOST if outcome == "failed" else None),
        ended_at=ended_at,
    )
    return telling, [*opening, *closing, _lifecycle(ENDS.get(status, INCOMPLETE), shown)]


def _lifecycle(kind: str, shown: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "response": shown}


def _framed(telling: Telling, told: Events) -> tuple[Frame, Telling]:
    frame = Frame(_numbered(told, count(telling.number))) if told else SILENT
    return frame, replace(telling, number=telling.number + len(told))


def _numbered(told: Events, numbers: Iterable[int]) -> sse.Events:
    return tuple(
        sse.Event(_encode({**event, "sequence_number": number}), name=event["type"].encode())
        for event, number in zip(told, numbers, strict=False)
    )


OPENAI_RESPONSES = Dialect(
    name="openai-responses",
    media_type=sse.MEDIA_TYPE,
    heartbeat=sse.HEARTBEAT,
    is_self_delimited=False,
    can_reset=False,
    start=start,
    render=render,
    render_record=render_record,
    is_stateful=True,
    render_json=lambda record: _encode(response_of(record)),
)
