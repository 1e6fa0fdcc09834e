"""Submits a turn: stores its request entry in the log, once for each idempotency key."""

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
from tailrace.gateway.turns.auto_idempotency import AUTO, derive_key
from tailrace.gateway.turns.conversation import find_position
from tailrace.gateway.turns.delete import delete
from tailrace.gateway.turns.request_body import NewTurn, build_entry
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
    "repeating the POST is safe with the same Idempotency-Key; without one it may start a second turn"
)
TOO_LONG = (
    "the conversation with its history is too long to be stored: "
    "start a new session, or continue from an earlier turn (`parent`)"
)
DELETED = "the conversation was deleted while this turn was submitted: repeat the request to start a new one"
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")


async def submit(
    gateway: Gateway,
    principal: Principal,
    new_turn: NewTurn,
    idempotency_key: str | None,
    raw: bytes,
    admission: Admission | None = None,
) -> tuple[TurnKey, entries.Request]:
    """Stores the request entry, once for each idempotency key. Returns the turn and its entry.

    `admission` reserves from the principal's limits; the reservations are released when no new turn is stored.
    """
    async with admission or gateway.limiter.admission(principal) as open_admission:
        if idempotency_key == AUTO:
            idempotency_key, raw = await derive_key(gateway, principal.tenant, new_turn)

        async def build(turn: TurnId) -> entries.Request:
            return await _request(gateway, principal, new_turn, turn, open_admission)

        return await submit_request(gateway, principal.tenant, build, idempotency_key, raw, open_admission)


async def _request(
    gateway: Gateway, principal: Principal, new_turn: NewTurn, turn: TurnId, admission: Admission
) -> entries.Request:
    """Builds the entry: the turn at its position in the conversation, with reservations and references to blobs."""
    position = await find_position(gateway, principal.tenant, new_turn)
    models = await gateway.catalogue.offer(principal.tenant)
    settings = gateway.settings
    entry = build_entry(new_turn, position, settings.max_tokens, models, by=principal.key, cache=settings.cache)
    if (schema := schema_of(entry.options)) is not None:
        require_small_schema(schema)
        await gateway.schema_checker.check_schema(schema, principal.tenant)
    entry = await admission.reserve_turn(turn, entry)
    return await store_blobs.store(gateway, TurnKey(principal.tenant, turn), entry, admission)


async def submit_request(
    gateway: Gateway,
    tenant: Tenant,
    build: Callable[[TurnId], Awaitable[entries.Request]],
    idempotency_key: str | None,
    raw: bytes,
    admission: Admission,
) -> tuple[TurnKey, entries.Request]:
    """Like `submit`, but `build(turn_id)` makes the request entry. Must run inside `admission`."""
    # Hash in a thread: 30 MB take 15 ms, during which the event loop would serve no stream.
    body = (await asyncio.to_thread(hashlib.sha256, raw)).hexdigest() if idempotency_key is not None else ""
    own_claim = Claim(TurnId(new_id()), body)
    async with gateway.blob_pins.release_after(tenant, own_claim.turn):
        return await _submit_once(gateway, tenant, build, idempotency_key, own_claim, admission)


async def _submit_once(
    gateway: Gateway,
    tenant: Tenant,
    build: Callable[[TurnId], Awaitable[entries.Request]],
    idempotency_key: str | None,
    own_claim: Claim,
    admission: Admission,
) -> tuple[TurnKey, entries.Request]:
    # Look for a repeat first: `build` applies `on_busy: interrupt`, which would cancel the repeated POST's own turn.
    if (repeated := await find_repeat(gateway, tenant, idempotency_key, own_claim)) is not None:
        return repeated
    # Check the rate limit before `build` looks anything up or interrupts a turn.
    await admission.count_request()
    try:
        request = await build(own_claim.turn)
    except Refused:
        # A refused request claims no key. But a concurrent POST with the same key may have stored its turn, which
        # may be the reason for this refusal: return that turn.
        if (repeated := await find_repeat(gateway, tenant, idempotency_key, own_claim)) is None:
            raise
        return repeated
    if gateway.log_fullness.is_full:
        raise LogFull("the log is nearly full, and the rest is kept for running turns: retry later")
    claim = await gateway.claims.claim(tenant, idempotency_key, own_claim) if idempotency_key is not None else own_claim
    if claim != own_claim and (repeated := await load_repeat(gateway, tenant, claim, own_claim)) is not None:
        return repeated
    # A claim without a turn: the gateway that claimed the key may have died before its append. Append under its id.
    key = TurnKey(tenant, claim.turn)
    try:
        # The append checks its own timeout only between two tries, and one try takes seconds if the server is silent.
        async with asyncio.timeout(gateway.settings.accept_timeout_s):
            await gateway.log.append(key, START, request)
    except FenceLost:
        # Only a concurrent POST with the same idempotency key can have appended.
        if (repeated := await load_repeat(gateway, tenant, claim, own_claim)) is None:
            raise
        return repeated
    except (LogUnavailable, TimeoutError) as error:
        # Keep the reservations: the turn may be stored. The client does not know its id; the error says how to repeat.
        admission.keep()
        raise LogUnavailable(UNCLEAR) from error
    except EntryTooLarge as error:
        raise Refused("body_too_large", TOO_LONG) from error
    admission.keep()
    if request.parent is not None and await is_deleted(gateway, TurnKey(tenant, request.parent)):
        # The parent was deleted concurrently, and the deletion may have missed this follow-up (ADR 15).
        try:
            await delete(gateway, tenant, "turn", key.turn)
        except Refused as refused:
            if refused.code != "turn_not_found":
                raise
        raise Refused("parent_not_found", DELETED)
    metrics.ACCEPTED.inc()
    logger.info("turn accepted", turn=key.turn, model=request.model)
    return key, request


async def find_repeat(
    gateway: Gateway, tenant: Tenant, idempotency_key: str | None, own_claim: Claim
) -> tuple[TurnKey, entries.Request] | None:
    """Returns the turn that was stored for the key, or None."""
    claim = await gateway.claims.find(tenant, idempotency_key) if idempotency_key is not None else None
    return await load_repeat(gateway, tenant, claim, own_claim) if claim is not None else None


async def load_repeat(
    gateway: Gateway, tenant: Tenant, claim: Claim, own_claim: Claim
) -> tuple[TurnKey, entries.Request] | None:
    """Returns the turn that a key was claimed for, if it is stored. Raises Refused when it was for another body."""
    if claim.body_sha256 != own_claim.body_sha256:
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
    """Returns whether the parent of a stored turn was deleted; False when persistence is unavailable.

    A deletion first purges the turn and then looks for its follow-ups. So it finds each follow-up that was stored
    before the purge. A follow-up that is stored after the purge finds here that its parent is gone.
    """
    try:
        if not await gateway.log.has_end(parent):
            await gateway.history.ask(parent.tenant, GetTurn(parent.turn))
    except LogUnavailable:
        return False
    except Refused as refused:
        return refused.code == "turn_not_found"
    return False


def idempotency_key_of(request: Request) -> str | None:
    """Returns the value of the Idempotency-Key header, or None. Raises Refused if it is malformed or repeated."""
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or not all(map(IDEMPOTENCY_KEY.fullmatch, keys)):
        raise Refused("idempotency_key_invalid", "send one Idempotency-Key header of 1 to 200 visible ASCII characters")
    return keys[0] if keys else None
