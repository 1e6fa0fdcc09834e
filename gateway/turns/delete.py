"""Deletes turns: cancels those that run, purges the log, then the database. In this order nothing can return.

Persistence would record again what the log still has, and a running generator would write to a purged log. After a
crash at any point the same request deletes the rest.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto import batch
from tailrace.proto.blobs import Blob
from tailrace.proto.errors import BlobUnknown, Refused, TurnUnknown
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.model_records import CANCEL_MESSAGE_BATCH, CancelMessageBatch
from tailrace.proto.nats import Tombstones
from tailrace.proto.nats.settlement import Settlement, give_back
from tailrace.proto.resources import DeleteResource, Kind, TurnToDelete
from tailrace.proto.subjects import GENERATORS, TurnKey

# Each round deletes up to a thousand turns. The bound ends a deletion that competes with new turns of the session.
ROUNDS_MAX = 100
LOOKED_AT_ONCE = 16
# The generator settles a turn after its end. A counter remembers the names of its last increments only: a turn that
# ended long ago would be refunded twice.
SETTLED_WITHIN = timedelta(minutes=10)


async def delete(gateway: Gateway, tenant: Tenant, kind: Kind, name: str) -> int:
    """Deletes a turn with its follow-ups, a session, or a project with its sessions. Returns the number of turns.

    Raises Refused when it does not exist, or not all of it could be deleted; LogUnavailable. It can be repeated.
    """
    if kind == "turn":
        await _stop_asking(gateway, TurnKey(tenant, TurnId(name)))
    gone: set[TurnId] = set()
    purged: list[TurnId] = []
    for _ in range(ROUNDS_MAX):
        left = await gateway.history.ask(tenant, DeleteResource(kind, name, tuple(purged)))
        if not left.turns:
            return len(gone)
        purged = await _purged(gateway, tenant, left.turns)
        gone.update(purged)
    raise Refused("session_busy", "turns were submitted during the deletion: repeat it when no client submits more")


async def _purged(gateway: Gateway, tenant: Tenant, doomed: list[TurnToDelete]) -> list[TurnId]:
    """Purges turns from the log and returns them; none if one was running: persistence must record its end first."""
    was_running = False
    for turn in doomed:
        was_running |= turn.is_running and await _is_stopped(gateway, TurnKey(tenant, turn.turn))
    if was_running:
        return []
    # Before the purge, because settling reads the log.
    for turn in doomed:
        await _settle(gateway, TurnKey(tenant, turn.turn))
    for turn in doomed:
        await gateway.log.purge(TurnKey(tenant, turn.turn))
    return [turn.turn for turn in doomed]


async def _is_stopped(gateway: Gateway, key: TurnKey) -> bool:
    """Cancels a turn. False when the log has none of it."""
    try:
        await cancel(gateway.log, key)
    except TurnUnknown:
        return False
    return True


async def _stop_asking(gateway: Gateway, key: TurnKey) -> None:
    """Cancels a batch before its turns: it would submit new ones during the deletion."""
    try:
        turn = await gateway.log.turn(key)
        if turn.request is not None and turn.request.batch is not None:
            await cancel(gateway.log, key)
    except TurnUnknown:
        return


async def _settle(gateway: Gateway, key: TurnKey) -> None:
    """Settles the reservations of a turn that has just ended, once, in case its generator has died."""
    try:
        turn = await gateway.log.turn(key)
    except TurnUnknown:
        return
    is_fresh = turn.ended_at is not None and datetime.now(UTC) - turn.ended_at < SETTLED_WITHIN
    if is_fresh:
        await Settlement(gateway.limiter.counters, gateway.limiter.slots).settle(key, turn)
    if turn.request is None or turn.request.batch is None or turn.outcome == "completed":
        return
    if turn.progress is not None and turn.progress.message_batch is not None:
        # Anthropic bills what it has answered, and no result will say how much: the reservation stays.
        await _stop_message_batch(gateway, key, turn.progress.message_batch)
    elif is_fresh:
        await _give_back(gateway, key, Blob(turn.request.batch.sha256, turn.request.batch.bytes))


async def _give_back(gateway: Gateway, key: TurnKey, inputs: Blob) -> None:
    """Refunds the reservations of a batch's inputs that were never submitted."""
    try:
        lines = batch.split_inputs(await gateway.blobs.read(key.tenant, inputs))
    except BlobUnknown:
        return
    tombstones = Tombstones(gateway.connection)

    async def look(number: int) -> None:
        child = batch.child_key(key, number)
        if not await gateway.log.is_known(child):
            await give_back(tombstones, gateway.limiter.counters, child, lines[number])

    for first in range(0, len(lines), LOOKED_AT_ONCE):
        numbers = range(first, min(first + LOOKED_AT_ONCE, len(lines)))
        await asyncio.gather(*(look(number) for number in numbers))


async def _stop_message_batch(gateway: Gateway, key: TurnKey, name: str) -> None:
    """Cancels the message batch at Anthropic: after the purge no process knows of it."""
    asked = msgspec.json.encode(CancelMessageBatch(name))
    timeout_s = gateway.settings.query_timeout_s
    await gateway.rpc.request(key.tenant, CANCEL_MESSAGE_BATCH, asked, timeout_s=timeout_s, role=GENERATORS)
