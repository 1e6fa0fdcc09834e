"""Converts a complete message into the events that a stream of it would have. Deterministic and pure.

So an answer without a stream gets an ordinary log. A generator that takes over makes the same bytes and finds the
stored entries (PROTOCOL R13).
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from tailrace.proto import odd_json
from tailrace.proto.errors import BackendError
from tailrace.proto.events import is_tool_use

# In one entry; NATS accepts one megabyte.
PIECE_CHARS = 65_536
# The fields of `message_start`; all other fields come with `message_delta`.
HEAD = frozenset({"id", "type", "role", "model", "content", "usage", "stop_reason", "stop_sequence"})

Message = dict[str, Any]


def to_events(message: Message) -> list[msgspec.Raw]:
    """Returns the events of `message`. Raises BackendError if it is not complete."""
    match message:
        case {"content": list(blocks), "usage": dict(usage), "stop_reason": str()}:
            events = [{"type": "message_start", "message": head(message)}]
            for index, block in enumerate(blocks):
                events += [change | {"index": index} for change in block_events(block)]
            events.append(stop_event(message, usage))
            return [msgspec.Raw(msgspec.json.encode(event)) for event in events]
        case _:
            raise BackendError("backend_broken", "the model's answer is not a complete message")


def head(message: Message) -> Message:
    """Returns the message without its content."""
    given = {name: value for name, value in message.items() if name in HEAD}
    return given | {"content": [], "stop_reason": None, "stop_sequence": None}


def stop_event(message: Message, usage: dict[str, Any]) -> dict[str, Any]:
    """Returns the event with the stop reason and the usage."""
    besides = {name: value for name, value in message.items() if name not in HEAD}
    managed = {name: besides.pop(name) for name in ("context_management",) if name in besides}
    stop = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    return {"type": "message_delta", "delta": stop | besides, "usage": usage, **managed}


def block_events(block: Any) -> Iterator[dict[str, Any]]:
    """Yields start, deltas and stop of one content block, without its index."""
    deltas: list[dict[str, Any]]
    match block:
        case {"type": "text", "text": str(text), **rest}:
            cited: list[Any] = rest.get("citations") or []  # type: ignore[assignment]
            start = block | {"text": ""} | ({"citations": []} if cited else {})
            deltas = [{"type": "text_delta", "text": piece} for piece in split_text(text)]
            deltas += [{"type": "citations_delta", "citation": citation} for citation in cited]
        case {"type": "thinking", "thinking": str(text), **rest}:
            start = block | {"thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in split_text(text)]
            deltas.append({"type": "signature_delta", "signature": str(rest.get("signature", ""))})
        case {"type": str(kind), "input": given} if is_tool_use(kind):
            start = block | {"input": {}}
            arguments = odd_json.encode(given).decode()
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in split_text(arguments)]
        case {"type": str(kind)} if kind in ("text", "thinking") or is_tool_use(kind):
            raise BackendError("backend_unreadable", f"the model's answer has a {kind} block that cannot be read")
        case {"type": str()}:
            # Complete at its start: redacted thinking, results of server tools, and unknown types.
            start, deltas = block, []
        case _:
            raise BackendError("backend_broken", "the model's answer has a block without a type")
    yield {"type": "content_block_start", "content_block": start}
    yield from ({"type": "content_block_delta", "delta": delta} for delta in deltas)
    yield {"type": "content_block_stop"}


def split_text(text: str) -> list[str]:
    """Returns `text` in parts of PIECE_CHARS characters, so that no delta is too long for an entry."""
    return [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
