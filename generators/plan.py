"""What a generator does next with a turn, decided from the turn's fold alone. Pure: no clock, no network.

A turn that was begun may have lost its generator or its model's stream; both leave the same log, and one rule serves.
"""

from typing import Any

import msgspec

from tailrace.generators.budget import is_spent
from tailrace.proto.entries import Failure, Mode
from tailrace.proto.fold import Block, Turn
from tailrace.proto.schema import schema_of


class Acknowledge(msgspec.Struct, frozen=True):
    """The turn has ended: acknowledge."""


class LeaveToBatch(msgspec.Struct, frozen=True):
    """Another writes the answer: whoever carries the turn's batch."""


class Complete(msgspec.Struct, frozen=True):
    """The answer is whole, only its `end` is missing. `schema_valid`: as that will say it."""

    schema_valid: bool | None = None


class CutOff(msgspec.Struct, frozen=True):
    """The answer has cost what it may: it is made whole as it is."""


class CheckSchema(msgspec.Struct, frozen=True):
    """The answer is complete: check it against `schema`, then call `plan_after_check`."""

    schema: dict[str, Any]


class Fail(msgspec.Struct, frozen=True):
    """The turn cannot go on."""

    failure: Failure


class MakeAttempt(msgspec.Struct, frozen=True):
    """Make an attempt."""

    attempt: int
    mode: Mode
    misfit: str | None = None
    """Why the answer so far, which is whole, is to be given anew."""
    is_hedge: bool = False
    """Beside the attempt before it, which is late: whoever has a token first has the turn."""


Plan = Acknowledge | LeaveToBatch | Complete | CutOff | CheckSchema | Fail | MakeAttempt

# The answer is not the one that has to fit: a tool's result comes first, or the rest of it.
UNFINISHED = ("tool_use", "pause_turn")
# Asked again in the same way, the model would say no more than this.
WANTED = ("end_turn", "stop_sequence")
CONTINUED_TYPES = ("text", "thinking", "redacted_thinking")


def plan(turn: Turn, attempts_max: int) -> Plan:
    """The next step of `turn`, of which at most `attempts_max` attempts are made."""
    if turn.end is not None:
        return Acknowledge()
    if turn.request is not None and turn.request.via == "message_batches":
        return LeaveToBatch()
    schema = schema_of(turn.request.options) if turn.request else None
    if turn.stop.stop_reason is not None:
        return Complete() if schema is None or turn.stop.stop_reason in UNFINISHED else CheckSchema(schema)
    if turn.message is not None and is_spent(turn):
        return CutOff()
    if counted_attempts(turn) >= attempts_max:
        return Fail(Failure("attempts_exhausted", f"the answer was broken off {counted_attempts(turn)} times"))
    attempt = turn.attempt + 1
    if turn.message is None:
        # Nobody has been shown anything: there is nothing to continue, and nothing to take back.
        return MakeAttempt(attempt, "fresh")
    match turn.request.on_interrupt if turn.request else "continue":
        case "fail" if turn.blocks:
            return Fail(Failure("interrupted", "the answer was broken off, and the turn asked not to go on from there"))
        case "restart" if turn.blocks:
            return MakeAttempt(attempt, "restart")
        case _:
            # Whoever is made to say JSON that fits a schema says it from its beginning.
            is_continued = can_continue(turn.blocks) and (schema is None or not turn.blocks)
            return MakeAttempt(attempt, "continue" if is_continued else "restart")


def plan_after_check(turn: Turn, misfit: str | None, attempts_max: int) -> Complete | MakeAttempt:
    """What follows a whole answer that fits its schema or, because of `misfit`, does not: it is asked again once."""
    if misfit is None:
        return Complete(schema_valid=True)
    is_final = turn.misfit is not None or counted_attempts(turn) >= attempts_max or turn.stop.stop_reason not in WANTED
    is_final |= is_spent(turn)
    return Complete(schema_valid=False) if is_final else MakeAttempt(turn.attempt + 1, "restart", misfit)


def hedge(turn: Turn) -> MakeAttempt:
    """The attempt that is made beside the one that `turn`, of which nothing was shown, waits for."""
    return MakeAttempt(turn.attempt + 1, "fresh", is_hedge=True)


def counted_attempts(turn: Turn) -> int:
    """The attempts that count. One that took the turn from another, which was only late, is no further one."""
    return turn.attempt - turn.hedges


def can_continue(blocks: tuple[Block, ...]) -> bool:
    """Whether a model can go on after `blocks`: only text can be taken up in the middle.

    Half a tool call or half a thought cannot be given back to the model, and a whole tool call wants its result first:
    the API refuses all three.
    """
    if not blocks:
        return True
    *before, last = blocks
    is_last_fit = last.type == "text" or last.is_closed
    return is_last_fit and all(b.is_closed for b in before) and all(b.type in CONTINUED_TYPES for b in blocks)
