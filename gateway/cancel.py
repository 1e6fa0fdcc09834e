"""Cancelling is an append: once `end{cancelled}` is stored, the generator's next append is refused, and it stops."""

import asyncio
from contextlib import suppress

import structlog

from gateway import metrics
from proto.ending import ending
from proto.errors import FenceLost, LogUnavailable
from proto.fold import Turn
from proto.log import TurnLog
from proto.subjects import TurnKey

logger = structlog.get_logger()

# A generator that writes as fast as it can wins the race for the next sequence some times. Not for this long.
CANCEL_TIMEOUT_S = 10.0


async def cancel(log: TurnLog, key: TurnKey) -> Turn:
    """The turn with its end, which is whichever was first: cancelling what has ended changes nothing.

    Raises TurnUnknown, LogUnavailable.
    """
    turn = await log.turn(key)
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            while turn.end is None:
                # Lost to whoever has written meanwhile: more of the answer, or its end.
                with suppress(FenceLost):
                    await log.append(key, turn.chain, ending(turn, "cancelled"))
                    metrics.CANCELLED.inc()
                    logger.info("turn cancelled", turn=key.turn)
                # Read, not made up: when it ended is the log's to say, and every answer says the same.
                turn = await log.turn(key, turn)
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in time: try again") from error
    return turn
