"""A turn is accepted once its request is in the log: one turn for each idempotency key, whoever repeats the POST."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable

import structlog
from starlette.requests import Request

from tailrace.gateway import metrics
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.limits.limiter import Admission
from tailrace.gateway.turns import store_blobs
from tailrace.gateway.turns.auto_idempotency import AUTO, key_of
from tailrace.gateway.turns.conversation import place_of
from tailrace.gateway.turns.delete import delete
from tailrace.gateway.turns.request_body import NewTurn, request_of
from tailrace.proto import entries
from tailrace.proto.chain import START
from tailrace.proto.errors import EntryTooLarge, FenceLost, LogFull, LogUnavailable, Refused, TurnUnknown
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Claim
from tailrace.proto.records import GetTurn
from tailrace.proto.schema import require_small_schema, schema_of
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

UNCLEAR = (
    "the log did not answer in time, and the turn may still be stored: "
    "repeating the POST is safe with the same Idempotency-Key, and without one it may ask twice"
)
TOO_LONG = (
    "the conversation, with what was said before, is too long to be stored: "
    "begin a new session, or go on from an earlier turn (`parent`)"
)
DELETED = "the conversation was deleted while this was asked: ask again, and it begins anew"
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")


async def accept(
    gateway: Gateway,
    caller: Principal,
    ask: NewTurn,
    idempotency_key: str | None,
    raw: bytes,
    admission: Admission | None = None,
) -> tuple[TurnKey, entries.Request]:
    """Puts the request into the log, once for each idempotency key; returns the turn and what it was asked.

    What `admission` takes for it from the caller's limits is given back when no new turn comes of it.
    """
    async with admission or gateway.limits.admission(caller) as taking:
        if idempotency_key == AUTO:
            idempotency_key, raw = await key_of(gateway, caller.tenant, ask)

        async def prepared(turn: TurnId) -> entries.Request:
            return await _request(gateway, caller, ask, turn, taking)

        return await accept_request(gateway, caller.tenant, prepared, idempotency_key, raw, taking)


async def _request(
    gateway: Gateway, caller: Principal, ask: NewTurn, turn: TurnId, admission: Admission
) -> entries.Request:
    """What is asked, at its place, with what limits hold for it and what is long lifted out; raises Refused."""
    place = await place_of(gateway, caller.tenant, ask)
    offer = await gateway.catalogue.offer(caller.tenant)
    asked = request_of(ask, place, gateway.settings.max_tokens, offer, by=caller.key, cache=gateway.settings.cache)
    if (schema := schema_of(asked.options)) is not None:
        require_small_schema(schema)
        await gateway.judge.check_schema(schema, caller.tenant)
    asked = await admission.reserve_turn(turn, asked)
    return await store_blobs.check_in(gateway, TurnKey(caller.tenant, turn), asked, admission)


async def accept_request(
    gateway: Gateway,
    tenant: Tenant,
    prepared: Callable[[TurnId], Awaitable[entries.Request]],
    idempotency_key: str | None,
    raw: bytes,
    admission: Admission,
) -> tuple[TurnKey, entries.Request]:
    """The same for what `prepared` makes of a turn's id, if a new turn comes of it; inside of `admission`."""
    # Elsewhere: to hash 30 MB takes 15 ms, for which every stream would stand still.
    body = (await asyncio.to_thread(hashlib.sha256, raw)).hexdigest() if idempotency_key is not None else ""
    mine = Claim(TurnId(new_id()), body)
    async with gateway.holds.release_after(tenant, mine.turn):
        return await _accepted(gateway, tenant, prepared, idempotency_key, mine, admission)


async def _accepted(
    gateway: Gateway,
    tenant: Tenant,
    prepared: Callable[[TurnId], Awaitable[entries.Request]],
    idempotency_key: str | None,
    mine: Claim,
    admission: Admission,
) -> tuple[TurnKey, entries.Request]:
    # Before its place is sought: a repeat that interrupts what its session is busy with would end its own turn.
    if (repeated := await known(gateway, tenant, idempotency_key, mine)) is not None:
        return repeated
    # Before anything is looked up for it, or interrupted.
    await admission.count_request()
    try:
        request = await prepared(mine.turn)
    except Refused:
        # What is refused claims no key. But another holder of it may have been quicker, and be what it is busy with.
        if (repeated := await known(gateway, tenant, idempotency_key, mine)) is None:
            raise
        return repeated
    if gateway.fullness.is_full:
        raise LogFull("the log is nearly full, and keeps the rest for running turns: try again later")
    claim = await gateway.claims.claim(tenant, idempotency_key, mine) if idempotency_key is not None else mine
    if claim != mine and (repeated := await repeat(gateway, tenant, claim, mine)) is not None:
        return repeated
    # A claim's first owner may have died before it could ask: then this one asks in its place.
    key = TurnKey(tenant, claim.turn)
    try:
        # The append's own time-out is looked at between two tries, and one try of a silent server takes seconds.
        async with asyncio.timeout(gateway.settings.accept_timeout_s):
            await gateway.log.append(key, START, request)
    except FenceLost:
        # Only another holder of the same idempotency key can have been first.
        if (repeated := await repeat(gateway, tenant, claim, mine)) is None:
            raise
        return repeated
    except (LogUnavailable, TimeoutError) as error:
        admission.keep()
        # Nobody was told of this turn yet, so its id would help nobody; what to do next does.
        raise LogUnavailable(UNCLEAR) from error
    except EntryTooLarge as error:
        raise Refused("body_too_large", TOO_LONG) from error
    admission.keep()
    if request.parent is not None and await is_deleted(gateway, TurnKey(tenant, request.parent)):
        # Whoever deleted the parent was quicker than this, and may not have seen it (ADR 15).
        try:
            await delete(gateway, tenant, "turn", key.turn)
        except Refused as refused:
            if refused.code != "turn_not_found":
                raise
        raise Refused("parent_not_found", DELETED)
    metrics.ACCEPTED.inc()
    logger.info("turn accepted", turn=key.turn, model=request.model)
    return key, request


async def known(
    gateway: Gateway, tenant: Tenant, idempotency_key: str | None, mine: Claim
) -> tuple[TurnKey, entries.Request] | None:
    """The turn of that key, if there is one already."""
    claim = await gateway.claims.find(tenant, idempotency_key) if idempotency_key is not None else None
    return await repeat(gateway, tenant, claim, mine) if claim is not None else None


async def repeat(gateway: Gateway, tenant: Tenant, claim: Claim, mine: Claim) -> tuple[TurnKey, entries.Request] | None:
    """The turn that a key was claimed for, if it was asked already; raises Refused when it was for another body."""
    if claim.body_sha256 != mine.body_sha256:
        raise Refused("idempotency_key_reused", "this Idempotency-Key was used with another body: use a new one")
    key = TurnKey(tenant, claim.turn)
    try:
        turn = await gateway.log.turn(key)
    except TurnUnknown:
        return None
    if turn.request is None:
        return None
    metrics.REPEATED.inc()
    return key, turn.request


async def is_deleted(gateway: Gateway, parent: TurnKey) -> bool:
    """Whether what a turn goes on from is gone, once that turn is in the log.

    A deletion purges first and looks for follow-ups afterwards: it finds those that came before the purge, and those
    that came after it find their parent gone. When nobody can say, what was asked stands.
    """
    try:
        if not await gateway.log.has_end(parent):
            await gateway.history.ask(parent.tenant, GetTurn(parent.turn))
    except LogUnavailable:
        return False
    except Refused as refused:
        return refused.code == "turn_not_found"
    return False


def claimed_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or not all(map(IDEMPOTENCY_KEY.fullmatch, keys)):
        raise Refused("idempotency_key_invalid", "an Idempotency-Key is one header: 1 to 200 visible ASCII characters")
    return keys[0] if keys else None
