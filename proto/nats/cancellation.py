"""append_cancellation: ends a turn as cancelled, behind the fence (PROTOCOL R22)."""

from collections.abc import Awaitable, Callable

from tailrace.proto.end_entry import build_end
from tailrace.proto.errors import FenceLost
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnId
from tailrace.proto.nats.turn_log import TurnLog
from tailrace.proto.ownership import ScopedKey


async def append_cancellation(
    log: TurnLog,
    key: ScopedKey,
    on_fence_lost: Callable[[int], Awaitable[bool]] | None = None,
    *,
    cause: str | None,
    by: str | None,
    successor: TurnId | None = None,
    timeout_s: float,
) -> tuple[Turn, bool]:
    """Ends the turn as cancelled, unless it has ended. Returns the ended turn, and whether this call has ended it.

    `cause`, `by` (the client's credential) and `successor` are stored in the `end`. `on_fence_lost` is called after
    each append that has lost the fence, with the number of these appends, and returns whether it has ended the turn.
    Raises TurnUnknown, LogUnavailable, LogFull.
    """
    turn, was_running, losses = await log.read_turn_direct(key), False, 0
    while turn.end is None:
        try:
            end = build_end(turn, "cancelled", cause=cause, by=by, successor=successor)
            await log.append(key.plain, turn.chain, end, timeout_s=timeout_s)
            was_running = True
        except FenceLost:
            # Another writer has meanwhile appended more of the answer, or its end.
            losses += 1
            if on_fence_lost is not None and await on_fence_lost(losses):
                was_running = True
        # The end is read from the log and not built here, so that every answer has the same end time.
        turn = await log.read_turn_direct(key, turn)
    return turn, was_running
