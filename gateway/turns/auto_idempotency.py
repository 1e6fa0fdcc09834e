"""`Idempotency-Key: auto`: a key that is derived from the request, so that the same request gets the same turn.

A turn that failed or was cancelled is not reused: then the same key with a number is used, so that all clients follow
the same sequence of keys to the same turn.
"""

from collections.abc import Iterable
from operator import attrgetter

import msgspec

from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.turns.request_body import NewTurn, check_turn
from tailrace.gateway.turns.submission import Feature, TurnSubmission
from tailrace.gateway.turns.submit import hash_body
from tailrace.proto import long_strings
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Claims, TurnLog

AUTO = "auto"
# Failed turns in a row, after which the request is submitted without a key.
FAILED_MAX = 20


def is_chosen(key: str | None) -> bool:
    """Returns whether a client has chosen the key. Such a key names its turn also after that has failed.

    A derived key, which contains a space, then names a new turn.
    """
    return key is not None and key != AUTO and " " not in key


def auto_idempotency_feature(log: TurnLog, claims: Claims) -> Feature[TurnSubmission]:
    """Returns the step that replaces the key `auto` by the derived one."""

    async def derive(submission: TurnSubmission) -> None:
        if submission.idempotency_key == AUTO:
            # Only a checked turn can be encoded: it is not nested too deep.
            await convert_body(submission.body_bytes, check_turn, submission.new_turn)
            new_turn, principal = submission.new_turn, submission.principal
            if principal.user is not None:
                # It is the user of the turn, whatever the body says.
                new_turn = msgspec.structs.replace(new_turn, user=principal.user)
            submission.idempotency_key, submission.raw = await derive_key(log, claims, principal.tenant, new_turn)

    return Feature(derive, attrgetter("idempotency_key"))


async def derive_key(log: TurnLog, claims: Claims, tenant: Tenant, new_turn: NewTurn) -> tuple[str | None, bytes]:
    """Returns the key, or None, and the request as canonical bytes. Raises LogUnavailable."""
    canonical = b"".join(await long_strings.encode(new_turn, is_sorted=True))
    # The space keeps it apart from each Idempotency-Key that a client sends: none can contain one.
    key = f"{AUTO} {await hash_body(canonical)}"
    keys = [key, *(f"{key} {number}" for number in range(1, FAILED_MAX))]
    return await find_usable_key(log, claims, tenant, keys), canonical


async def find_usable_key(log: TurnLog, claims: Claims, tenant: Tenant, keys: Iterable[str]) -> str | None:
    """Returns the first of `keys` that is free or whose turn has not failed and was not cancelled; None without one.

    Raises LogUnavailable.
    """
    for key in keys:
        claim = await claims.find(tenant, key)
        if claim is None or not await _has_failed(log, TurnKey(tenant, claim.turn)):
            return key
    return None


async def _has_failed(log: TurnLog, key: TurnKey) -> bool:
    try:
        turn = await log.read_turn(key)
    except TurnUnknown:
        # It was deleted, or the gateway that claimed the key died before it stored the request: the key can be used.
        return False
    return turn.outcome in ("failed", "cancelled")
