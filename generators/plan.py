"""What a generator does next with a turn, decided from the turn's fold alone. Pure: no clock, no network.

A turn that was begun may have lost its generator or its model's stream; both leave the same log, and one rule serves.
"""

import msgspec

from proto.entries import Failure, Mode
from proto.fold import Block, Turn


class Leave(msgspec.Struct, frozen=True):
    """The turn has ended: acknowledge."""


class Complete(msgspec.Struct, frozen=True):
    """The answer is whole, only its `end` is missing."""


class Fail(msgspec.Struct, frozen=True):
    """The turn cannot go on."""

    failure: Failure


class Go(msgspec.Struct, frozen=True):
    """Make an attempt."""

    attempt: int
    mode: Mode


Plan = Leave | Complete | Fail | Go

CONTINUED_TYPES = ("text", "thinking", "redacted_thinking")


def plan(turn: Turn, attempts_max: int) -> Plan:
    """The next step of `turn`, of which at most `attempts_max` attempts are made."""
    if turn.end is not None:
        return Leave()
    if turn.stop.stop_reason is not None:
        return Complete()
    if turn.attempt >= attempts_max:
        return Fail(Failure("attempts_exhausted", f"the answer was broken off {turn.attempt} times"))
    attempt = turn.attempt + 1
    if turn.message is None:
        # Nobody has been shown anything: there is nothing to continue, and nothing to take back.
        return Go(attempt, "fresh")
    match turn.request.on_interrupt if turn.request else "continue":
        case "fail" if turn.blocks:
            return Fail(Failure("interrupted", "the answer was broken off, and the turn asked not to go on from there"))
        case "restart" if turn.blocks:
            return Go(attempt, "restart")
        case _:
            return Go(attempt, "continue" if can_continue(turn.blocks) else "restart")


def can_continue(blocks: tuple[Block, ...]) -> bool:
    """Whether a model can go on after `blocks`: only text can be taken up in the middle.

    Half a tool call or half a thought cannot be given back to the model, and a whole tool call wants its result first
    (FACTS, anthropic).
    """
    if not blocks:
        return True
    *before, last = blocks
    is_last_fit = last.type == "text" or last.is_closed
    return is_last_fit and all(b.is_closed for b in before) and all(b.type in CONTINUED_TYPES for b in blocks)
