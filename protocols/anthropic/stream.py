"""The dialect `anthropic`: the stream of Anthropic's Messages API, for its SDKs. Stored events are passed on unchanged.

`message_delta` and `message_stop` are rendered from the turn's end, the only entry that has the usage of all its model
calls. The protocol has no event for "discard the text so far", so the gateway breaks the connection off at a restart,
and a client that requests the stream again gets the new answer. An error event would end the turn for the client, and
Claude Code then repeats the request without streaming.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import to_builtins
from msgspec.structs import asdict

from tailrace.gateway.clients.block_start import split_block
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto import odd_json
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Attempt, End, Event, StoredEntry
from tailrace.proto.fold import without_mark
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.failure import error_type, failure_of
from tailrace.protocols.common.stop_reasons import OWN

PING = {"type": "ping"}

_encode = msgspec.json.Encoder().encode


class _Type(msgspec.Struct):
    type: str = ""


_type = msgspec.json.Decoder(_Type)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def render(key: TurnKey, stored: StoredEntry) -> tuple[Frame, TurnKey]:
    return _render(key.turn, stored), key


def render_record(record: TurnRecord, _: int) -> Frame:
    head = message_of(record) | {"content": [], "stop_reason": None, "stop_sequence": None}
    rendered = _sse({"type": "message_start", "message": head})
    for event in _answer_events(record.content):
        rendered += _sse(event)
    return Frame(rendered + _render_ended(record, record.cursor))


def render_message(record: TurnRecord) -> bytes:
    """Returns a completed turn as the Message that the API returns for a request without streaming."""
    return odd_json.encode(message_of(record))


def message_id(turn: TurnId) -> str:
    """Returns the Message's id. It is the same in the stream and in the JSON body, and contains the turn's id."""
    return f"msg_{turn}"


def message_of(record: TurnRecord) -> dict[str, Any]:
    """Returns the Message of a turn."""
    return {
        "id": message_id(record.turn),
        "type": "message",
        "role": "assistant",
        "model": record.answered_by or record.model,
        "content": [without_mark(block) for block in record.content],
        "stop_reason": _stop_reason(record.stop_reason),
        "stop_sequence": record.stop_sequence,
        "usage": _reported_usage(record),
        **record.envelope.get("message", {}),
        **_message_delta_fields(record.envelope),
        **record.envelope.get("delta", {}),
    }


def _render(turn: TurnId, stored: StoredEntry) -> Frame:
    match stored.entry:
        case Event(event=raw, is_hidden=False, original=original):
            return _render_event(turn, bytes(raw), original, stored.seq)
        case Attempt(mode="restart"):
            # The PING has an id, so that a client that resumes continues after the break.
            return Frame(_sse(PING, stored.seq), is_break=True)
        case End() as end:
            return Frame(_render_ended(end, stored.seq))
        case _:
            return SILENT


def _render_event(turn: TurnId, raw: bytes, original: str | None, seq: int) -> Frame:
    try:
        kind = _type.decode(raw).type
    except DECODE_ERRORS:
        # `raw` is no event: the client could not read it, and the stream can go on without it.
        return SILENT
    if kind == "message_delta":
        return SILENT
    if kind == "message_start":
        raw = _start(turn, raw)
    elif original is not None:
        raw = original.encode()
    # A `data:` line ends at a line break, which JSON may have between tokens, but never inside strings.
    raw = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    return Frame(sse.frame(raw, seq=seq, event=kind.encode("utf-8", "replace")))


def _start(turn: TurnId, raw: bytes) -> bytes:
    """Returns the `message_start` of a model call with the turn's message id."""
    try:
        start = _fields.decode(raw)
        message = _fields.decode(start["message"])
    except (*DECODE_ERRORS, KeyError):
        return raw
    named = message | {"id": msgspec.Raw(_encode(message_id(turn)))}
    return _encode(start | {"message": msgspec.Raw(_encode(named))})


def _render_ended(ended: End | TurnRecord, seq: int) -> sse.Events:
    if ended.outcome != "completed":
        # A cancelled turn is no error, but the protocol has no other way to say that the answer is not complete.
        failure = failure_of(ended)
        details = {} if failure.details is None else {"details": failure.details}
        error = {"type": error_type(failure), "message": failure.message, **details}
        return _sse({"type": "error", "error": error}, seq)
    envelope = ended.envelope or {}
    stop = {"stop_reason": _stop_reason(ended.stop_reason), "stop_sequence": ended.stop_sequence}
    delta = {**stop, **envelope.get("delta", {})}
    # Keep the field order of older versions.
    fields = {name: value for name, value in envelope.items() if name != "message"}
    message_delta = {"type": "message_delta", **fields, "delta": delta, "usage": _reported_usage(ended)}
    return _sse(message_delta) + _sse({"type": "message_stop"}, seq)


def _message_delta_fields(envelope: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of the `message_delta` beside `delta` and `usage`."""
    return {name: value for name, value in envelope.items() if name not in ("delta", "usage", "message")}


def _reported_usage(ended: End | TurnRecord) -> dict[str, Any]:
    """Returns the usage object as the model has reported it. Tailrace's own fields have what is billed (R23).

    The object has every count, also those that are 0: the SDKs treat a missing count as a protocol error.
    """
    reported: dict[str, Any] = (ended.envelope or {}).get("usage", {})
    return reported | {name: reported.get(name, count) for name, count in asdict(ended.usage).items()}


def _stop_reason(stop_reason: str | None) -> str | None:
    """Maps Tailrace's own reasons to `max_tokens`, the protocol's word for an answer cut by a limit."""
    return "max_tokens" if stop_reason in OWN else stop_reason


def _answer_events(content: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the events of a stored answer. The start of a block has the fields that no delta of this type has."""
    for index, block in enumerate(content):
        start, deltas = split_block(block)
        shown = list(map(to_builtins, deltas))
        if block.get("type") == "compaction":
            summary = {name: block.get(name) for name in ("content", "encrypted_content")}
            start = block | {name: None for name in summary if name in block}
            shown = [{"type": "compaction_delta", **summary}] if any(summary.values()) else []
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in shown)
        yield {"type": "content_block_stop", "index": index}


def _sse(event: dict[str, Any], seq: int | None = None) -> sse.Events:
    return sse.frame(_encode(event), seq=seq, event=str(event["type"]).encode())


ANTHROPIC = Dialect(
    name="anthropic",
    start=lambda key: key,
    render=render,
    render_record=render_record,
    render_json=render_message,
    heartbeat=sse.encode(_sse(PING)),
)
