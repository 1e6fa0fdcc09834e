"""The dialect `tailrace`: JSON events for EventSource and fetch, without `event:` fields, so that `onmessage` gets all.

{"type":"start","turn":…,"session":…,"model":…,…}     the request is in the log; `queue_position` if it waits
{"type":"usage","cache_read_input_tokens":…,…}         use of the prompt cache, if the model call used it
{"type":"delta","text":…}                              a delta of the answer's text
{"type":"thinking","text":…}                           a delta of the model's thinking
{"type":"tool_use","index":…,"id":…,"name":…}          a tool call begins
{"type":"tool_use","index":…,"partial_json":…}         a delta of its input
{"type":"progress","done":…,"failed":…,"of":…,…}       the progress of a batch, with its cost
{"type":"reset"}                                       discard the text so far: the answer starts again
{"type":"done","outcome":"completed"|"cancelled",…}    the end, with stop_reason, usage, cost, text length and hash
{"type":"error","code":…,"message":…}                  the end of a failed turn, with the same fields
"""

from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.failure import LOST
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, Progress, Request, StoredEntry
from tailrace.proto.fold import text_proof
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import NANO_USD_PER_USD

PROMPT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

RESET: dict[str, Any] = {"type": "reset"}

_encode = msgspec.json.Encoder().encode


class TailraceState(NamedTuple):
    """The state of the dialect: it does not change within a stream."""

    key: TurnKey
    is_of_session: bool = False
    """Whether the stream has the turns of a session, so that each event names its turn."""


def render(state: TailraceState, stored: StoredEntry) -> tuple[Frame, TailraceState]:
    event: dict[str, Any] | None = None
    match stored.entry:
        case Event(event=raw, is_hidden=is_hidden):
            event = _delta_of(events.decode(raw), is_hidden=is_hidden)
        case Request() as request:
            event = {"type": "start", "turn": state.key.turn, "session": request.session, "model": request.model}
            if request.queue_position is not None:
                event["queue_position"] = request.queue_position
        case Attempt(mode="restart"):
            event = RESET
        case Progress(done=done, failed=failed, of=of, cost_nano_usd=cost_nano_usd):
            cost_usd = cost_nano_usd / NANO_USD_PER_USD
            event = {"type": "progress", "done": done, "failed": failed, "of": of, "cost_usd": cost_usd}
        case End() as end:
            event = _end(end, end.text_chars, end.text_sha256)
    if event is None:
        return SILENT, state
    if state.is_of_session and event["type"] != "start":
        event = {"turn": state.key.turn} | event
    return Frame((sse.Event(_encode(event), stored.seq),)), state


def render_record(record: TurnRecord, _: int) -> Frame:
    """Renders `reset`, the text and the end. Only the end has an `id:`; a request with that cursor is answered 204."""
    return _render_record(record, {})


def _render_record(record: TurnRecord, names: dict[str, Any]) -> Frame:
    """See `render_record`; `names` are the first fields of each event."""
    end = _end(record, *text_proof(record.text))
    text = sse.frame(_encode(names | {"type": "delta", "text": record.text})) if record.text else ()
    return Frame(sse.frame(_encode(names | RESET)) + text + sse.frame(_encode(names | end), seq=record.cursor))


def _delta_of(event: events.Event | events.UnknownEvent, *, is_hidden: bool) -> dict[str, Any] | None:
    match event:
        case events.MessageStart(events.MessageHead(usage=usage)) if (
            usage.cache_read_input_tokens or usage.cache_creation_input_tokens
        ):
            # For each model call, also for a continuation, whose other events are hidden: it is paid for.
            return {"type": "usage"} | {name: getattr(usage, name) for name in PROMPT_COUNTS}
        case _ if is_hidden:
            return None
        case events.BlockDelta(_, events.TextDelta(text)):
            return {"type": "delta", "text": text}
        case events.BlockDelta(_, events.ThinkingDelta(text)):
            return {"type": "thinking", "text": text}
        case events.BlockDelta(index, events.InputJsonDelta(partial_json)):
            return {"type": "tool_use", "index": index, "partial_json": partial_json}
        case events.BlockStart(_, {"type": "text", "text": str(text)}) if text:
            return {"type": "delta", "text": text}
        case events.BlockStart(index, {"type": "tool_use", "id": tool_id, "name": name}):
            return {"type": "tool_use", "index": index, "id": tool_id, "name": name}
        case _:
            return None


def _end(ended: End | TurnRecord, text_chars: int, text_sha256: str) -> dict[str, Any]:
    head: dict[str, Any]
    if ended.outcome == "failed":
        failure = ended.error or LOST
        head = {"type": "error", "code": failure.code, "message": failure.message}
    else:
        head = {"type": "done", "outcome": ended.outcome, "stop_reason": ended.stop_reason}
    return {
        **head,
        **({} if ended.schema_valid is None else {"schema_valid": ended.schema_valid}),
        "usage": ended.usage,
        "usage_is_estimated": ended.usage_is_estimated,
        "cost_usd": ended.cost_usd,
        "text_chars": text_chars,
        "text_sha256": text_sha256,
    }


TAILRACE = Dialect(
    name="tailrace",
    start=TailraceState,
    render=render,
    render_record=render_record,
    is_self_delimited=True,
    can_reset=True,
    sends_retry=True,
)
OF_SESSION = TAILRACE._replace(
    name="session",
    start=lambda key: TailraceState(key, is_of_session=True),
    render_record=lambda record, _: _render_record(record, {"turn": record.turn}),
)
"""The same for the stream of a session: each event has its turn in the field `turn`."""


def reset_of(turn: TurnId) -> sse.Events:
    """Returns the event that makes the reader of a session discard the text of `turn`."""
    return sse.frame(_encode({"turn": turn} | RESET))
