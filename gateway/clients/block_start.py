"""Splits a content block that is already whole at its start into an empty start and deltas.

The API sends the content of most blocks in deltas. A block may also be whole in its `content_block_start`, for example
an answer after a programmatic tool call. Clients of other protocols receive the same for both.
"""

from collections.abc import Mapping
from typing import Any

from tailrace.proto import events

# The fields of these blocks that each protocol has a form for.
KNOWN_FIELDS = {"text": ("type", "text", "citations"), "thinking": ("type", "thinking", "signature")}


def further_fields(block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the other fields of a text or thinking block, also those from its deltas of unknown types."""
    known = KNOWN_FIELDS.get(str(block.get("type")), tuple(block))
    return {name: value for name, value in block.items() if name not in known and value is not None}


def split_start(block: dict[str, Any]) -> tuple[dict[str, Any], list[events.Delta]]:
    """Returns the start of a text or thinking block without its content, and the content as deltas.

    Blocks of other types are returned unchanged: a tool's input in the start is replaced by deltas, not continued. The
    block may come from a client, so its fields may be any JSON values; fields of a wrong type are left out.
    """
    deltas: list[events.Delta] = []
    match block.get("type"):
        case "text":
            if isinstance(text := block.get("text"), str) and text:
                deltas.append(events.TextDelta(text))
            if isinstance(found := block.get("citations"), list):
                deltas += [events.CitationsDelta(one) for one in found if isinstance(one, dict)]
            return {"type": "text", "text": "", **further_fields(block)}, deltas
        case "thinking":
            if isinstance(text := block.get("thinking"), str) and text:
                deltas.append(events.ThinkingDelta(text))
            if isinstance(signature := block.get("signature"), str) and signature:
                deltas.append(events.SignatureDelta(signature))
            return {"type": "thinking", "thinking": "", "signature": "", **further_fields(block)}, deltas
        case _:
            return block, deltas
