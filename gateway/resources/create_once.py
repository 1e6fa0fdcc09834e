"""Creates a resource, such as a session, once for each Idempotency-Key."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.turns.idempotency_key import AUTO, idempotency_key_of
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnId, new_id
from tailrace.proto.nats import Claim, Claims
from tailrace.proto.ownership import owned_key

R = TypeVar("R")


async def create_once(
    request: ApiRequest,
    raw: bytes,
    claims: Claims,
    kind: str,
    chosen: str | None,
    create: Callable[[str], Awaitable[R]],
    find: Callable[[str], Awaitable[R]],
    *,
    id_prefix: str = "",
    derives_key: bool = False,
) -> R:
    """Returns the result of `create` for the id `chosen`, or for a new id; for a repeated request, the result of
    `find`.

    `raw` is the body, or other bytes that a repeated request has, too. `derives_key`: the key `auto` is derived from
    it. Raises Refused if the Idempotency-Key was used with other bytes, or is `auto` and is not derived.
    """
    new = f"{id_prefix}{new_id()}"
    idempotency_key = idempotency_key_of(request)
    if idempotency_key is None:
        return await create(chosen or new)
    body_sha256 = await hash_body(raw)
    if idempotency_key == AUTO and derives_key:
        idempotency_key = f"{AUTO} {body_sha256}"
    elif idempotency_key == AUTO:
        # Two new sessions often have equal bodies: a derived key would make one session of them.
        message = f"`POST /v1/{kind}s` does not support `auto`; send an Idempotency-Key of your own."
        raise Refused("idempotency_key_invalid", message)

    async def find_or_none(name: str) -> R | None:
        try:
            return await find(name)
        except Refused as refused:
            if refused.code != f"{kind}_not_found":
                raise
            return None

    # The space separates it from keys of turns: no Idempotency-Key can contain a space.
    tenant, key = request.access.tenant, owned_key(request.access, f"{kind}s {idempotency_key}")
    # In this order: a concurrent request with the same key claims the key before it creates anything.
    if chosen is not None and await find_or_none(chosen) is not None and await claims.find(tenant, key) is None:
        # Another request has created `chosen`. With a claim, a repetition would return it as if this one had.
        return await create(chosen)
    own = Claim(TurnId(new), body_sha256)
    claim = await claims.claim(tenant, key, own)
    if claim.body_sha256 != own.body_sha256:
        message = f"this Idempotency-Key was used with another {kind if derives_key else 'body'}: use a new one"
        raise Refused("idempotency_key_reused", message)
    name = chosen or claim.turn
    if claim != own and (found := await find_or_none(name)) is not None:
        return found
    try:
        # The first request did not create it, or it was deleted later: it is created under the same id.
        return await create(name)
    except Refused as refused:
        if refused.code != f"{kind}_exists" or (claim == own and chosen is not None):
            raise
        # A concurrent repetition has created it.
        return await find(name)
