"""Cancelling is an append: once `end{cancelled}` is stored, the generator's next append is refused, and it stops."""

import asyncio
from contextlib import suppress

import structlog

from tailrace.gateway import metrics
from tailrace.proto.end_entry import build_end
from tailrace.proto.errors import FenceLost, LogUnavailable
from tailrace.proto.fold import Turn
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.append import append
from tailrace.proto.nats.replay import folded
from tailrace.proto.nats.step import Now, Steps
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# A generator that writes as fast as it can wins the race for the next sequence some times. Not for this long.
CANCEL_TIMEOUT_S = 10.0


async def cancel(log: TurnLog, key: TurnKey) -> Turn:
    """The turn with its end, which is whichever was first: cancelling what has ended changes nothing.

    Raises TurnUnknown, LogUnavailable.
    """
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            turn, is_ours = await log.take(key, cancelled(key, asyncio.get_running_loop().time))
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in time: try again") from error
    if is_ours:
        metrics.CANCELLED.inc()
        logger.info("turn cancelled", turn=key.turn)
    return turn


def cancelled(key: TurnKey, now: Now) -> Steps[tuple[Turn, bool]]:
    """The turn with its end, and whether that was stored here. Pure. Raises as `cancel` does."""
    turn = yield from folded(key, now=now)
    is_ours = False
    while turn.end is None:
        # Lost to whoever has written meanwhile: more of the answer, or its end.
        with suppress(FenceLost):
            end = build_end(turn, "cancelled")
            yield from append(key, turn.chain, end, now=now, timeout_s=CANCEL_TIMEOUT_S)
            is_ours = True
        # Read, not made up: when it ended is the log's to say, and every answer says the same.
        turn = yield from folded(key, turn, now=now)
    return turn, is_ours
