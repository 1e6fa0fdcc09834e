"""Deleting: running turns end, then the log forgets, then the database. In this order nothing can come back.

What the log has is what persistence would record again, and what a generator writes to would stay in the log. Killed
at any point it is begun again by the same request, which finds what is left.
"""

from gateway.cancel import cancel
from gateway.context import Gateway
from proto.errors import Refused, TurnUnknown
from proto.ids import Tenant, TurnId
from proto.resources import Delete, Doomed, Kind
from proto.subjects import TurnKey

# Each is up to a thousand turns. Who asks on in a session as fast as it is deleted does not keep this here for ever.
ROUNDS_MAX = 100


async def delete(gateway: Gateway, tenant: Tenant, kind: Kind, name: str) -> int:
    """Deletes a turn with its follow-ups, a session, or a project with its sessions; returns how many turns it were.

    Raises Refused when there is no such thing, or not all of it could be deleted; LogUnavailable. To be repeated then.
    """
    gone: set[TurnId] = set()
    purged: list[TurnId] = []
    for _ in range(ROUNDS_MAX):
        left = await gateway.history.ask(tenant, Delete(kind, name, tuple(purged)))
        if not left.turns:
            return len(gone)
        purged = await _purged(gateway, tenant, left.turns)
        gone.update(purged)
    raise Refused("session_busy", "more was asked while it was being deleted: repeat this when nobody asks any more")


async def _purged(gateway: Gateway, tenant: Tenant, doomed: list[Doomed]) -> list[TurnId]:
    """Those that the log has forgotten now. None, when one was running: persistence is to hear of its end before."""
    was_running = False
    for turn in doomed:
        was_running |= turn.is_running and await _is_stopped(gateway, TurnKey(tenant, turn.turn))
    if was_running:
        return []
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
