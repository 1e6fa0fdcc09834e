"""`Idempotency-Key: auto`: a key that is derived from the request, so that the same request gets the same turn.

A turn that failed or was cancelled is not reused: then the next key is derived from this one and that turn's id, so
that all clients follow the same sequence of keys to the same turn.
"""

import hashlib

import msgspec

from tailrace.gateway.turns.request_body import NewTurn, check
from tailrace.gateway.turns.submission import Feature, TurnSubmission, has
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Claims, TurnLog
from tailrace.proto.subjects import TurnKey

AUTO = "auto"
# Failed turns in a row, after which the request is submitted without a key.
FAILED_MAX = 20


def auto_idempotency_feature(log: TurnLog, claims: Claims) -> Feature[TurnSubmission]:
    """Returns the step that replaces the key `auto` by the derived one."""

    async def derive(submission: TurnSubmission) -> None:
        if submission.idempotency_key == AUTO:
            # Only a checked turn can be encoded: it is not nested too deep.
            check(submission.new_turn)
            new_turn, principal = submission.new_turn, submission.principal
            if principal.user is not None:
                # It is the user of the turn, whatever the body says.
                new_turn = msgspec.structs.replace(new_turn, user=principal.user)
            submission.idempotency_key, submission.raw = await derive_key(log, claims, principal.tenant, new_turn)

    return Feature(has("idempotency_key"), derive)


async def derive_key(log: TurnLog, claims: Claims, tenant: Tenant, new_turn: NewTurn) -> tuple[str | None, bytes]:
    """Returns the key, or None, and the request as canonical bytes. Raises LogUnavailable."""
    canonical = msgspec.json.encode(new_turn, order="sorted")
    key = _key(canonical)
    for _ in range(FAILED_MAX):
        claim = await claims.find(tenant, key)
        if claim is None or not await _has_failed(log, TurnKey(tenant, claim.turn)):
            return key, canonical
        key = _key(f"{key}:{claim.turn}".encode())
    return None, canonical


def _key(canonical: bytes) -> str:
    # The space keeps it apart from each Idempotency-Key that a client sends: none can contain one.
    return f"{AUTO} {hashlib.sha256(canonical).hexdigest()}"


async def _has_failed(log: TurnLog, key: TurnKey) -> bool:
    try:
        turn = await log.read_turn(key)
    except TurnUnknown:
        return False
    return turn.end is not None and turn.end.outcome != "completed"
