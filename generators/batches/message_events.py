"""A whole message becomes the events that it would have been streamed in: the same for whoever makes them. Pure.

So what was answered without a stream has an ordinary turn's log. Whoever goes on writing it after another makes the
same bytes, and finds what stands already (PROTOCOL R13).
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from tailrace.proto.errors import BackendError

# In one entry, of which a server takes a megabyte.
PIECE_CHARS = 65_536
# What `message_start` says; all else a message says of itself comes with its `message_delta`.
HEAD = frozenset({"id", "type", "role", "model", "content", "usage", "stop_reason", "stop_sequence"})

Message = dict[str, Any]


def events_of(message: Message) -> list[msgspec.Raw]:
    """Raises BackendError for what is no whole message."""
    match message:
        case {"content": list(blocks), "usage": dict(usage), "stop_reason": str()}:
            told = [{"type": "message_start", "message": head(message)}]
            for index, block in enumerate(blocks):
                told += [change | {"index": index} for change in block_events(block)]
            told.append(last(message, usage))
            return [msgspec.Raw(msgspec.json.encode(event)) for event in told]
        case _:
            raise BackendError("backend_broken", "the model's answer is no whole message")


def head(message: Message) -> Message:
    """The message before anything is said in it."""
    given = {name: value for name, value in message.items() if name in HEAD}
    return given | {"content": [], "stop_reason": None, "stop_sequence": None}


def last(message: Message, usage: dict[str, Any]) -> dict[str, Any]:
    """The event that says why it ended, and what was used."""
    besides = {name: value for name, value in message.items() if name not in HEAD}
    managed = {name: besides.pop(name) for name in ("context_management",) if name in besides}
    stop = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    return {"type": "message_delta", "delta": stop | besides, "usage": usage, **managed}


def block_events(block: Any) -> Iterator[dict[str, Any]]:
    """Start, deltas and stop of one content block, without its index."""
    deltas: list[dict[str, Any]]
    match block:
        case {"type": "text", "text": str(text), **rest}:
            cited: list[Any] = rest.get("citations") or []  # type: ignore[assignment]
            start = block | {"text": ""} | ({"citations": []} if cited else {})
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(text)]
            deltas += [{"type": "citations_delta", "citation": citation} for citation in cited]
        case {"type": "thinking", "thinking": str(text), **rest}:
            start = block | {"thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(text)]
            deltas.append({"type": "signature_delta", "signature": str(rest.get("signature", ""))})
        case {"type": "tool_use" | "server_tool_use", "input": given}:
            start = block | {"input": {}}
            told = msgspec.json.encode(given).decode()
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces(told)]
        case {"type": str()}:
            # Whole as it begins: hidden thoughts, a server tool's results, and what is newer than we are.
            start, deltas = block, []
        case _:
            raise BackendError("backend_broken", "the model's answer has a block of no type")
    yield {"type": "content_block_start", "content_block": start}
    yield from ({"type": "content_block_delta", "delta": delta} for delta in deltas)
    yield {"type": "content_block_stop"}


def pieces(text: str) -> list[str]:
    return [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
