"""Deleting: running turns end, then the log forgets, then the database. In this order nothing can come back.

What the log has is what persistence would record again, and what a generator writes to would stay in the log. Killed
at any point it is begun again by the same request, which finds what is left.
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

# Each is up to a thousand turns. Who asks on in a session as fast as it is deleted does not keep this here for ever.
ROUNDS_MAX = 100
LOOKED_AT_ONCE = 16
# After an end its generator has settled the turn. Of each counter the server remembers the last increments' names:
# who deletes what ended long ago would be given back once more what was held for it.
SETTLED_WITHIN = timedelta(minutes=10)


async def delete(gateway: Gateway, tenant: Tenant, kind: Kind, name: str) -> int:
    """Deletes a turn with its follow-ups, a session, or a project with its sessions; returns how many turns it were.

    Raises Refused when there is no such thing, or not all of it could be deleted; LogUnavailable. To be repeated then.
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
    raise Refused("session_busy", "more was asked while it was being deleted: repeat this when nobody asks any more")


async def _purged(gateway: Gateway, tenant: Tenant, doomed: list[TurnToDelete]) -> list[TurnId]:
    """Those that the log has forgotten now. None, when one was running: persistence is to hear of its end before."""
    was_running = False
    for turn in doomed:
        was_running |= turn.is_running and await _is_stopped(gateway, TurnKey(tenant, turn.turn))
    if was_running:
        return []
    # While the log can tell: whoever would settle them later finds nothing.
    for turn in doomed:
        await _settle(gateway, TurnKey(tenant, turn.turn))
    for turn in doomed:
        await gateway.log.purge(TurnKey(tenant, turn.turn))
    return [turn.turn for turn in doomed]


async def _is_stopped(gateway: Gateway, key: TurnKey) -> bool:
    """Ends a turn; False when the log has nothing of it, so that there is nothing to end."""
    try:
        await cancel(gateway.log, key)
    except TurnUnknown:
        return False
    return True


async def _stop_asking(gateway: Gateway, key: TurnKey) -> None:
    """Ends a batch before its turns: it would ask as fast as they are deleted."""
    try:
        turn = await gateway.log.turn(key)
        if turn.request is not None and turn.request.batch is not None:
            await cancel(gateway.log, key)
    except TurnUnknown:
        return


async def _settle(gateway: Gateway, key: TurnKey) -> None:
    """Settles what limits hold for a turn that has just ended, as its generator does, who may be dead: once."""
    try:
        turn = await gateway.log.turn(key)
    except TurnUnknown:
        return
    is_fresh = turn.ended_at is not None and datetime.now(UTC) - turn.ended_at < SETTLED_WITHIN
    if is_fresh:
        await Settlement(gateway.limits.counters, gateway.limits.slots).settle(key, turn)
    if turn.request is None or turn.request.batch is None or turn.outcome == "completed":
        return
    if turn.progress is not None and turn.progress.message_batch is not None:
        # What Anthropic has answered of it is paid for, and nobody will read how much that was: it stays held.
        await _stop_message_batch(gateway, key, turn.progress.message_batch)
    elif is_fresh:
        await _give_back(gateway, key, Blob(turn.request.batch.sha256, turn.request.batch.bytes))


async def _give_back(gateway: Gateway, key: TurnKey, inputs: Blob) -> None:
    """What is held for inputs of a batch that were never asked."""
    try:
        lines = batch.split_inputs(await gateway.bodies.read(key.tenant, inputs))
    except BlobUnknown:
        return
    tombstones = Tombstones(gateway.connection)

    async def look(number: int) -> None:
        child = batch.child_key(key, number)
        if not await gateway.log.is_known(child):
            await give_back(tombstones, gateway.limits.counters, child, lines[number])

    for first in range(0, len(lines), LOOKED_AT_ONCE):
        numbers = range(first, min(first + LOOKED_AT_ONCE, len(lines)))
        await asyncio.gather(*(look(number) for number in numbers))


async def _stop_message_batch(gateway: Gateway, key: TurnKey, name: str) -> None:
    """Has what Anthropic has of a batch cancelled: once the log has forgotten it, nobody knows that it runs."""
    asked = msgspec.json.encode(CancelMessageBatch(name))
    timeout_s = gateway.settings.query_timeout_s
    await gateway.services.request(key.tenant, CANCEL_MESSAGE_BATCH, asked, timeout_s=timeout_s, role=GENERATORS)
