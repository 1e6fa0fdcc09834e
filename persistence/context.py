"""The conversation that a follow-up turn goes on from: a branch's turns become messages. Pure.

What the model never finished is not put into its mouth: the API refuses a thinking block without its signature, a tool
call without its result, and an empty text; and an answer that nobody saw is not an answer.
"""

from collections.abc import Iterable
from typing import Any

from tailrace.proto import blobs
from tailrace.proto.entries import Message
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord

Block = dict[str, Any]


def messages(branch: Iterable[TurnRecord]) -> list[Message]:
    """What was said, oldest turn first. A turn without an answer is left out, with its question."""
    return [message for turn in branch for message in _said(turn)]


def ends(branch: Iterable[TurnRecord]) -> list[tuple[TurnId, int]]:
    """Each turn, oldest first, with how many of the branch's messages stand until after its answer."""
    turns, count = [], 0
    for turn in branch:
        count += len(_said(turn))
        turns.append((turn.turn, count))
    return turns


def _said(turn: TurnRecord) -> list[Message]:
    blocks = [_quoted(block) for block in turn.content if _stays(block, is_whole=turn.outcome == "completed")]
    return [*turn.input, Message("assistant", _plain(blocks))] if blocks else []


def _stays(block: Block, *, is_whole: bool) -> bool:
    match block.get("type"):
        case "text":
            return bool(block["text"].strip())
        case "thinking":
            return is_whole and bool(block["signature"])
        case _:
            return is_whole


def _plain(blocks: list[Block]) -> str | list[Block]:
    match blocks:
        case [{"type": "text", "text": str(text), **rest}] if not rest:
            return text
        case _:
            return blocks


def _quoted(value: Any) -> Any:
    """What the model said, and no reference: those are in what was asked alone, and this looks just like one (R33)."""
    match value:
        case list():
            return [_quoted(one) for one in value]
        case dict() if blobs.parse_reference(value) is not None:
            return {**value, "is_reference": False}
        case dict():
            return {name: _quoted(one) for name, one in value.items()}
        case _:
            return value
