"""The messages of a conversation branch, which a follow-up turn continues. Pure.

Unfinished blocks are left out, because the API rejects them: a thinking block without its signature, a tool call
without its result, an empty text.
"""

from collections.abc import Iterable
from typing import Any

from tailrace.proto import blobs
from tailrace.proto.entries import Message
from tailrace.proto.fold import is_executed_tool
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord

Block = dict[str, Any]


def messages(branch: Iterable[TurnRecord]) -> list[Message]:
    """Returns the messages of `branch`, oldest first. A turn without an answer is left out, with its question."""
    return [message for turn in branch for message in _messages_of(turn)]


def ends(branch: Iterable[TurnRecord]) -> list[tuple[TurnId, int]]:
    """Returns each turn, oldest first, and how many messages the branch has up to and including its answer."""
    turns, count = [], 0
    for turn in branch:
        count += len(_messages_of(turn))
        turns.append((turn.turn, count))
    return turns


def _messages_of(turn: TurnRecord) -> list[Message]:
    is_completed = turn.outcome == "completed"
    blocks = [_escape_references(block) for block in turn.content if _is_usable(block, is_completed=is_completed)]
    return [*turn.input, Message("assistant", _simplify(blocks))] if blocks else []


def _is_usable(block: Block, *, is_completed: bool) -> bool:
    match block.get("type"):
        case "text":
            return bool(block["text"].strip())
        case "thinking":
            return is_completed and bool(block["signature"])
        case _:
            return is_completed and not is_executed_tool(block)


def _simplify(blocks: list[Block]) -> str | list[Block]:
    match blocks:
        case [{"type": "text", "text": str(text), **rest}] if not rest:
            return text
        case _:
            return blocks


def _escape_references(value: Any) -> Any:
    """Marks what looks like a blob reference in a model's output: only requests refer to blobs (PROTOCOL R33)."""
    match value:
        case list():
            return [_escape_references(one) for one in value]
        case dict() if blobs.parse_reference(value) is not None:
            return {**value, "is_reference": False}
        case dict():
            return {name: _escape_references(one) for name, one in value.items()}
        case _:
            return value
