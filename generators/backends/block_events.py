"""The events that a stream of one complete content block would have. Deterministic and pure."""

from collections.abc import Iterator
from typing import Any

from tailrace.proto import odd_json
from tailrace.proto.errors import BackendError
from tailrace.proto.events import is_tool_use

# The text in one entry; NATS accepts one megabyte.
PIECE_CHARS = 65_536


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
