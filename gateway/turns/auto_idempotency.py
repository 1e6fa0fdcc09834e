"""`Idempotency-Key: auto`: a key that is derived from the request, so that the same request gets the same turn.

A turn that failed or was cancelled is not reused: then the next key is derived from this one and that turn's id, so
that all clients follow the same sequence of keys to the same turn.
"""

import hashlib

import msgspec

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.subjects import TurnKey

AUTO = "auto"
# Failed turns in a row, after which the request is submitted without a key.
FAILED_MAX = 20


async def derive_key(gateway: Gateway, tenant: Tenant, ask: NewTurn) -> tuple[str | None, bytes]:
    """Returns the key, or None, and the request as canonical bytes. Raises LogUnavailable."""
    canonical = msgspec.json.encode(ask, order="sorted")
    key = _key(canonical)
    for _ in range(FAILED_MAX):
        claim = await gateway.claims.find(tenant, key)
        if claim is None or not await _has_failed(gateway, TurnKey(tenant, claim.turn)):
            return key, canonical
        key = _key(f"{key}:{claim.turn}".encode())
    return None, canonical


def _key(canonical: bytes) -> str:
    return f"{AUTO}:{hashlib.sha256(canonical).hexdigest()}"


async def _has_failed(gateway: Gateway, key: TurnKey) -> bool:
    try:
        turn = await gateway.log.turn(key)
    except TurnUnknown:
        return False
    return turn.end is not None and turn.end.outcome != "completed"
