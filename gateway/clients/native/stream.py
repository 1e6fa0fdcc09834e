"""The dialect `tailrace`: JSON events for EventSource and fetch.

They have no `event:` fields, so that `onmessage` gets all.
"""

from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.block_start import further_fields, split_start
from tailrace.gateway.clients.native import event_types as sent
from tailrace.gateway.clients.native.event_types import TurnEvent
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events, odd_json
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import Attempt, End, Event, Progress, Request, StoredEntry
from tailrace.proto.fold import PARTIAL, text_proof
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.proto.usage import NANO_USD_PER_USD

_encode = msgspec.json.Encoder().encode


class _Unknown(msgspec.Struct):
    """The fields of an event that has none of the known types, or a delta of another type."""

    type: str
    index: int = 0
    delta: msgspec.Raw = msgspec.Raw(b"{}")


_unknown = msgspec.json.Decoder(_Unknown)


class TailraceState(NamedTuple):
    """The state of the dialect: it does not change within a stream."""

    key: TurnKey
    is_of_session: bool = False
    """Whether the stream has the turns of a session, so that each event names its turn."""


def render(state: TailraceState, stored: StoredEntry) -> tuple[Frame, TailraceState]:
    shown: list[TurnEvent] = []
    match stored.entry:
        case Event(event=raw, is_hidden=is_hidden):
            shown = _shown(raw, is_hidden=is_hidden)
        case Request(session=session, model=model, queue_position=position):
            shown = [sent.StartEvent(turn=state.key.turn, session=session, model=model, queue_position=position)]
        case Attempt(mode="restart", cause=cause, reason=reason):
            shown = [sent.ResetEvent(cause=cause, reason=reason)]
        case Progress(done=done, failed=failed, of=of, cost_nano_usd=cost):
            shown = [sent.ProgressEvent(done=done, failed=failed, of=of, cost_usd=cost / NANO_USD_PER_USD)]
        case End(successor=successor) as end:
            shown = [_end(end, end.text_chars, end.text_sha256, None if state.is_of_session else successor)]
    if not shown:
        return SILENT, state
    turn = state.key.turn
    # Only the last event of an entry has the id, so that a client resumes after whole entries.
    *others, last = [encode_event(event, turn) for event in shown] if state.is_of_session else map(_encode, shown)
    return Frame((*map(sse.Event, others), sse.Event(last, stored.seq))), state


def encode_event(event: TurnEvent, turn: TurnId | None) -> bytes:
    """Returns the JSON of an event; in the stream of a session with its `turn`, which a start has by itself."""
    encoded = _encode(event)
    return (
        encoded
        if turn is None or isinstance(event, sent.StartEvent)
        else b'{"turn":%b,%b' % (_encode(turn), encoded[1:])
    )


def render_record(record: TurnRecord, turn: TurnId | None = None) -> Frame:
    """Renders `reset`, the answer and the end; with `turn` in the stream of a session.

    Only the end has an `id:`; a request with that cursor is answered 204.
    """
    answer = (event for index, block in enumerate(record.content) for event in _block_events(index, block))
    *others, end = [sent.ResetEvent(), *answer, _end(record, *text_proof(record.text))]
    rendered = tuple(sse.Event(encode_event(event, turn)) for event in others)
    return Frame((*rendered, sse.Event(encode_event(end, turn), record.cursor)))


def _shown(raw: msgspec.Raw, *, is_hidden: bool) -> list[TurnEvent]:
    """Returns the events for one event of the model."""
    event = events.decode(raw)
    match event:
        case events.BlockDelta(index, delta) if not is_hidden:
            # Most events.
            return _delta_events(index, delta)
        case events.MessageStart(events.MessageHead(usage=usage)) if (
            usage.cache_read_input_tokens or usage.cache_creation_input_tokens
        ):
            # Also for a continuation, whose other events are hidden: each model call is paid for.
            read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
            fresh = usage.input_tokens
            return [
                sent.UsageEvent(input_tokens=fresh, cache_creation_input_tokens=written, cache_read_input_tokens=read)
            ]
        case _ if is_hidden:
            wait = events.decode_wait(raw)
            return [] if wait is None else [sent.WaitingEvent(reason=wait.obstacle)]
        case events.BlockStart(index, block):
            return _block_events(index, block)
        case events.UnknownEvent():
            return _unknown_events(raw)
        case _:
            return []


def _block_events(index: int, block: dict[str, Any]) -> list[TurnEvent]:
    """Returns the events for the start of a block, or for a whole block from a record."""
    match block:
        case {"type": "text" | "thinking" as kind}:
            _, deltas = split_start(block)
            further = further_fields(block)
            first = [sent.BlockEvent(index=index, block={"type": kind, **further})] if further else []
            return [*first, *(event for delta in deltas for event in _delta_events(index, delta))]
        case {"type": "redacted_thinking"}:
            return []
        case {"type": "tool_use", "id": tool_id, "name": name}:
            start = sent.ToolUseEvent(index=index, id=tool_id, name=name)
            # `block` has the mark of a cut or invalid input (proto/fold.py), or a whole input.
            given = block.get("input")
            text = block[PARTIAL] if PARTIAL in block else odd_json.encode(given).decode() if given else ""
            return [start, sent.ToolUseEvent(index=index, partial_json=text)] if text else [start]
        case {"type": str()}:
            return [sent.BlockEvent(index=index, block=block)]
        case _:
            return []


def _delta_events(index: int, delta: events.Delta) -> list[TurnEvent]:
    match delta:
        case events.TextDelta(text):
            return [sent.DeltaEvent(text=text, index=index)]
        case events.ThinkingDelta(text):
            return [sent.ThinkingEvent(text=text, index=index)]
        case events.InputJsonDelta(partial_json):
            return [sent.ToolUseEvent(index=index, partial_json=partial_json)]
        case events.CitationsDelta(citation):
            return [sent.CitationEvent(index=index, citation=citation)]
        case _:
            return []


def _unknown_events(raw: msgspec.Raw) -> list[TurnEvent]:
    """Returns the event for what this version does not know: the model's own bytes."""
    # A `data:` line ends at a line break, which JSON may have between tokens, but never inside strings.
    raw = msgspec.Raw(bytes(raw).replace(b"\n", b" ").replace(b"\r", b" "))
    try:
        found = _unknown.decode(raw)
    except DECODE_ERRORS:
        return []
    if found.type == "content_block_delta":
        return [sent.BlockEvent(index=found.index, delta=found.delta)]
    return [sent.UnknownEvent(event=raw)]


def _end(
    ended: End | TurnRecord, text_chars: int, text_sha256: str, successor: TurnId | None = None
) -> sent.DoneEvent | sent.ErrorEvent | sent.SteeredEvent:
    facts: dict[str, Any] = {
        "schema_valid": ended.schema_valid,
        "answered_by": ended.answered_by,
        "usage": ended.usage,
        "usage_is_estimated": ended.usage_is_estimated,
        "cost_usd": ended.cost_usd,
        "text_chars": text_chars,
        "text_sha256": text_sha256,
    }
    match ended.outcome:
        case "completed" | "cancelled" | "failed" as outcome if successor is not None:
            return sent.SteeredEvent(outcome=outcome, stop_reason=ended.stop_reason, turn=successor, **facts)
        case "completed" | "cancelled" as outcome:
            return sent.DoneEvent(outcome=outcome, stop_reason=ended.stop_reason, **facts)
        case _:
            failure = ended.error or LOST_FAILURE
            return sent.ErrorEvent(code=failure.code, message=failure.message, **facts)


TAILRACE = Dialect(
    name="tailrace",
    start=TailraceState,
    render=render,
    render_record=lambda record, _: render_record(record),
    is_self_delimited=True,
    can_reset=True,
    sends_retry=True,
)
OF_SESSION = TAILRACE._replace(
    name="session",
    start=lambda key: TailraceState(key, is_of_session=True),
    render_record=lambda record, _: render_record(record, record.turn),
)
"""`tailrace` for the stream of a session: each event names its turn in the field `turn`."""
