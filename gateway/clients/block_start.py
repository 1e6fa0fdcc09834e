"""Splits a whole content block into an empty start and deltas.

The API sends the content of most blocks in deltas. A block may also be whole in its `content_block_start`, for example
an answer after a programmatic tool call. Clients of other protocols receive the same for both, and for a stored block.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tailrace.proto import events, odd_json
from tailrace.proto.fold import without_mark

# The fields of these blocks that each protocol has a form for.
KNOWN_FIELDS = {"text": ("type", "text", "citations"), "thinking": ("type", "thinking", "signature")}


def further_fields(block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the other fields of a text or thinking block, also those from its deltas of unknown types."""
    known = KNOWN_FIELDS.get(str(block.get("type")), tuple(block))
    return {name: value for name, value in block.items() if name not in known and value is not None}


def split_start(block: dict[str, Any]) -> tuple[dict[str, Any], list[events.Delta]]:
    """Returns the start of a text or thinking block without its content, and the content as deltas.

    Blocks of other types are returned unchanged: a tool's input in the start is replaced by deltas, not continued. The
    block may come from a client, so its fields may be any JSON values; content of a wrong type is left out.
    """
    deltas: list[events.Delta] = []
    match block.get("type"):
        case "text":
            if isinstance(text := block.get("text"), str) and text:
                deltas.append(events.TextDelta(text))
            if isinstance(found := block.get("citations"), list):
                deltas += [events.CitationsDelta(one) for one in found if isinstance(one, dict)]
            kept = {name: value for name, value in block.items() if name != "citations" or not value}
            return kept | {"text": ""}, deltas
        case "thinking":
            if isinstance(text := block.get("thinking"), str) and text:
                deltas.append(events.ThinkingDelta(text))
            if isinstance(signature := block.get("signature"), str) and signature:
                deltas.append(events.SignatureDelta(signature))
            return block | {"thinking": "", "signature": ""}, deltas
        case _:
            return block, deltas


def split_block(block: dict[str, Any]) -> tuple[dict[str, Any], list[events.Delta]]:
    """Returns a stored block as its `content_block_start` would have it, and its content as deltas."""
    is_call = events.is_tool_use(str(block.get("type")))
    match block:
        case {"partial_json": str(text)} if is_call:
            # The mark of an input that was cut or is invalid (proto/fold.py).
            start = without_mark(block)
            return (start | {"input": {}}, [events.InputJsonDelta(text)]) if text else (start, [])
        case {"input": given} if is_call:
            return block | {"input": {}}, [events.InputJsonDelta(odd_json.encode(given).decode())]
        case _:
            return split_start(block)


def start_events(start: events.BlockStart) -> list[events.Event]:
    """Returns the events for the start of a block that may be whole already: an empty start, and its content."""
    return _join(start.index, *split_start(start.content_block))


def block_events(index: int, block: dict[str, Any]) -> list[events.Event]:
    """Returns the events of a stored block, with one delta for each kind of its content."""
    return [*_join(index, *split_block(block)), events.BlockStop(index)]


def answer_events(content: Iterable[dict[str, Any]]) -> list[events.Event]:
    """Returns the events of the blocks of a stored answer."""
    return [event for index, block in enumerate(content) for event in block_events(index, block)]


def _join(index: int, start: dict[str, Any], deltas: list[events.Delta]) -> list[events.Event]:
    return [events.BlockStart(index, start), *(events.BlockDelta(index, delta) for delta in deltas)]
