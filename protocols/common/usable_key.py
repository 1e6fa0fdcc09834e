"""The first key of several that a gateway derives from a request which a repeated request may use."""

from collections.abc import Iterable

from tailrace.gateway.turns.idempotency_key import is_reusable
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.nats import Claims, TurnLog
from tailrace.proto.ownership import Scope, ScopedKey


async def find_usable_key(log: TurnLog, claims: Claims, scope: Scope, keys: Iterable[str]) -> str | None:
    """Returns the first of `keys` that is free, or whose turn a repeated request gets; None if none is.

    Raises Refused if the turn of such a key was stopped, LogUnavailable.
    """
    for key in keys:
        claim = await claims.find(scope.tenant, key)
        if claim is None:
            return key
        try:
            found = await log.read_turn(ScopedKey(scope, claim.turn))
        except TurnUnknown:
            # The turn was deleted, or the gateway that claimed the key died before it stored the request: `Repeats`
            # finds out.
            return key
        if is_reusable(claim.turn, found):
            return key
    return None
