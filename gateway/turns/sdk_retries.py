"""Repetitions of a request that an SDK sends without an idempotency key: they get the turn of the first request.

The SDKs of OpenAI and Anthropic count their repetitions in a header. The first request stores a claim of its turn,
which is removed when the answer was delivered. A repetition uses the claim's turn, unless that turn has failed, was
cancelled or has readers (PROTOCOL R115).
"""

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from operator import attrgetter

import msgspec
from starlette.requests import Request

from tailrace.gateway.turns.auto_idempotency import has_failed
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.gateway.turns.submission import CountedRequest, Feature, TurnSubmission
from tailrace.gateway.turns.submit import hash_body, is_repeatable
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Claim, Claims
from tailrace.proto.subjects import TurnKey

RETRY_COUNT = "x-stainless-retry-count"
COUNT = re.compile(r"[0-9]{1,4}")


def counted_request(request: Request) -> CountedRequest | None:
    """Returns which repetition the request is, if its SDK says so.

    Returns None with an Idempotency-Key or a cursor, and if the count is malformed. Raises Refused.
    """
    counts = request.headers.getlist(RETRY_COUNT)
    if len(counts) != 1 or COUNT.fullmatch(counts[0]) is None or is_repeatable(request):
        return None
    return CountedRequest(request.url.path, int(counts[0]))


def sdk_retry_features(
    claims: Claims, presence: ReaderPresence
) -> tuple[Feature[TurnSubmission], Feature[TurnSubmission]]:
    """Returns the steps: `prepare` finds the turn of a repetition, `amend` claims the turn of any other request."""

    async def find(submission: TurnSubmission) -> None:
        if submission.counted is None or submission.counted.repetition == 0:
            return
        tenant = submission.principal.tenant
        key = await _key(submission, submission.counted, await hash_body(submission.raw))
        found = await claims.read(tenant, key)
        if found is None:
            return
        turn = TurnKey(tenant, found.claim.turn)
        if await has_failed(presence.log, turn) or await presence.has_readers_anywhere(turn):
            return
        # Two clients may have sent equal requests, and repeat them at the same time: one of them gets the turn.
        revision = await claims.renew(tenant, key, found)
        if revision is not None:
            submission.repeats = found.claim
            submission.when_delivered = _remover(claims, tenant, key, revision)

    async def claim(submission: TurnSubmission) -> None:
        if submission.counted is None or submission.repeats is not None:
            return
        tenant = submission.principal.tenant
        key = await _key(submission, submission.counted, submission.body_sha256)
        # An older claim is overwritten: equal requests that are no repetitions are different turns.
        revision = await claims.put(tenant, key, Claim(submission.turn.turn, submission.body_sha256))
        submission.when_delivered = _remover(claims, tenant, key, revision)

    return Feature(find, attrgetter("counted")), Feature(claim, attrgetter("counted"))


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
