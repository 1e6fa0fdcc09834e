"""Cancels a turn by appending `end{cancelled}`: the generator's next append is refused, and it stops."""

import asyncio

import msgspec
import structlog

from tailrace.gateway import metrics
from tailrace.proto.end_entry import end_fields
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.fold import Turn
from tailrace.proto.model_records import CANCEL_TURN, CancelTurn, TurnCancelled
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.subjects import GENERATORS, TurnKey

logger = structlog.get_logger()

CANCEL_TIMEOUT_S = 10.0
# So many appends of this gateway may lose the fence before a generator is asked to cancel the turn. An append wins if
# the turn's generator appends nothing during one round trip between gateway and NATS. Next to NATS that is soon; a
# gateway that is further away than the interval of the deltas would lose until the answer ends.
LOSSES_MAX = 2
ASK_TIMEOUT_S = 2.0


async def cancel(log: TurnLog, key: TurnKey) -> Turn:
    """Ends the turn as cancelled unless it has ended; returns it with its end.

    Raises TurnUnknown, LogUnavailable, LogFull.
    """
    losses = 0

    async def ask_after_losses() -> bool:
        nonlocal losses
        losses += 1
        return losses >= LOSSES_MAX and await _ask_generator(log, key)

    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            turn, was_running = await append_cancellation(log, key, ask_after_losses, timeout_s=CANCEL_TIMEOUT_S)
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in {CANCEL_TIMEOUT_S:.0f} s: try again") from error
    if was_running:
        metrics.CANCELLED.inc()
        logger.info("turn cancelled", **end_fields(key, turn))
    return turn


async def _ask_generator(log: TurnLog, key: TurnKey) -> bool:
    """Returns whether a generator, which is next to NATS, has cancelled the turn."""
    query = msgspec.json.encode(CancelTurn(key.turn))
    try:
        reply = await Rpc(log.connection).request(
            key.tenant, CANCEL_TURN, query, timeout_s=ASK_TIMEOUT_S, role=GENERATORS
        )
    except Refused:
        return False
    return msgspec.json.decode(reply, type=TurnCancelled).was_running
