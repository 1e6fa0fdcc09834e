"""Submits a turn or a batch: stores its request entry in the log, once for each idempotency key."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from tailrace.gateway import metrics
from tailrace.gateway.auth.admission import Admission, Admissions
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.reader import refuse_when_draining
from tailrace.gateway.turns.api_version import sampling_of
from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.deleted_parent import ParentCheck
from tailrace.gateway.turns.draft import Draft, Retry, Stored, TurnDraft, cursor_mismatch
from tailrace.gateway.turns.file_references import has_files
from tailrace.gateway.turns.idempotency_key import AUTO
from tailrace.gateway.turns.optional_steps import OptionalSteps, check_fields, join_steps
from tailrace.gateway.turns.queue_estimate import QueueEstimate
from tailrace.gateway.turns.repeats import Repeats
from tailrace.gateway.turns.request_body import build_entry, check_turn
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.proto import entries
from tailrace.proto.chain import START
from tailrace.proto.errors import EntryTooLarge, FenceLost, LogFull, LogUnavailable, Refused
from tailrace.proto.forced_tools import require_offered
from tailrace.proto.ids import Seq, TurnId, TurnKey, new_id
from tailrace.proto.nats import Claim, TurnLog
from tailrace.proto.nats.counters import RESERVED_WITHIN_S
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.schema import schema_of

logger = structlog.get_logger()

D = TypeVar("D", bound=Draft)
BuiltEntry = tuple[entries.Request, int]
"""A request entry, and its size with the conversation before it and without its blobs; 0 if that is unknown."""
Build = Callable[[D, TurnKey, TurnKey, Admission | None, AsyncExitStack], Awaitable[BuiltEntry]]
"""Makes the request entry of a POST that was admitted, and reserves what its turn needs. Raises Refused, LogError.

Called with the draft; a key that no other POST has, for pins; the key under which slots are held: if another POST has
claimed the idempotency key and not stored its turn, that of its turn; the counts and reservations, None where no limit
applies; the memory and pins, which are released when the submission is over.
"""

UNCLEAR = (
    "the log did not answer in time, and the turn may still be stored: "
    "repeating the POST is safe with the same Idempotency-Key; without one it may start a second turn"
)
TOO_LATE = (
    f"the request was not ready within {RESERVED_WITHIN_S:.0f} s of its reservation, and was not stored: "
    "repeat it, a batch with fewer inputs"
)
TOO_LONG = (
    "the conversation with its history is too long to be stored: "
    "start a new session, or continue from an earlier turn (`parent`)"
)


class TurnSubmitter:
    """Stores request entries in the log, each once for its idempotency key."""

    def __init__(
        self,
        log: TurnLog,
        repeats: Repeats,
        conversations: Conversations,
        catalogue: Catalogue,
        settings: Settings,
        fullness: LogFullness,
        queue: QueueEstimate,
        blobs: RequestBlobs,
        parents: ParentCheck,
        draining: Flag,
        admissions: Admissions,
        expect: Callable[[TurnKey], AbstractAsyncContextManager[None]],
        pseudonym: Callable[[str], str],
    ) -> None:
        """`expect` surrounds the append of a turn that the response follows. `pseudonym`: see `build_entry`."""
        self._log = log
        self._repeats = repeats
        self._conversations = conversations
        self._catalogue = catalogue
        self._settings = settings
        self._fullness = fullness
        self._queue = queue
        self._blobs = blobs
        self._parents = parents
        self._draining = draining
        self._admissions = admissions
        self.steps = OptionalSteps()
        """The steps of all features."""
        self._expect = expect
        self.pseudonym = pseudonym

    def add_steps(self, steps: OptionalSteps) -> None:
        """Adds the steps of a feature. Raises ValueError if there are such steps already."""
        self.steps = join_steps(self.steps, steps)

    async def submit(self, draft: TurnDraft) -> Stored:
        """Stores a new turn. Returns it; for a repeated POST, the turn of the first POST.

        With a cursor, nothing is stored: the turn is that of the cursor's entry. The response header
        `tailrace-ignored` names the sampling parameters that were removed. Raises Refused, LogError.
        """
        steps, principal, new_turn = self.steps, draft.principal, draft.new_turn
        check_fields(steps, new_turn)
        if new_turn.prompt is not None:
            new_turn = await steps.render_prompt(new_turn, principal.access.tenant)
            draft = replace(draft, new_turn=new_turn)
        await convert_body(draft.body_bytes, check_turn, new_turn)
        if draft.idempotency_key == AUTO:
            key, raw = await steps.derive_key(principal, new_turn)
            draft = replace(draft, idempotency_key=key, raw=raw)
        if draft.cursor is not None:
            stored = await self._resume(draft, draft.cursor)
        else:
            if steps.find_retry is not None and draft.idempotency_key is None:
                draft = replace(draft, retry=await steps.find_retry(draft))
            stored = await self.store(draft, self._build)
        given = sampling_of(new_turn.options) if new_turn.options is not None else []
        if removed := [name for name in given if name not in (stored.entry.options or {})]:
            draft.response_headers.append({"tailrace-ignored": ", ".join(removed)})
        return stored

    async def find_equal(self, draft: TurnDraft, turn: TurnId) -> Stored | None:
        """Returns `turn` if it answers a request equal to `draft`, with the key `auto`. Nothing is stored.

        Raises Refused (also if that turn was stopped or deleted), LogUnavailable.
        """
        await convert_body(draft.body_bytes, check_turn, draft.new_turn)
        key, raw = await self.steps.derive_key(draft.principal, draft.new_turn)
        draft = replace(draft, idempotency_key=key, raw=raw, body_sha256=await hash_body(raw))
        if (stored := await self._repeats.load(ScopedKey(draft.principal.access, turn))) is None:
            # Refuses the request if the turn was deleted.
            await self._repeats.find_repeat(draft)
        return stored if stored is not None and stored.entry.body_sha256 == draft.body_sha256 else None

    async def store(self, draft: D, build: Build[D]) -> Stored:
        """Stores the entry that `build` makes, of a turn or a batch; see `submit`. The order of the steps is fixed:

        a repeated POST is found before anything is counted, stored or cancelled; money is reserved before the key is
        claimed; a request that is refused claims nothing and gives back what it has reserved. Raises Refused, LogError.
        """
        refuse_when_draining(self._draining)
        steps, limiter, key, retry = self.steps, self._admissions.limiter, draft.idempotency_key, draft.retry
        draft = replace(draft, body_sha256=await hash_body(draft.raw))
        scope = draft.principal.access
        own = TurnKey(scope.tenant, TurnId(new_id()))
        may_exist = bool(key or (retry and retry.claim))
        # Before `build`, which may interrupt a running turn: perhaps the turn of this very POST.
        repeat = await self._repeats.find_repeat(draft) if may_exist else None
        if isinstance(repeat, Stored):
            return _repeated(repeat, retry)
        # Before blobs are stored: those of a refused turn would fill the disk, too.
        self._fullness.require_room()
        if isinstance(draft, TurnDraft):
            self._queue.check(own.tenant)
        limiter.log_share.check(own.tenant, len(draft.raw))
        admission, is_kept = limiter.admission(draft.principal), False
        # A slot is held under this id. A claim that appears later does not change the holder of the slot.
        turn = own if repeat is None else repeat.turn
        async with AsyncExitStack() as held:
            try:
                if admission is not None:
                    await admission.count_request()
                try:
                    entry, entry_bytes = await build(draft, own, turn, admission, held)
                except Refused:
                    # A refused request claims no key. But a concurrent POST with the same key may have stored its turn,
                    # and that turn may be the reason for this refusal: return it.
                    if isinstance(repeat := await self._repeats.find_repeat(draft), Stored):
                        return _repeated(repeat, retry)
                    raise
                when_delivered = None if retry is None else retry.when_delivered
                if steps.claim_retry is not None and retry is not None and turn == own:
                    when_delivered = await steps.claim_retry(own.tenant, retry, Claim(own.turn, draft.body_sha256))
                # Another gateway may replace a claim whose turn is not stored in time (PROTOCOL R137). After a pause of
                # this process, the append would come too late.
                until = asyncio.get_running_loop().time() + self._settings.accept_timeout_s
                repeat = await self._repeats.claim(own, draft) if may_exist else None
                if isinstance(repeat, Stored):
                    return _repeated(repeat, retry)
                turn = own if repeat is None else repeat.turn
                if isinstance(draft, TurnDraft) and draft.new_turn.on_busy == "queue" and steps.take_place is not None:
                    entry = await held.enter_async_context(steps.take_place(draft, turn, entry))
                    until = asyncio.get_running_loop().time() + self._settings.accept_timeout_s
                if repeat is not None:
                    # The other gateway may still append. Only one gateway may take the stored entry for its own: each
                    # has reserved money for it, and its end settles one reservation.
                    entry = msgspec.structs.replace(entry, submission=own.turn)
                if steps.add_trace is not None:
                    entry = steps.add_trace(turn, entry)
                may_repeat = bool(key or when_delivered)
                try:
                    async with self._expect(turn) if draft.is_followed else nullcontext():
                        now = asyncio.get_running_loop().time()
                        if now > until:
                            raise LogUnavailable(UNCLEAR, may_repeat=may_repeat)
                        append_until = math.inf if admission is None else admission.append_until
                        if now > append_until:
                            raise LogUnavailable(TOO_LATE)
                        # Before the append: the entry may also be stored if this task is cancelled during it.
                        is_kept = True
                        # `append` checks its own timeout between two tries only, and one try may take seconds.
                        async with asyncio.timeout_at(min(now + self._settings.accept_timeout_s, append_until)):
                            await self._log.append(turn, START, entry)
                except (FenceLost, LogFull, EntryTooLarge) as error:
                    is_kept = False
                    # Only a concurrent POST with the same idempotency key can have appended.
                    if isinstance(error, FenceLost):
                        found = await self._repeats.load_repeat(ScopedKey(scope, turn.turn), draft)
                        if found is not None:
                            return _repeated(found, retry)
                    if isinstance(error, EntryTooLarge):
                        raise Refused("body_too_large", TOO_LONG) from error
                    raise
                except (LogUnavailable, TimeoutError) as error:
                    if not is_kept:
                        raise
                    # The client does not know the turn's id; the error says how to repeat. The SDKs repeat a POST after
                    # a 503.
                    raise LogUnavailable(UNCLEAR, may_repeat=may_repeat) from error
            finally:
                if admission is not None:
                    if not is_kept:
                        await admission.release()
                    draft.response_headers.append(admission.headers(draft.path))
            # An entry may be larger than its body: it has the whole conversation.
            limiter.log_share.add(own.tenant, max(len(draft.raw), entry_bytes))
            if entry.parent is not None:
                await self._parents.check_parent(ScopedKey(scope, turn.turn), entry.parent)
        metrics.ACCEPTED.inc()
        logger.info("turn accepted", turn=turn.turn, tenant=turn.tenant, session=entry.session, model=entry.model)
        return Stored(ScopedKey(scope, turn.turn), entry, when_delivered)

    async def _build(
        self, draft: TurnDraft, own: TurnKey, turn: TurnKey, admission: Admission | None, held: AsyncExitStack
    ) -> BuiltEntry:
        """Returns the request entry of a turn at its position in the conversation."""
        principal, new_turn, body_bytes = draft.principal, draft.new_turn, draft.body_bytes
        if new_turn.messages is not None and has_files([message.content for message in new_turn.messages]):
            files = self.steps.open_files(principal.access, body_bytes, held)
            new_turn = msgspec.structs.replace(new_turn, messages=await files.insert(new_turn.messages))
            body_bytes += files.bytes

        async def may_interrupt() -> bool:
            # A concurrent POST with the same key may have stored its turn, which would be the one to interrupt.
            return not isinstance(await self._repeats.find_repeat(draft), Stored)

        entry = build_entry(
            new_turn,
            await self._conversations.find_position(principal.access, new_turn, may_interrupt, principal.key),
            self._settings.max_tokens,
            await self._catalogue.offer(principal.access.tenant),
            pseudonym=self.pseudonym,
            principal=principal,
            cache=self._settings.cache,
            body_sha256=draft.body_sha256,
        )
        if (ahead := self._queue.estimate_position(principal.access.tenant)) is not None:
            entry = msgspec.structs.replace(entry, queue_position=ahead)
            draft.response_headers.append({"tailrace-queue-position": str(ahead)})
        if entry.options is not None:
            require_offered(entry)
            if (schema := schema_of(entry.options)) is not None:
                await self.steps.check_schema(schema, principal.access.tenant)
        if admission is not None:
            entry = await admission.reserve_turn(turn.turn, entry)
        return await self._blobs.store_blobs(own, entry, body_bytes, admission, held)

    async def _resume(self, draft: TurnDraft, cursor: Seq) -> Stored:
        """Returns the turn that has an entry at `cursor`, if it is this POST's: of its tenant, body and key (R78).

        An Idempotency-Key without a turn is allowed: some clients send a new key with each POST.
        Raises Refused, LogUnavailable.
        """
        refuse_when_draining(self._draining)
        draft = replace(draft, body_sha256=await hash_body(draft.raw))
        match = partial(self._match, draft)
        scope, seq = draft.principal.access, self._log.restores.find(cursor)
        stored = await self._log.find_turn_at(scope, seq, match) if seq else None
        if seq is None:
            # The log was restored since. A key names the turn, whose stream begins with a reset.
            found = await self._repeats.find_repeat(draft)
            stored = found if isinstance(found, Stored) else None
        if stored is None:
            raise cursor_mismatch(
                f"{cursor} is no event id of this POST's answer: it belongs to another body or session, or its answer "
                "has left the log"
            )
        if draft.idempotency_key is not None and await self._repeats.has_other_turn(draft.idempotency_key, stored.key):
            raise cursor_mismatch(f"{cursor} is an event id of a turn with another Idempotency-Key")
        return _repeated(stored, None)

    async def _match(self, draft: TurnDraft, key: ScopedKey, request: entries.Request) -> Stored | None:
        """Returns the turn that answers the POST if `key` is it, or one that has steered it."""
        stored = await self._repeats.find_steered(Stored(key, request), draft.body_sha256)
        has_body = stored.entry.body_sha256 == draft.body_sha256
        return stored if has_body and draft.new_turn.session in (None, stored.entry.session) else None


def _repeated(stored: Stored, retry: Retry | None) -> Stored:
    """Returns the turn of the earlier POST as the result of this one, which repeats it."""
    metrics.REPEATED.inc()
    return stored if retry is None else stored._replace(when_delivered=retry.when_delivered)
