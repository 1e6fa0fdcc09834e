"""Repetitions of a request without an idempotency key, of SDKs and of proxies: they get the turn of the first request.

The SDKs of OpenAI and Anthropic count their repetitions in a header, and Envoy its own in another one. The first
request stores a claim of its turn for each count, which is removed when the answer was delivered. A repetition uses the
claim's turn, unless that turn has failed, was cancelled because its readers had left, has readers, or is older than an
hour (PROTOCOL R115). If the turn was stopped, the repetition is refused.

AI SDK does not count: its repetitions are equal to new requests, byte for byte. Without a stream, no client has seen a
part of an answer that was not delivered, so an equal request may get it. After a stop, such a request is a new turn.
"""

import asyncio
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import msgspec

from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.draft import Retry, TurnDraft, WhenDelivered
from tailrace.gateway.turns.idempotency_key import is_reusable
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Claim, Claims, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.settings import NoSettings

RETRY_COUNT = "x-stainless-retry-count"
# Envoy's count begins with 1. Its tries have one REQUEST_ID, but so may several requests of an app in a mesh, which
# passes on the id of the request that it answers: the id alone marks no repetition.
ATTEMPT_COUNT, REQUEST_ID = "x-envoy-attempt-count", "x-request-id"
COUNT = re.compile(r"[0-9]{1,4}")
# AI SDK appends its name to a name that the app has set. Its provider packages used without it do not repeat.
AI_SDK = re.compile(r"(?:^| )ai/[0-9]")
PATHS = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/responses"})
# By default, the SDKs wait 10 minutes for a response, three times.
REUSE_MAX = timedelta(hours=1)
# The SDKs wait at least 0.375 s before a repetition. A claim that is newer than this belongs to another request, whose
# turn may not have readers yet.
SUBSCRIBE_WAIT_S = 0.2
# AI SDK waits 2 s before a repetition, or as long as `Retry-After` says, 1 s at least. The turn of an equal request
# that is newer, and perhaps has no readers yet, belongs to another call, which runs at the same time.
UNCOUNTED_AGE_MIN = timedelta(seconds=1)

Sent = Literal["first", "again", "unknown"]
"""Whether a request was sent before; `unknown`: the client's SDK repeats, and does not count."""


class Counted(NamedTuple):
    """Whether a request is a repetition, by the headers of its client or proxy."""

    sent: Sent
    key: str
    """The key of the claim by which its repetitions find the turn."""


class SdkRetries:
    """Finds the turn of a repetition, and claims the turn of any other request whose SDK, or proxy, repeats."""

    def __init__(self, claims: Claims, presence: ReaderPresence) -> None:
        self._claims = claims
        self._presence = presence

    async def find_retry(self, draft: TurnDraft) -> Retry | None:
        """Returns the claim that the POST repeats, or where to claim its turn.

        Returns None on other routes than the SDKs', and for a request that nobody repeats. Waits for a moment before it
        returns a claim. Raises Refused if the turn of the claim was stopped, LogUnavailable.
        """
        if draft.path not in PATHS or not (counts := await _counts(draft)):
            return None
        scope, keys = draft.principal.access, tuple(counted.key for counted in counts)
        for sent, key in counts:
            found = await self._claims.read(scope.tenant, key)
            if found is None:
                continue
            if sent == "first":
                # If this request is refused, its repetition must not get the answer to an earlier equal request.
                await self._claims.remove(scope.tenant, key, found.revision)
                continue
            turn = ScopedKey(scope, found.claim.turn)
            await asyncio.sleep(SUBSCRIBE_WAIT_S)
            if not await _is_reusable(self._presence.log, turn, sent) or await self._presence.has_readers_anywhere(
                turn.plain
            ):
                continue
            # Two clients may have sent equal requests, and repeat them at the same time: one of them gets the turn.
            revision = await self._claims.renew(scope.tenant, key, found)
            if revision is None:
                break
            held = {key: revision}
            for other in keys:
                same = await self._claims.read(scope.tenant, other) if other != key else None
                if same is not None and same.claim.turn == found.claim.turn:
                    held[other] = same.revision
            return Retry(keys, found.claim, self._remover(scope.tenant, held))
        return Retry(keys)

    async def claim_retry(self, tenant: Tenant, retry: Retry, claim: Claim) -> WhenDelivered:
        """Stores the claims of a new turn. Returns the function that removes them. Raises LogUnavailable."""
        # An older claim is overwritten: equal requests that are no repetitions are different turns.
        return self._remover(tenant, {key: await self._claims.put(tenant, key, claim) for key in retry.keys})

    def _remover(self, tenant: Tenant, revisions: dict[str, int]) -> WhenDelivered:
        """Returns a function that removes the claims, so that a later equal request does not get the turn's answer."""

        async def remove() -> None:
            with suppress(LogUnavailable):
                for key, revision in revisions.items():
                    await self._claims.remove(tenant, key, revision)

        return remove


async def _counts(draft: TurnDraft) -> list[Counted]:
    """Returns what is known of the POST: first what the proxy says, which has seen it last."""
    counts: list[Counted] = []
    attempt, ids = _count(draft, ATTEMPT_COUNT), draft.headers.getlist(REQUEST_ID)
    if attempt is not None and len(ids) == 1:
        counts.append(Counted("again" if attempt > 1 else "first", await _key(draft, ids[0])))
    repeated = _count(draft, RETRY_COUNT)
    if repeated is not None:
        counts.append(Counted("again" if repeated else "first", await _key(draft)))
    elif RETRY_COUNT not in draft.headers and draft.is_json and AI_SDK.search(draft.headers.get("user-agent", "")):
        counts.append(Counted("unknown", await _key(draft)))
    return counts


def _count(draft: TurnDraft, header: str) -> int | None:
    """Returns the number in a header, or None if it is not there once."""
    values = draft.headers.getlist(header)
    return int(values[0]) if len(values) == 1 and COUNT.fullmatch(values[0]) else None


async def _is_reusable(log: TurnLog, key: ScopedKey, sent: Sent) -> bool:
    """Returns whether the turn is new enough, and a repetition gets it. Raises Refused if it was stopped,
    LogUnavailable.

    For a client that does not count, the turn must also be older than a moment, and a stopped turn is not reused: the
    request may be a new call, which a user has made on purpose.
    """
    try:
        turn = await log.read_turn(key)
    except TurnUnknown:
        # The turn was deleted, or the gateway that claimed it has not stored the request: `Repeats` finds out.
        return sent == "again"
    if turn.asked_at is not None:
        age = datetime.now(UTC) - turn.asked_at
        if age > REUSE_MAX or (sent == "unknown" and age < UNCOUNTED_AGE_MIN):
            return False
    if sent == "unknown" and turn.outcome == "cancelled":
        return False
    return is_reusable(key.turn, turn)


async def _key(draft: TurnDraft, *request_id: str) -> str:
    """Returns the key of the request: it differs for each credential, user, path, body, and header of the turn."""
    principal, new_turn = draft.principal, draft.new_turn
    headers = (new_turn.session, new_turn.project, new_turn.betas, new_turn.api_version)
    parts = (principal.key, principal.user, draft.path, headers, await hash_body(draft.raw), *request_id)
    # The space separates it from clients' Idempotency-Keys, which cannot contain a space.
    return f"sdk {await hash_body(msgspec.json.encode(parts))}"


def start(gateway: Gateway, _: NoSettings) -> Parts:
    """Makes the steps that find the turn of a repetition, and claim the turn of any other request."""
    retries = SdkRetries(gateway.claims, gateway.presence)
    return Parts(steps=OptionalSteps(find_retry=retries.find_retry, claim_retry=retries.claim_retry))


FEATURE = Feature(NoSettings, start)
