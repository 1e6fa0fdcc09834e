"""Cancels a turn by appending `end{cancelled}`: the generator's next append is refused, and it stops."""

import asyncio

import msgspec
import structlog

from tailrace.gateway import metrics
from tailrace.proto.end_entry import end_fields
from tailrace.proto.entries import CancelCause
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnId
from tailrace.proto.model_records import CANCEL_TURN, CancelTurn, TurnCancelled
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import GENERATORS

logger = structlog.get_logger()

CANCEL_TIMEOUT_S = 10.0
# After these numbers of appends that lost the fence, the gateway asks a generator to cancel the turn. An append
# succeeds if the turn's generator appends nothing during one round trip between gateway and NATS. If the round trip is
# longer than the time between two deltas, each append would lose the fence until the answer ends. If it is about as
# long, an append succeeds sooner or later, and an unanswered query delays it: so there are only a few queries.
ASK_AFTER = frozenset({2, 16, 128})
ASK_TIMEOUT_S = 2.0


async def cancel(
    log: TurnLog, key: ScopedKey, cause: CancelCause, by: str | None = None, successor: TurnId | None = None
) -> Turn:
    """Ends the turn as cancelled unless it has ended; returns it with its end.

    The end says why (`cause`), which credential of a client did it (`by`), and in which turn its readers go on.
    Raises TurnUnknown, LogUnavailable, LogFull.
    """

    async def on_fence_lost(losses: int) -> bool:
        return losses in ASK_AFTER and await _ask_generator(log, key, CancelTurn(key.turn, cause, by, successor))

    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            turn, was_running = await append_cancellation(
                log, key, on_fence_lost, cause=cause, by=by, successor=successor, timeout_s=CANCEL_TIMEOUT_S
            )
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in {CANCEL_TIMEOUT_S:.0f} s: try again") from error
    if was_running:
        metrics.CANCELLED.inc()
        logger.info("turn cancelled", **end_fields(key.plain, turn))
    return turn


async def _ask_generator(log: TurnLog, key: ScopedKey, cancellation: CancelTurn) -> bool:
    """Asks a generator, which is close to NATS, to cancel the turn. Returns whether it has ended the turn."""
    query = msgspec.json.encode(cancellation)
    try:
        reply = await Rpc(log.connection).request(
            key.tenant, CANCEL_TURN, query, timeout_s=ASK_TIMEOUT_S, role=GENERATORS
        )
    except Refused:
        return False
    return msgspec.json.decode(reply, type=TurnCancelled).was_running
