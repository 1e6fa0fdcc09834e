"""Idempotency keys of requests: the header of a client, and the keys that the gateway derives."""

import re
from collections.abc import Iterable

from starlette.requests import Request

from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Claims, TurnLog

IDEMPOTENCY_KEY = re.compile(r"^[\x21-\x7e]{1,200}$")
AUTO = "auto"
"""A client sends this to get a key that is derived from its request."""


def idempotency_key_of(request: Request) -> str | None:
    """Returns the value of the Idempotency-Key header, or None. Raises Refused if it is malformed or repeated."""
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or not all(map(IDEMPOTENCY_KEY.fullmatch, keys)):
        raise Refused("idempotency_key_invalid", "send one Idempotency-Key header of 1 to 200 visible ASCII characters")
    return keys[0] if keys else None


def is_chosen(key: str | None) -> bool:
    """Returns whether a client has chosen the key. Such a key names its turn even after the turn has failed.

    A derived key, which contains a space, then names a new turn.
    """
    return key is not None and key != AUTO and " " not in key


async def find_usable_key(log: TurnLog, claims: Claims, tenant: Tenant, keys: Iterable[str]) -> str | None:
    """Returns the first of `keys` that is free, or whose turn neither failed nor was cancelled; None if none is.

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
        # The turn was deleted, or the gateway that claimed the key died before it stored the request: use the key.
        return False
    return turn.outcome in ("failed", "cancelled")
