"""Repetitions of a request that an SDK sends without an idempotency key: they get the turn of the first request.

The SDKs of OpenAI and Anthropic count their repetitions in a header. The first request stores a claim of its turn,
which is removed when the answer was delivered. A repetition uses the claim's turn, unless that turn has failed, was
cancelled, has readers, or is older than an hour (PROTOCOL R115).
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import msgspec
from starlette.requests import Request

from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.gateway.turns.submission import CountedRequest, Feature, TurnSubmission
from tailrace.gateway.turns.submit import hash_body, is_repeatable
from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Claim, Claims, TurnLog

RETRY_COUNT = "x-stainless-retry-count"
COUNT = re.compile(r"[0-9]{1,4}")
PATHS = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/responses"})
# By default, the SDKs wait 10 minutes for a response, three times.
REUSE_MAX = timedelta(hours=1)
# The SDKs wait at least 0.375 s before a repetition. A claim that is newer than this is that of another request, whose
# turn may not have readers yet.
SUBSCRIBE_WAIT_S = 0.2


def counted_request(request: Request) -> CountedRequest | None:
    """Returns which repetition the request is, if its SDK says so.

    Returns None with an Idempotency-Key or a cursor, on other routes than the SDKs', and if the count is malformed.
    Raises Refused.
    """
    path: str = request.scope["path"]
    if path not in PATHS:
        return None
    counts = request.headers.getlist(RETRY_COUNT)
    if len(counts) != 1 or COUNT.fullmatch(counts[0]) is None or is_repeatable(request):
        return None
    return CountedRequest(path, int(counts[0]))


def sdk_retry_features(
    claims: Claims, presence: ReaderPresence
) -> tuple[Feature[TurnSubmission], Feature[TurnSubmission]]:
    """Returns the steps: `prepare` finds the turn of a repetition, `amend` claims the turn of any other request."""

    async def find(submission: TurnSubmission) -> None:
        if submission.counted is None:
            return
        tenant = submission.principal.tenant
        key = await _key(submission, submission.counted, await hash_body(submission.raw))
        found = await claims.read(tenant, key)
        if found is None:
            return
        if submission.counted.repetition == 0:
            # If this request is refused, its repetition must not get the answer to an earlier request that was equal.
            await claims.remove(tenant, key, found.revision)
            return
        turn = TurnKey(tenant, found.claim.turn)
        await asyncio.sleep(SUBSCRIBE_WAIT_S)
        if not await _is_reusable(presence.log, turn) or await presence.has_readers_anywhere(turn):
            return
        # Two clients may have sent equal requests, and repeat them at the same time: one of them gets the turn.
        revision = await claims.renew(tenant, key, found)
        if revision is not None:
            submission.repeats = found.claim
            submission.when_delivered = _remover(claims, tenant, key, revision)

    async def claim(submission: TurnSubmission) -> None:
        # A turn that is not the own one is that of the claim that `find` has renewed.
        if submission.counted is None or submission.turn != submission.own_turn:
            return
        tenant = submission.principal.tenant
        key = await _key(submission, submission.counted, submission.body_sha256)
        # An older claim is overwritten: equal requests that are no repetitions are different turns.
        revision = await claims.put(tenant, key, Claim(submission.turn.turn, submission.body_sha256))
        submission.when_delivered = _remover(claims, tenant, key, revision)

    return Feature(find, attrgetter("counted")), Feature(claim, attrgetter("counted"))


async def _is_reusable(log: TurnLog, key: TurnKey) -> bool:
    """Returns whether the turn is new enough, has not failed and was not cancelled. Raises LogUnavailable."""
    try:
        turn = await log.read_turn(key)
    except TurnUnknown:
        # It was deleted, or the gateway that claimed it has not stored the request.
        return True
    is_old = turn.asked_at is not None and datetime.now(UTC) - turn.asked_at > REUSE_MAX
    return not is_old and turn.outcome not in ("failed", "cancelled")


async def _key(submission: TurnSubmission, counted: CountedRequest, body_sha256: str) -> str:
    """Returns the key of the request: it differs for each credential, user, path, body, and header of the turn."""
    principal, new_turn = submission.principal, submission.new_turn
    headers = (new_turn.session, new_turn.project, new_turn.betas, new_turn.api_version)
    parts = (principal.key, principal.user, counted.path, headers, body_sha256)
    # The space keeps it apart from each Idempotency-Key that a client sends: none can contain one.
    return f"sdk {await hash_body(msgspec.json.encode(parts))}"


def _remover(claims: Claims, tenant: Tenant, key: str, revision: int) -> Callable[[], Awaitable[None]]:
    """Returns a function that removes the claim, so that a later request that is equal does not get its answer."""

    async def remove() -> None:
        with suppress(LogUnavailable):
            await claims.remove(tenant, key, revision)

    return remove
