"""RPC handlers: cancel a turn, end a damaged turn, list the models of Anthropic's API.

No failure of the model's API is retried here: the client that called the gateway may try again.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tailrace.generators import metrics
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.event_writer import as_stored
from tailrace.generators.worker import OnEnded
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Failure
from tailrace.proto.errors import BackendError, FenceLost, LogUnavailable, Refused, TurnDamaged
from tailrace.proto.fold import fold
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.model_records import CancelTurn, DamagedTurnEnded, EndDamagedTurn, TurnCancelled
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.nats.rpc import decode_query
from tailrace.proto.ownership import ScopedKey

# A gateway waits for 2 s.
CANCEL_TURN_S = 2.0

DAMAGED = Failure("log_damaged", "the log has lost a part of the answer")


async def cancel_turn(log: TurnLog, tenant: Tenant, body: bytes) -> bytes:
    """The handler that cancels a turn for a gateway far from NATS (PROTOCOL R22)."""
    query = decode_query(body, CancelTurn)
    key = ScopedKey.whole(TurnKey(tenant, query.turn))
    try:
        async with asyncio.timeout(CANCEL_TURN_S):
            _, was_running = await append_cancellation(
                log, key, cause=query.cause, by=query.by, successor=query.successor, timeout_s=CANCEL_TURN_S
            )
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in time") from error
    return msgspec.json.encode(TurnCancelled(was_running))


async def end_damaged_turn(log: TurnLog, on_ended: OnEnded, tenant: Tenant, body: bytes) -> bytes:
    """The handler that ends a turn as failed because the log has lost a part of it (PROTOCOL R144).

    Appends nothing if the log has lost nothing, or another process ends the turn.
    """
    key = TurnKey(tenant, decode_query(body, EndDamagedTurn).turn)
    try:
        await log.read_turn(ScopedKey.whole(key))
    except TurnDamaged:
        turn = await log.read_remains(ScopedKey.whole(key))
    else:
        return msgspec.json.encode(DamagedTurnEnded(was_running=False))
    try:
        chain = await log.append(key, turn.chain, end := build_end(turn, "failed", DAMAGED), timeout_s=CANCEL_TURN_S)
    except FenceLost:
        return msgspec.json.encode(DamagedTurnEnded(was_running=False))
    ended = fold([as_stored(chain, end)], turn)
    metrics.count_end(key, ended)
    await on_ended(key, ended)
    return msgspec.json.encode(DamagedTurnEnded(was_running=True))


async def list_models(claude: AnthropicApi, _: Tenant, __: bytes) -> bytes:
    """The handler that lists the models of Anthropic's API (PROTOCOL R36)."""
    with refuse_backend_errors():
        return msgspec.json.encode(await claude.models())


@contextmanager
def refuse_backend_errors() -> Iterator[None]:
    """Raises Refused for a BackendError."""
    try:
        yield
    except BackendError as error:
        raise Refused(error.code, error.message, retry_after_s=error.retry_after_s, details=error.details) from error
