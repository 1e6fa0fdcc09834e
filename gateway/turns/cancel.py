"""Cancels a turn by appending `end{cancelled}`: the generator's next append is refused, and it stops."""

import asyncio
from contextlib import suppress

import structlog

from tailrace.gateway import metrics
from tailrace.proto.end_entry import build_end, end_fields
from tailrace.proto.errors import FenceLost, LogUnavailable
from tailrace.proto.fold import Turn
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# A generator that appends as fast as it can wins the race for the next sequence a few times, but not for this long.
CANCEL_TIMEOUT_S = 10.0


async def cancel(log: TurnLog, key: TurnKey) -> Turn:
    """Ends the turn as cancelled unless it has ended; returns it with its end.

    Raises TurnUnknown, LogUnavailable, LogFull.
    """
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            return await _append_end(log, key)
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in {CANCEL_TIMEOUT_S:.0f} s: try again") from error


async def _append_end(log: TurnLog, key: TurnKey) -> Turn:
    turn, was_appended = await log.read_turn_direct(key), False
    while turn.end is None:
        # The fence is lost to a writer that has meanwhile appended more of the answer, or its end.
        with suppress(FenceLost):
            await log.append(key, turn.chain, build_end(turn, "cancelled"), timeout_s=CANCEL_TIMEOUT_S)
            was_appended = True
        # The end is read from the log and not built here, so that every answer has the same end time.
        turn = await log.read_turn_direct(key, turn)
    if was_appended:
        metrics.CANCELLED.inc()
        logger.info("turn cancelled", **end_fields(key, turn))
    return turn
