"""Decides what a generator does next with a turn, from the turn's fold alone. Pure: no clock, no I/O.

A generator that died and a model stream that broke leave the same kind of log, so one rule handles both.
"""

import msgspec

from tailrace.generators.backends.model_event import ModelEvent, from_event, stop_message
from tailrace.generators.half_calls import (
    close_half_calls,
    has_results,
    is_sendable,
    is_whole_at_start,
    without_half_calls,
)
from tailrace.proto import events
from tailrace.proto.entries import Failure, Mode
from tailrace.proto.fold import Turn
from tailrace.proto.server_tools import is_executed_tool


class Acknowledge(msgspec.Struct, frozen=True):
    """The turn has ended: acknowledge its request."""


class Leave(msgspec.Struct, frozen=True):
    """Another writer stores the answer and its end: a generator with the feature `batches`."""


class Complete(msgspec.Struct, frozen=True):
    """The answer is complete: append its `end`, with `schema_valid` (whether the answer passed its check)."""

    schema_valid: bool | None = None


class AppendEvents(msgspec.Struct, frozen=True):
    """The answer has reached a limit: append these events, which complete the message."""

    events: list[ModelEvent]


class Fail(msgspec.Struct, frozen=True):
    """The turn cannot go on: append its `end` with this failure."""

    failure: Failure


class MakeAttempt(msgspec.Struct, frozen=True):
    """Make attempt number `attempt`."""

    attempt: int
    mode: Mode
    misfit: str | None = None
    """Why the answer so far, which is complete, did not pass its check: the model is asked for a corrected one."""
    reason: str | None = None
    """With the mode `restart`: why the answer so far cannot be continued."""


Action = Acknowledge | Leave | Complete | AppendEvents | Fail | MakeAttempt

# With these stop reasons a second call may give another answer; a call that a limit has cut would be cut again.
CORRECTABLE = ("end_turn", "stop_sequence", "tool_use")
CONTINUED_TYPES = ("text", "thinking", "redacted_thinking")
# The type of a block comes from the model.
OBSTACLE_CHARS_MAX = 64
# The most attempts of one turn, pauses included, even if each attempt makes progress (PROTOCOL R118).
ATTEMPTS_TOTAL_MAX = 50


def plan(turn: Turn, attempts_max: int, cut: str | None = None, obstacle: str | None = None) -> Action:
    """Returns the next action for `turn`. The turn fails after `attempts_max` attempts in a row that stored nothing
    new.

    `cut` is the stop reason of the limit that the turn has reached, if any: then no further call is made. `obstacle`
    is explained at `find_obstacle`. After `Complete`, a feature may check the answer: see `plan_after_check`.
    """
    if turn.end is not None:
        return Acknowledge()
    if turn.request is not None and (turn.request.via != "messages" or turn.request.batch is not None):
        return Leave()
    if turn.stop.stop_reason is not None:
        return Complete()
    if cut is not None and turn.message is not None:
        return AppendEvents(closing_events(turn, cut))
    if cut is not None:
        tried = f"a further attempt would exceed a limit of its cost ({cut})"
        return Fail(Failure("attempts_exhausted", f"the answer broke off: {tried}"))
    mode = next_mode(turn, obstacle)
    if mode == "continue" and tokens_left(turn) <= 0:
        return AppendEvents(closing_events(turn, "max_tokens"))
    if turn.fruitless >= attempts_max:
        tried = f"{turn.fruitless} attempts in a row brought nothing new, the most allowed"
        return Fail(Failure("attempts_exhausted", f"the answer broke off: {tried}"))
    if turn.attempt >= ATTEMPTS_TOTAL_MAX:
        tried = f"it has had {turn.attempt} attempts, the most that a turn may have"
        return Fail(Failure("attempts_exhausted", f"the answer broke off: {tried}"))
    if mode is None:
        return Fail(Failure("interrupted", "the answer broke off, and the request has on_interrupt: fail"))
    messages = turn.request.messages if turn.request is not None else ()
    if mode == "continue" and not turn.is_paused and (closing := close_half_calls(turn.blocks, messages)):
        return AppendEvents([from_event(event) for event in closing])
    return MakeAttempt(turn.attempt + 1, mode, reason=find_obstacle(turn, obstacle) if mode == "restart" else None)


def next_mode(turn: Turn, obstacle: str | None = None) -> Mode | None:
    """Returns the mode of the next attempt; None if the request does not want another attempt. See `find_obstacle`."""
    if turn.message is None:
        # No reader has seen anything, so nothing can be continued or taken back.
        return "fresh"
    if turn.is_paused:
        # The model was not interrupted: `on_interrupt` and `obstacle` do not apply.
        return "continue"
    on_interrupt = turn.request.on_interrupt if turn.request else "continue"
    if turn.blocks and on_interrupt == "fail":
        return None
    return "continue" if find_obstacle(turn, obstacle) is None else "restart"


def plan_after_check(
    turn: Turn, misfit: str | None, attempts_max: int, cut: str | None = None
) -> Complete | MakeAttempt:
    """Returns the action after a check of the complete answer; `misfit`: why the answer failed; None: it passed.

    The model is asked for a corrected answer once. `cut` is explained at `plan`.
    """
    if misfit is None:
        return Complete(schema_valid=True)
    is_final = (
        turn.misfit is not None
        or turn.fruitless >= attempts_max
        or turn.stop.stop_reason not in CORRECTABLE
        or cut is not None
    )
    return Complete(schema_valid=False) if is_final else MakeAttempt(turn.attempt + 1, "restart", misfit)


def closing_events(turn: Turn, stop_reason: str) -> list[ModelEvent]:
    """Returns the events that complete the message: a stop for each open block, and `stop_reason`."""
    still_open = [index for index, block in enumerate(turn.blocks) if not block.is_closed]
    return [*(from_event(events.BlockStop(index)) for index in still_open), stop_message(stop_reason)]


def tokens_left(turn: Turn) -> int:
    """Returns how many tokens the answer may still have, over all its calls (PROTOCOL R74)."""
    return turn.request.max_tokens - turn.generated_tokens if turn.request else 0


def find_obstacle(turn: Turn, obstacle: str | None = None) -> str | None:
    """Returns why the partial answer in `turn` cannot be continued; None if it can.

    `on_interrupt`: the request wants a restart. `obstacle`: the reason of a feature. Otherwise the type of the first
    block that prevents it: the API refuses half a thought, an unknown block, and a call of the client's tools without
    its result.

    Completed calls of server tools are continued, so that none of them runs twice. After such a call, half a thought is
    left out of the next call instead. Calls that the backend has executed itself are not sent.
    """
    if turn.blocks and turn.request is not None and turn.request.on_interrupt == "restart":
        return "on_interrupt"
    blocks = tuple(block for block in turn.blocks if not (block.is_closed and is_executed_tool(block.start)))
    if not blocks:
        return None
    if obstacle is not None:
        return obstacle
    is_kept = has_results(blocks)
    sent = without_half_calls(blocks)
    for block in sent:
        is_last, is_whole = block is sent[-1], block.is_closed or is_whole_at_start(block)
        match block.type:
            case "text" if is_whole or is_last:
                continue
            case "thinking" if is_kept and is_last:
                continue
            case kind if is_whole and (kind in CONTINUED_TYPES or is_sendable(kind) or is_kept) and kind != "tool_use":
                continue
            case kind:
                return kind[:OBSTACLE_CHARS_MAX]
    return None
