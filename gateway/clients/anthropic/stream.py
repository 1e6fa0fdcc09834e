"""The dialect `anthropic`: Anthropic's own stream, for its SDKs. What is stored is passed on as it came.

`message_delta` and `message_stop` are made from the turn's end, which alone knows the usage of all its calls. The
protocol has no "forget that", so at a restart the connection is broken off: whoever comes back is told the new answer.
An error event would be an end, and Claude Code then asks once more without a stream.
"""

from typing import Any

import msgspec
from msgspec.structs import asdict

from tailrace.gateway.clients.dialect import SILENT, Dialect, Frame
from tailrace.gateway.clients.failure import LOST, type_of
from tailrace.gateway.streaming import sse
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Attempt, End, Event, Failure, Stored
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage

# Nobody's error, but its clients know no other way to be told that there is no whole answer.
CANCELLED = Failure("interrupted", "the turn was cancelled")

PING = {"type": "ping"}

_encode = msgspec.json.Encoder().encode


class _Type(msgspec.Struct):
    type: str = ""


_type = msgspec.json.Decoder(_Type)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def render(key: TurnKey, stored: Stored) -> tuple[Frame, TurnKey]:
    return _frame(key.turn, stored), key


def render_record(record: TurnRecord, _: int) -> Frame:
    head = _message(record) | {"content": [], "stop_reason": None, "stop_sequence": None}
    shown = _named({"type": "message_start", "message": head})
    for index, block in enumerate(record.content):
        shown += tuple(event for each in _block(index, block) for event in _named(each))
    if record.outcome == "completed":
        shown += _completed(record.stop_reason, record.stop_sequence, record.usage, record.envelope, record.cursor)
    else:
        without = CANCELLED if record.outcome == "cancelled" else LOST
        shown += _error(record.error or without, record.cursor)
    return Frame(shown)


def whole(record: TurnRecord) -> bytes:
    """A completed turn as the Message that the API gives to who asks for no stream."""
    return _encode(_message(record))


def message_id(turn: TurnId) -> str:
    """The same in the stream and as one body, whichever call of the model told it: so it leads back to the turn."""
    return f"msg_{turn}"


def _message(record: TurnRecord) -> dict[str, Any]:
    return {
        "id": message_id(record.turn),
        "type": "message",
        "role": "assistant",
        "model": record.model,
        "content": record.content,
        "stop_reason": _known(record.stop_reason),
        "stop_sequence": record.stop_sequence,
        "usage": record.envelope.get("usage", {}) | asdict(record.usage),
        **{name: it for name, it in record.envelope.items() if name not in ("delta", "usage")},
        **record.envelope.get("delta", {}),
    }


def _frame(turn: TurnId, stored: Stored) -> Frame:
    match stored.entry:
        case Event(event=raw, is_hidden=False):
            return _event(turn, bytes(raw), stored.seq)
        case Attempt(mode="restart"):
            # With an id, so that a reader who comes back with it comes back after the break.
            return Frame(_named(PING, stored.seq), is_break=True)
        case End(outcome="completed") as end:
            return Frame(_completed(end.stop_reason, end.stop_sequence, end.usage, end.envelope or {}, stored.seq))
        case End(error=error):
            return Frame(_error(error or CANCELLED, stored.seq))
        case _:
            return SILENT


def _event(turn: TurnId, raw: bytes, seq: int) -> Frame:
    try:
        kind = _type.decode(raw).type
    except DECODE_ERRORS:
        # No event: nothing that a client could read, and no reason to break its stream.
        return SILENT
    if kind == "message_delta":
        return SILENT
    if kind == "message_start":
        raw = _start(turn, raw)
    # A line of data ends there. JSON may hold line breaks between its tokens, its strings never.
    raw = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    return Frame(sse.frame(raw, seq=seq, event=kind.encode("utf-8", "replace")))


def _start(turn: TurnId, raw: bytes) -> bytes:
    """A call's `message_start`, as the turn's."""
    try:
        start = _fields.decode(raw)
        message = _fields.decode(start["message"])
    except (*DECODE_ERRORS, KeyError):
        return raw
    named = message | {"id": msgspec.Raw(_encode(message_id(turn)))}
    return _encode(start | {"message": msgspec.Raw(_encode(named))})


def _completed(
    stop_reason: str | None, stop_sequence: str | None, usage: Usage, envelope: dict[str, Any], seq: int
) -> sse.Events:
    delta = {"stop_reason": _known(stop_reason), "stop_sequence": stop_sequence, **envelope.get("delta", {})}
    # All the counts by name: the SDKs take one that is missing for a protocol error, not for 0.
    counts = envelope.get("usage", {}) | asdict(usage)
    message_delta = {"type": "message_delta", **envelope, "delta": delta, "usage": counts}
    return _named(message_delta) + _named({"type": "message_stop"}, seq)


def _known(stop_reason: str | None) -> str | None:
    """Ours has no name in this protocol; to its clients it is a limit that cut the answer."""
    return "max_tokens" if stop_reason == "max_cost" else stop_reason


def _error(failure: Failure, seq: int) -> sse.Events:
    return _named({"type": "error", "error": {"type": type_of(failure), "message": failure.message}}, seq)


def _block(index: int, block: dict[str, Any]) -> list[dict[str, Any]]:
    delta: dict[str, Any] | None
    match block:
        case {"type": "text", "text": text}:
            opened, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": text}
        case {"type": "thinking", "thinking": thinking}:
            opened = {"type": "thinking", "thinking": "", "signature": block.get("signature", "")}
            delta = {"type": "thinking_delta", "thinking": thinking}
        case {"type": "tool_use", "input": given}:
            opened = block | {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": _encode(given).decode()}
        case _:
            opened, delta = block, None
    deltas = [{"type": "content_block_delta", "index": index, "delta": delta}] if delta else []
    return [
        {"type": "content_block_start", "index": index, "content_block": opened},
        *deltas,
        {"type": "content_block_stop", "index": index},
    ]


def _named(event: dict[str, Any], seq: int | None = None) -> sse.Events:
    return sse.frame(_encode(event), seq=seq, event=str(event["type"]).encode())


ANTHROPIC = Dialect(
    name="anthropic",
    media_type=sse.MEDIA_TYPE,
    heartbeat=sse.encode(_named(PING)),
    is_self_delimited=False,
    can_reset=False,
    start=lambda key: key,
    render=render,
    render_record=render_record,
    render_json=whole,
)
