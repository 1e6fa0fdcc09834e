"""The dialect `tailrace`: JSON events for EventSource and fetch, without `event:` fields, so that `onmessage` gets all.

{"type":"start","turn":…,"session":…,"model":…,…}     the request is in the log; `queue_position` if it waits
{"type":"usage","cache_read_input_tokens":…,…}         use of the prompt cache, if the model call used it
{"type":"delta","text":…}                              a delta of the answer's text, of block `index` if that is not 0
{"type":"thinking","text":…}                           a delta of the model's thinking, with `index` likewise
{"type":"citation","index":…,"citation":…}             a citation of a text block, in Anthropic's format
{"type":"tool_use","index":…,"id":…,"name":…}          a tool call begins
{"type":"tool_use","index":…,"partial_json":…}         a delta of the input of the tool call or `block` with this index
{"type":"block","index":…,"block":…}                   a block of another type begins, in Anthropic's format; of a text
                                                       or thinking, only the fields that have no other event
{"type":"block","index":…,"delta":…}                   a delta of a type that this version does not know
{"type":"event","event":…}                             an event of a type that this version does not know, unchanged
{"type":"waiting","reason":"no such host"}             the model cannot be connected to, and the turn waits for it
{"type":"progress","done":…,"failed":…,"of":…,…}       the progress of a batch, with its cost
{"type":"reset"}                                       discard the text so far: the answer starts again; perhaps with
                                                       `cause`, the code of the error, and `reason`, why the answer was
                                                       not continued: `on_interrupt`, `schema` or the type of a block
{"type":"done","outcome":"completed"|"cancelled",…}    the end, with stop_reason, usage, cost, text length and hash;
                                                       with `schema_valid` for a schema, and with `answered_by` if
                                                       another model answered
{"type":"error","code":…,"message":…}                  the end of a failed turn, with the same fields; the text remains
{"type":"steered","turn":…,…}                          instead of `done`: a message was put into the answer, and the
                                                       events of its turn follow, without `start`; the same fields
"""

from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.block_start import further_fields, split_start
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import events, odd_json
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import Attempt, End, Event, Progress, Request, StoredEntry
from tailrace.proto.fold import PARTIAL, text_proof
from tailrace.proto.ids import TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.proto.usage import NANO_USD_PER_USD

PROMPT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

RESET: dict[str, Any] = {"type": "reset"}

_encode = msgspec.json.Encoder().encode


class _Unknown(msgspec.Struct):
    """The fields of an event that has none of the known types, or a delta of another type."""

    type: str
    index: msgspec.Raw = msgspec.Raw(b"0")
    delta: msgspec.Raw = msgspec.Raw(b"{}")


_unknown = msgspec.json.Decoder(_Unknown)


class TailraceState(NamedTuple):
    """The state of the dialect: it does not change within a stream."""

    key: TurnKey
    is_of_session: bool = False
    """Whether the stream has the turns of a session, so that each event names its turn."""


def render(state: TailraceState, stored: StoredEntry) -> tuple[Frame, TailraceState]:
    shown: list[dict[str, Any]] = []
    match stored.entry:
        case Event(event=raw, is_hidden=is_hidden):
            shown = _shown(raw, is_hidden=is_hidden)
        case Request() as request:
            start = {"type": "start", "turn": state.key.turn, "session": request.session, "model": request.model}
            shown = [start if request.queue_position is None else start | {"queue_position": request.queue_position}]
        case Attempt(mode="restart", cause=cause, reason=reason):
            why = {"cause": cause, "reason": reason}
            shown = [RESET | {name: text for name, text in why.items() if text is not None}]
        case Progress(done=done, failed=failed, of=of, cost_nano_usd=cost_nano_usd):
            cost_usd = cost_nano_usd / NANO_USD_PER_USD
            shown = [{"type": "progress", "done": done, "failed": failed, "of": of, "cost_usd": cost_usd}]
        case End() as end:
            shown = [_end(end, end.text_chars, end.text_sha256)]
            if end.successor is not None and not state.is_of_session:
                shown = [shown[0] | {"type": "steered", "turn": end.successor}]
    if not shown:
        return SILENT, state
    if state.is_of_session and shown[0]["type"] != "start":
        shown = [{"turn": state.key.turn} | event for event in shown]
    # Only the last event of an entry has the id, so that a client resumes after whole entries.
    *others, last = map(_encode, shown)
    return Frame((*map(sse.Event, others), sse.Event(last, stored.seq))), state


def render_record(record: TurnRecord, names: dict[str, Any]) -> Frame:
    """Renders `reset`, the answer and the end, with `names` as the first fields of each event.

    Only the end has an `id:`; a request with that cursor is answered 204.
    """
    answer = (event for index, block in enumerate(record.content) for event in _block_events(index, block))
    *others, end = [RESET, *answer, _end(record, *text_proof(record.text))]
    rendered = tuple(sse.Event(_encode(names | event)) for event in others)
    return Frame((*rendered, sse.Event(_encode(names | end), record.cursor)))


def _shown(raw: msgspec.Raw, *, is_hidden: bool) -> list[dict[str, Any]]:
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
            return [{"type": "usage"} | {name: getattr(usage, name) for name in PROMPT_COUNTS}]
        case _ if is_hidden:
            wait = events.decode_wait(raw)
            return [] if wait is None else [{"type": "waiting", "reason": wait.obstacle}]
        case events.BlockStart(index, block):
            return _block_events(index, block)
        case events.UnknownEvent():
            return _unknown_events(raw)
        case _:
            return []


def _block_events(index: int, block: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the events for the start of a block, or for a whole block from a record."""
    match block:
        case {"type": "text" | "thinking" as kind}:
            _, deltas = split_start(block)
            further = further_fields(block)
            first = [{"type": "block", "index": index, "block": {"type": kind, **further}}] if further else []
            return [*first, *(event for delta in deltas for event in _delta_events(index, delta))]
        case {"type": "redacted_thinking"}:
            return []
        case {"type": "tool_use", "id": tool_id, "name": name}:
            start = {"type": "tool_use", "index": index, "id": tool_id, "name": name}
            # `block` has the mark of a cut or invalid input (proto/fold.py), or a whole input.
            given = block.get("input")
            text = block[PARTIAL] if PARTIAL in block else odd_json.encode(given).decode() if given else ""
            return [start, {"type": "tool_use", "index": index, "partial_json": text}] if text else [start]
        case {"type": str()}:
            return [{"type": "block", "index": index, "block": block}]
        case _:
            return []


def _delta_events(index: int, delta: events.Delta) -> list[dict[str, Any]]:
    # Most answers have one block: its index is left out.
    at = {"index": index} if index else {}
    match delta:
        case events.TextDelta(text):
            return [{"type": "delta", "text": text, **at}]
        case events.ThinkingDelta(text):
            return [{"type": "thinking", "text": text, **at}]
        case events.InputJsonDelta(partial_json):
            return [{"type": "tool_use", "index": index, "partial_json": partial_json}]
        case events.CitationsDelta(citation):
            return [{"type": "citation", "index": index, "citation": citation}]
        case _:
            return []


def _unknown_events(raw: msgspec.Raw) -> list[dict[str, Any]]:
    """Returns the event for what this version does not know: the model's own bytes."""
    # A `data:` line ends at a line break, which JSON may have between tokens, but never inside strings.
    raw = msgspec.Raw(bytes(raw).replace(b"\n", b" ").replace(b"\r", b" "))
    try:
        found = _unknown.decode(raw)
    except DECODE_ERRORS:
        return []
    if found.type == "content_block_delta":
        return [{"type": "block", "index": found.index, "delta": found.delta}]
    return [{"type": "event", "event": raw}]


def _end(ended: End | TurnRecord, text_chars: int, text_sha256: str) -> dict[str, Any]:
    head: dict[str, Any]
    if ended.outcome == "failed":
        failure = ended.error or LOST_FAILURE
        head = {"type": "error", "code": failure.code, "message": failure.message}
    else:
        head = {"type": "done", "outcome": ended.outcome, "stop_reason": ended.stop_reason}
    return {
        **head,
        **({} if ended.schema_valid is None else {"schema_valid": ended.schema_valid}),
        **({} if ended.answered_by is None else {"answered_by": ended.answered_by}),
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
    render_record=lambda record, _: render_record(record, {}),
    is_self_delimited=True,
    can_reset=True,
    sends_retry=True,
)
OF_SESSION = TAILRACE._replace(
    name="session",
    start=lambda key: TailraceState(key, is_of_session=True),
    render_record=lambda record, _: render_record(record, {"turn": record.turn}),
)
"""`tailrace` for the stream of a session: each event names its turn in the field `turn`."""
