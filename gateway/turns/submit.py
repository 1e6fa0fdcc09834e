"""Submits a turn: stores its request entry in the log, once for each idempotency key."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TypeVar

import msgspec
import structlog
from starlette.requests import Request

from tailrace.gateway import metrics
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.last_event_id import cursor_text
from tailrace.gateway.http.log_fullness import LogFullness
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.reader import refuse_when_draining
from tailrace.gateway.turns.api_version import sampling_of
from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.request_body import build_entry, check_turn
from tailrace.gateway.turns.submission import (
    Submission,
    SubmitFeatures,
    TurnSubmission,
    run_features,
)
from tailrace.proto import entries
from tailrace.proto.chain import START
from tailrace.proto.errors import (
    CursorUnknown,
    EntryTooLarge,
    FenceLost,
    LogFull,
    LogUnavailable,
    Refused,
    TurnUnknown,
)
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey, parse_cursor
from tailrace.proto.nats import Claim, Claims, Tombstones, TurnLog
from tailrace.proto.runtime.flag import Flag

logger = structlog.get_logger()

S = TypeVar("S", bound=Submission)
StoredTurn = tuple[TurnKey, entries.Request]
"""A turn in the log, and its request entry."""

UNCLEAR = (
    "the log did not answer in time, and the turn may still be stored: "
    "repeating the POST is safe with the same Idempotency-Key; without one it may start a second turn"
)
TOO_LONG = (
    "the conversation with its history is too long to be stored: "
    "start a new session, or continue from an earlier turn (`parent`)"
)
IDEMPOTENCY_KEY = re.compile(r"^[\x21-\x7e]{1,200}$")
# Hashing this many bytes takes 10 µs, less than starting a thread.
HASHED_INLINE_BYTES_MAX = 16 * 1024


class TurnSubmitter:
    """Stores request entries in the log, each once for its idempotency key."""

    def __init__(
        self,
        log: TurnLog,
        claims: Claims,
        tombstones: Tombstones,
        conversations: Conversations,
        catalogue: Catalogue,
        settings: Settings,
        fullness: LogFullness,
        draining: Flag,
        features: SubmitFeatures,
        expect: Callable[[TurnKey], AbstractAsyncContextManager[None]],
    ) -> None:
        """`expect` surrounds the append of a turn that the response follows."""
        self._log = log
        self._expect = expect
        self._claims = claims
        self._tombstones = tombstones
        self._conversations = conversations
        self._catalogue = catalogue
        self._max_tokens = settings.max_tokens
        self._cache = settings.cache
        self._accept_timeout_s = settings.accept_timeout_s
        self._fullness = fullness
        self._draining = draining
        self._features = features

    async def submit(self, submission: TurnSubmission, cursor: Seq | None = None) -> StoredTurn:
        """Stores the new turn. Returns the turn and its request entry; for a repeated POST, those of the first POST.

        With `cursor`, nothing is stored: the turn is the one that has this entry. The response header
        `tailrace-ignored` names the sampling parameters that were removed. Raises Refused, LogError.
        """
        await run_features(self._features.prepare, submission)
        await convert_body(submission.body_bytes, check_turn, submission.new_turn)
        key, entry = await (self.store(submission, self._build) if cursor is None else self._resume(submission, cursor))
        if removed := [name for name in sampling_of(submission.new_turn.options) if name not in (entry.options or {})]:
            submission.response_headers.append(lambda _: {"tailrace-ignored": ", ".join(removed)})
        return key, entry

    async def store(self, submission: S, build: Callable[[S], Awaitable[entries.Request]]) -> StoredTurn:
        """Like `submit`, but stores the entry that `build` makes. Runs only the features of `admit` and `stored`."""
        refuse_when_draining(self._draining)
        async with submission.cleanup:
            submission.body_sha256 = await hash_body(submission.raw)
            # Look for a repeat before `build`, which may interrupt a running turn: perhaps the turn of this very POST.
            if (repeated := await self._find_repeat(submission)) is not None:
                return repeated
            # Check this before blobs are stored: those of a refused turn would fill the disk, too.
            self._fullness.require_room()
            await run_features(self._features.admit, submission)
            try:
                submission.entry = await build(submission)
            except Refused:
                # A refused request claims no key. But a concurrent POST with the same key may have stored its turn, and
                # that turn may be the reason for this refusal: return it.
                if (repeated := await self._find_repeat(submission)) is not None:
                    return repeated
                raise
            if (repeated := await self._claim(submission)) is not None:
                return repeated
            try:
                async with self._expect(submission.turn) if submission.is_followed else nullcontext():
                    await self._append(submission)
            except FenceLost:
                # Only a concurrent POST with the same idempotency key can have appended.
                if (repeated := await self._load(submission.turn)) is None:
                    raise
                return repeated
            await run_features(self._features.stored, submission)
        metrics.ACCEPTED.inc()
        turn, entry = submission.turn, submission.entry
        logger.info("turn accepted", turn=turn.turn, tenant=turn.tenant, session=entry.session, model=entry.model)
        return turn, entry

    async def _build(self, submission: TurnSubmission) -> entries.Request:
        """Returns the request entry of a turn: its messages at their position in the conversation."""
        principal, new_turn = submission.principal, submission.new_turn

        async def may_interrupt() -> bool:
            # A concurrent POST with the same key may have stored its turn, which would be the one to interrupt.
            return await self._find_repeat(submission) is None

        position = await self._conversations.find_position(principal.tenant, new_turn, may_interrupt, principal.key)
        models = await self._catalogue.offer(principal.tenant)
        submission.entry = build_entry(
            new_turn,
            position,
            self._max_tokens,
            models,
            credential=principal.key,
            user=principal.user,
            cache=self._cache,
            body_sha256=submission.body_sha256,
        )
        await run_features(self._features.amend, submission)
        return submission.entry

    async def _resume(self, submission: Submission, cursor: Seq) -> StoredTurn:
        """Returns the turn that has an entry at `cursor`, if it is this POST's: of its tenant, body and key (R78).

        An Idempotency-Key without a turn is allowed: some clients send a new key with each POST.
        Raises Refused, LogUnavailable.
        """
        refuse_when_draining(self._draining)
        tenant = submission.principal.tenant
        key = await self._log.find_turn_at(tenant, cursor) if cursor != BEFORE_FIRST else None
        stored = await self._load(key) if key is not None else None
        if stored is None:
            raise cursor_mismatch(f"{cursor} is not an event id of an answer of yours, or its answer has left the log")
        key, entry = stored
        if entry.body_sha256 != await hash_body(submission.raw):
            raise cursor_mismatch(f"{cursor} is an event id of the answer to another body")
        if submission.idempotency_key is not None:
            claim = await self._claims.find(tenant, submission.idempotency_key)
            if claim is not None and claim.turn != key.turn:
                raise cursor_mismatch(f"{cursor} is an event id of a turn with another Idempotency-Key")
        return stored

    async def _find_repeat(self, submission: Submission) -> StoredTurn | None:
        """Returns the turn that was stored for the idempotency key; None without one, or without a key.

        Raises Refused if the key was used with another body.
        """
        claim = submission.repeats
        if submission.idempotency_key is not None:
            claim = await self._claims.find(submission.principal.tenant, submission.idempotency_key)
        return await self._adopt(submission, claim) if claim is not None else None

    async def _claim(self, submission: Submission) -> StoredTurn | None:
        """Claims the idempotency key, if there is one. Returns the turn that another POST has stored for it, or None.

        A claim whose turn was deleted is replaced. Without a key, the claim may be that of an earlier POST.
        """
        (tenant, own_turn), idempotency_key = submission.own_turn, submission.idempotency_key
        if idempotency_key is None:
            if submission.repeats is None:
                return None
            repeated = await self._adopt(submission, submission.repeats)
            _mark_other_turn(submission)
            return repeated
        own_claim = Claim(own_turn, submission.body_sha256)
        claim = await self._claims.claim(tenant, idempotency_key, own_claim)
        while claim != own_claim:
            if (repeated := await self._adopt(submission, claim)) is not None:
                return repeated
            if _mark_other_turn(submission):
                return None
            claim = await self._claims.replace(tenant, idempotency_key, claim, own_claim)
        submission.turn = submission.own_turn
        return None

    async def _adopt(self, submission: Submission, claim: Claim) -> StoredTurn | None:
        """Returns the turn of another POST's claim if it is stored, else None. Raises Refused if its body is another.

        If the turn is neither stored nor deleted, the gateway that claimed the key may have died before its append: the
        submission then uses the turn's id. A slot is held under the id that the submission has when it reserves the
        slot: `_find_repeat` runs before, so this is normally the claimed id. A claim that appears later does not change
        the holder of the slot.
        """
        if claim.body_sha256 != submission.body_sha256:
            raise Refused("idempotency_key_reused", "this Idempotency-Key was used with another body: use a new one")
        claimed = TurnKey(submission.principal.tenant, claim.turn)
        if (repeated := await self._load(claimed)) is None:
            is_deleted = await self._tombstones.exists(claimed)
            submission.turn = submission.own_turn if is_deleted else claimed
        return repeated

    async def _load(self, key: TurnKey) -> StoredTurn | None:
        """Returns the turn of an earlier POST if it is stored."""
        try:
            turn = await self._log.read_turn(key)
        except TurnUnknown:
            return None
        if turn.request is None:
            return None
        metrics.REPEATED.inc()
        return key, turn.request

    async def _append(self, submission: Submission) -> None:
        """Appends the entry. Raises FenceLost, LogFull, LogUnavailable (the outcome is unclear), Refused."""
        # Set before the append: the entry may also be stored if this task is cancelled during it.
        submission.may_be_stored = True
        try:
            # `append` checks its own timeout between two tries only, and one try may take seconds.
            async with asyncio.timeout(self._accept_timeout_s):
                await self._log.append(submission.turn, START, submission.entry)
        except (LogUnavailable, TimeoutError) as error:
            # The client does not know the turn's id; the error says how to repeat. The SDKs repeat a POST after a 503.
            raise LogUnavailable(UNCLEAR, may_repeat=submission.is_repeatable) from error
        except (FenceLost, LogFull):
            submission.may_be_stored = False
            raise
        except EntryTooLarge as error:
            submission.may_be_stored = False
            raise Refused("body_too_large", TOO_LONG) from error


def _mark_other_turn(submission: Submission) -> bool:
    """Returns whether the submission uses the id of another POST's turn; if so, its entry gets a mark of its own.

    The other gateway may still append. Both must not believe that the stored entry is theirs: each has reserved money
    for it, and its end settles one reservation.
    """
    is_other = submission.turn != submission.own_turn
    if is_other:
        submission.entry = msgspec.structs.replace(submission.entry, submission=submission.own_turn.turn)
    return is_other


async def hash_body(*pieces: bytes) -> str:
    """Returns the SHA-256 of a request body or of a file in hex, also of one in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        if len(piece) <= HASHED_INLINE_BYTES_MAX:
            digest.update(piece)
        else:
            # In a thread: 30 MB take 15 ms, during which the event loop would serve no stream.
            await asyncio.to_thread(digest.update, piece)
    return digest.hexdigest()


def cursor_mismatch(reason: str) -> Refused:
    """Returns the error for a POST whose cursor resumes no turn. It must not start one, which would cost money."""
    return Refused("cursor_mismatch", f"`Last-Event-ID`: {reason}: send the last `id:` of this answer and its body")


def cursor_of_post(request: Request) -> Seq | None:
    """Returns the cursor of a POST that resumes its answer, from `Last-Event-ID` or the query; None: a new turn.

    fetch-event-source and sse.js repeat their POST with this header when the stream was cut. Raises Refused.
    """
    text = cursor_text(request)
    if not text:
        return None
    try:
        return parse_cursor(text)
    except CursorUnknown as error:
        raise cursor_mismatch(f"{text[:40]!r} is not an event id") from error


def is_repeatable(request: Request) -> bool:
    """Returns whether a repeated POST gets the same turn."""
    return bool(idempotency_key_of(request) or cursor_of_post(request))


def idempotency_key_of(request: Request) -> str | None:
    """Returns the value of the Idempotency-Key header, or None. Raises Refused if it is malformed or repeated."""
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or not all(map(IDEMPOTENCY_KEY.fullmatch, keys)):
        raise Refused("idempotency_key_invalid", "send one Idempotency-Key header of 1 to 200 visible ASCII characters")
    return keys[0] if keys else None
