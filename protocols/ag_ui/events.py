"""The events of AG-UI as server-sent events, and those that have no place in a state.

Source: `@ag-ui/core` 1.0.0. Its schemas do not accept null, so absent fields are left out.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tailrace.gateway.http import sse
from tailrace.proto.ids import TurnId

Json = dict[str, Any]

# HttpAgent fails at an event of more than 10 Mi characters.
PIECE_CHARS = 1024 * 1024
EVENT_BYTES_MAX = 8 * 1024 * 1024
TOO_LARGE = "too large for an event of AG-UI: GET /v1/turns/{turn} has it"

_encode = msgspec.json.Encoder().encode


def deltas(kind: str, name: str, text: str) -> list[Json]:
    """Returns the events of a delta: several for a long text, none for an empty one, which older clients refuse."""
    field = "toolCallId" if kind == "TOOL_CALL_ARGS" else "messageId"
    pieces = (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))
    return [{"type": kind, field: name, "delta": piece} for piece in pieces]


def tool_result(name: str, call: str, content: str) -> Json:
    """Returns the event of a tool's result, which becomes a message of its own."""
    message = f"result_{name}_{call}"
    return {"type": "TOOL_CALL_RESULT", "messageId": message, "toolCallId": call, "content": content, "role": "tool"}


def custom(name: str, value: object) -> Json:
    """Returns an event for what AG-UI has no event for."""
    return {"type": "CUSTOM", "name": f"tailrace.{name}", "value": value}


def encode_events(shown: Sequence[Json], seq: int, turn: TurnId, first: int = 0) -> sse.Events:
    """Returns the server-sent events of an entry. Each has an id, from `first` on: TanStack AI drops a repeated one.

    The last one has the entry's own id, so that a client that has all of them resumes after the entry.
    """
    last = [sse.Event(_fit(event, turn), leading_id=b"%d" % seq) for event in shown[-1:]]
    return (*encode_part(shown[:-1], seq, turn, first), *last)


def encode_part(shown: Iterable[Json], seq: int, turn: TurnId, first: int) -> sse.Events:
    """Returns the server-sent events of an entry before its last one, with ids from `first` on."""
    return tuple(sse.Event(_fit(event, turn), leading_id=b"%d-%d" % (seq, at)) for at, event in enumerate(shown, first))


def _fit(event: Json, turn: TurnId) -> bytes:
    """Returns an event that clients can read: a note replaces what is too large and cannot be sent in pieces."""
    line = _encode(event)
    if len(line) <= EVENT_BYTES_MAX:
        return line
    note = TOO_LARGE.format(turn=turn)
    match event["type"]:
        case "TOOL_CALL_RESULT":
            return _encode(event | {"content": note})
        case "RUN_STARTED":
            return _encode({name: value for name, value in event.items() if name != "input"})
        case kind:
            return _encode(custom("too_large", {"type": kind, "message": note}))
