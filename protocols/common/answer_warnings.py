"""Warnings about an answer that is not whole, or has parts that the client's protocol cannot show.

{"code": "incomplete", "message": …, "stop_reason": "pause_turn"}
{"code": "left_out", "message": …, "types": ["compaction", "char_location"]}

Most answers have no warnings. The `types` are those of blocks, citations, deltas and events, in Anthropic's names;
`text.note` is the field `note` of a text block.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.block_start import further_fields
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import End
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.stop_reasons import explain, incomplete_reason

Warnings = list[dict[str, Any]]

TYPES_MAX = 50


class Shown(NamedTuple):
    """The parts of an answer that a protocol can show."""

    types: frozenset[str]
    """The types of blocks that the protocol shows, or that have nothing to show, such as encrypted thinking."""
    has_citation: Callable[[dict[str, Any]], bool] = lambda _: False
    """Whether the protocol can show a citation."""
    is_shown: Callable[[dict[str, Any]], bool] = lambda _: False
    """Whether the protocol shows a block of another type."""


# Thinking is not part of the answer.
TEXT_ONLY = Shown(frozenset({"text", "thinking", "redacted_thinking"}))


class LeftOut(NamedTuple):
    """The types that a stream has left out so far, in the order of the answer."""

    types: tuple[str, ...] = ()
    blocks: frozenset[int] = frozenset()
    """The blocks that are left out. Their deltas count as part of them."""

    def add(self, event: events.Event | events.UnknownEvent, raw: bytes | msgspec.Raw, shown: Shown) -> "LeftOut":
        """Returns the state after an event."""
        match event:
            case events.BlockStart(index, block):
                names = _left_out_of(block, shown)
                blocks = self.blocks | {index} if names[:1] == [block.get("type")] else self.blocks
                return self._with(names, blocks)
            case events.BlockDelta(_, events.CitationsDelta(citation)):
                return self._with([] if shown.has_citation(citation) else [_type_of(citation)], self.blocks)
            case events.UnknownEvent():
                return self._with(_unknown_types(raw, self.blocks), self.blocks)
            case _:
                return self

    def _with(self, names: Iterable[str], blocks: frozenset[int]) -> "LeftOut":
        more = tuple(dict.fromkeys(name for name in names if name not in self.types))
        return self if not more and blocks is self.blocks else LeftOut((*self.types, *more)[:TYPES_MAX], blocks)


NOTHING = LeftOut()


def types_of(content: Iterable[dict[str, Any]], shown: Shown) -> tuple[str, ...]:
    """Returns the types that a protocol leaves out of a whole answer."""
    return tuple(dict.fromkeys(name for block in content for name in _left_out_of(block, shown)))[:TYPES_MAX]


def warnings_of(ended: End | TurnRecord, types: Iterable[str], turn: TurnId) -> Warnings:
    """Returns the warnings of an answer; an empty list for most."""
    found: Warnings = []
    if (reason := incomplete_reason(ended)) is not None:
        found.append({"code": "incomplete", "message": explain(reason), "stop_reason": reason})
    if names := list(types):
        message = f"This format cannot show all parts of the answer. GET /v1/turns/{turn} has them."
        found.append({"code": "left_out", "message": message, "types": names})
    return found


def warnings_field(warnings: Warnings) -> dict[str, Any]:
    """Returns the field `warnings`; no field without warnings."""
    return {"warnings": warnings} if warnings else {}


def _left_out_of(block: Mapping[str, Any], shown: Shown) -> list[str]:
    """Returns the names of the parts of a block that the protocol leaves out: its type, citations or fields."""
    kind = _type_of(block)
    if kind not in shown.types:
        return [] if shown.is_shown(dict(block)) else [kind]
    names = [f"{kind}.{name}" for name in further_fields(block)]
    citations = block.get("citations") if kind == "text" else None
    if isinstance(citations, list | tuple):
        names += [_type_of(one) for one in citations if isinstance(one, dict) and not shown.has_citation(one)]
    return names


def _type_of(value: Mapping[str, Any]) -> str:
    kind = value.get("type")
    return kind if isinstance(kind, str) else "unknown"


def _unknown_types(raw: bytes | msgspec.Raw, blocks: frozenset[int]) -> list[str]:
    try:
        fields = msgspec.json.decode(raw)
    except DECODE_ERRORS:
        return []
    match fields:
        case {"type": "content_block_delta", "index": index, "delta": {"type": str(kind)}}:
            return [] if index in blocks else [kind]
        case {"type": str(kind)}:
            return [kind]
        case _:
            return []
