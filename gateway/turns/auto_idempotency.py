"""`Idempotency-Key: auto`: the key is made of the question, so that the same question gets the turn that answered it.

What failed or was cancelled answers nothing: then the key is the next one, made of this one and of that turn, and
whoever asks comes along the same keys to the same turn.
"""

import hashlib

import msgspec

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.subjects import TurnKey

AUTO = "auto"
# Turns that came to nothing, one after the other, until a question is asked without a key.
IN_VAIN_MAX = 20


async def key_of(gateway: Gateway, tenant: Tenant, ask: NewTurn) -> tuple[str | None, bytes]:
    """The key of what is asked, and what is asked as bytes that do not depend on how it was sent.

    Raises LogUnavailable.
    """
    told = msgspec.json.encode(ask, order="sorted")
    key = _key(told)
    for _ in range(IN_VAIN_MAX):
        claim = await gateway.claims.find(tenant, key)
        if claim is None or not await _was_in_vain(gateway, TurnKey(tenant, claim.turn)):
            return key, told
        key = _key(f"{key}:{claim.turn}".encode())
    return None, told


def _key(told: bytes) -> str:
    return f"{AUTO}:{hashlib.sha256(told).hexdigest()}"


async def _was_in_vain(gateway: Gateway, key: TurnKey) -> bool:
    try:
        turn = await gateway.log.turn(key)
    except TurnUnknown:
        return False
    return turn.end is not None and turn.end.outcome != "completed"
