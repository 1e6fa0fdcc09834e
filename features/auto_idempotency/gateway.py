"""`Idempotency-Key: auto`: a key that is derived from the request, so that the same request gets the same turn.

A turn that failed or lost its readers is not reused: then the same key with a number is used, so that all clients
follow the same sequence of keys to the same turn. After a turn that a client has stopped, the request is refused.
"""

from functools import partial

import msgspec

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.idempotency_key import AUTO
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto import long_strings
from tailrace.proto.nats import Claims, TurnLog
from tailrace.proto.ownership import owned_key
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.common.usable_key import find_usable_key

# Failed turns in a row, after which the request is submitted without a key.
FAILED_MAX = 20


async def derive_key(log: TurnLog, claims: Claims, principal: Principal, new_turn: NewTurn) -> tuple[str | None, bytes]:
    """Returns the key of a checked turn, or None, and the request as canonical bytes.

    Raises Refused if the turn of the key was stopped, LogUnavailable.
    """
    if principal.user is not None:
        # The JWT's user replaces the body's user.
        new_turn = msgspec.structs.replace(new_turn, user=principal.user)
    canonical = b"".join(await long_strings.encode(new_turn, is_sorted=True))
    # The space separates it from clients' Idempotency-Keys, which cannot contain a space.
    key = owned_key(principal.access, f"{AUTO} {await hash_body(canonical)}")
    keys = [key, *(f"{key} {number}" for number in range(1, FAILED_MAX))]
    return await find_usable_key(log, claims, principal.access, keys), canonical


def start(gateway: Gateway, _: NoSettings) -> Parts:
    """Makes the step that derives the key."""
    return Parts(steps=OptionalSteps(derive_key=partial(derive_key, gateway.log, gateway.claims)))


FEATURE = Feature(NoSettings, start)
