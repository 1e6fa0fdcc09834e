"""The calls of the client's tools with which a turn has ended."""

from typing import Any

from tailrace.proto.conversation import AWAITS_CLIENT, MALFORMED, call_id
from tailrace.proto.ids import is_child_id
from tailrace.proto.records import TurnRecord

Block = dict[str, Any]


def calls_of(turn: TurnRecord) -> dict[str, Block]:
    """Returns the calls of the client's tools with which a turn was completed, by their ids, in order.

    Returns none for a turn of a batch, which nothing continues, and for a turn without a parent whose input has answers
    of a model: its client keeps the conversation, and continues it in another session.
    """
    if is_of_batch(turn) or turn.outcome != "completed" or turn.stop_reason != AWAITS_CLIENT:
        return {}
    if turn.parent is None and any(message.role == "assistant" for message in turn.input):
        return {}
    return {call: block for block in turn.content if (call := call_id(block)) and call != MALFORMED}


def is_of_batch(turn: TurnRecord) -> bool:
    """Returns whether the turn is one of a batch."""
    return turn.parent is not None and is_child_id(turn.turn, turn.parent)
