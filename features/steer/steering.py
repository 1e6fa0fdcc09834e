"""Steering: stores the successor of a turn, once and at one place in the conversation, and ends the turn.

The successor is a queued turn (PROTOCOL R79), stored before the steered turn is cancelled: if this process dies between
the two, the answer goes on to its end, and the message follows then. The claim `steer TURN` makes one turn the
successor. A further steer of the same turn follows that one, and so on, so all readers see one order.
"""

from dataclasses import replace
from functools import partial

import msgspec
import structlog

from tailrace.features.common.follow_up import settings_of
from tailrace.features.common.line import Line, PlaceTaken, make_line, place_behind
from tailrace.features.steer.endings import Endings, end_at_boundary
from tailrace.features.steer.service import At, steered_turn
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.draft import Stored, TurnDraft
from tailrace.gateway.turns.idempotency_key import AUTO
from tailrace.gateway.turns.repeats import IN_A_ROW_MAX
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.submit import UNCLEAR, TurnSubmitter
from tailrace.proto.errors import LogError, LogUnavailable, Refused, TurnUnknown, not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnId, new_id
from tailrace.proto.nats import BlobStore, Claim, Claims, TurnLog
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.records import GetLastTurn

logger = structlog.get_logger()

MANY = (
    f"{IN_A_ROW_MAX} messages in a row have ended or await an answer: repeat the request when an answer is complete, "
    "or cancel the running turn and send the message with POST /v1/turns"
)
FAR = f"turn {{turn}} was steered {IN_A_ROW_MAX} times: steer {{place}}, which follows it"
REUSED = "this Idempotency-Key was used with another body or turn: send a new key"


class Steering:
    """Puts messages into answers that run."""

    def __init__(
        self,
        log: TurnLog,
        claims: Claims,
        line: Line,
        blobs: BlobStore,
        history: HistoryClient,
        submitter: TurnSubmitter,
        endings: Endings,
    ) -> None:
        self._log = log
        self._claims = claims
        self._line = line
        self._blobs = blobs
        self._history = history
        self._submitter = submitter
        self._endings = endings

    async def steer(self, draft: TurnDraft, steered: ScopedKey, at: At) -> Stored:
        """Stores the turn of `draft` after the turn `steered`, or after the last steer of it, and ends that one.

        If that turn has ended, the new turn is the next one of its session. A repeated request, with the same key and
        body, gets the same turn. Raises Refused, LogError.
        """
        _refuse_tool_results(draft.new_turn)
        new_turn = await self._inherit(draft, steered)
        draft = replace(
            draft,
            raw=await self._identify(draft, steered),
            new_turn=new_turn,
            added_bytes=len(msgspec.json.encode([new_turn.system, new_turn.tools])),
            # A request for a stream may have one. A steer resumes nothing.
            cursor=None,
        )
        place, sha256 = steered, await hash_body(draft.raw)
        for _ in range(IN_A_ROW_MAX + 1):
            name = place_behind(place.turn)
            found = await self._claims.read(place.tenant, name)
            if found is not None and found.claim.body_sha256 != sha256:
                # If its turn is never stored, the place is this message's.
                before = await self._line.follow(place.tenant, name, Claim(TurnId(new_id()), sha256))
                if before is not None:
                    place = ScopedKey(place.scope, before)
                continue
            one = replace(draft, idempotency_key=name)
            if found is None or not await self._log.has_turn(ScopedKey(place.scope, found.claim.turn)):
                # A repetition of a request that has claimed the place. Those that wait for its turn wait on.
                if found is not None and await self._claims.renew(place.tenant, name, found) is None:
                    continue
                one = await self._queue_behind(place, one)
            try:
                stored = await self._submitter.submit(one)
                await self._line.require_place(stored.key, name, sha256)
            except Refused as refused:
                if refused.code != "idempotency_key_reused":
                    raise
                # Another steer has claimed the place meanwhile. The next look finds its claim.
                continue
            except LogUnavailable as error:
                if draft.is_repeatable or isinstance(error, PlaceTaken):
                    raise
                # Without the client's key, a repetition is another message.
                raise LogUnavailable(UNCLEAR, may_repeat=False) from error
            end = partial(self._end_turns_before, stored, draft.principal.key, at)
            if at == "now":
                try:
                    await end()
                except LogError as error:
                    # The message is stored: it is accepted, whatever the log answers now.
                    logger.warning("steered turn not ended yet", turn=stored.key.turn, error=str(error))
                    self._endings.start(stored.key.plain, end)
            elif steered_turn(stored) is not None:
                self._endings.start(stored.key.plain, end)
            return stored
        raise Refused("session_busy", FAR.format(turn=steered.turn, place=place.turn))

    async def _identify(self, draft: TurnDraft, steered: ScopedKey) -> bytes:
        """Returns bytes that are the same for repetitions of this request only. Raises Refused for a key of another."""
        key = draft.idempotency_key
        if key is None:
            return b"%s %b" % (new_id().encode(), draft.raw)
        raw = b"%s %s %b" % (key.encode(), steered.turn.encode(), draft.raw)
        if key != AUTO:
            claim = Claim(steered.turn, await hash_body(raw))
            if await self._claims.claim(steered.tenant, key, claim) != claim:
                raise Refused("idempotency_key_reused", REUSED)
        return raw

    async def _inherit(self, draft: TurnDraft, steered: ScopedKey) -> NewTurn:
        """Returns the new turn with the session and settings of the steered turn. Raises Refused, LogUnavailable."""
        new_turn = msgspec.structs.replace(draft.new_turn, on_busy="queue")
        try:
            request = (await self._log.read_turn(steered)).request
        except TurnUnknown:
            record = await self._history.read_past_turn(steered)
            _require_user(draft, record.user)
            # The record has no tools, options and limits.
            return msgspec.structs.replace(
                new_turn,
                session=record.session,
                project=record.project,
                model=record.model,
                user=record.user,
                metadata=record.metadata,
            )
        if request is None or request.batch is not None:
            raise not_found("turn")
        _require_user(draft, request.user)
        if not request.store:
            raise Refused("request_invalid", "the turn has `store: false`, so no turn can follow it: cancel it instead")
        return msgspec.structs.replace(new_turn, **await settings_of(self._blobs, steered.tenant, request))

    async def _queue_behind(self, place: ScopedKey, draft: TurnDraft) -> TurnDraft:
        """Returns the draft of a turn that waits for `place` and the turns behind it, or for the session's newest turn.

        Other turns may wait for `place` already (`on_busy: queue`). With the same parent, the new one were a branch.
        Raises Refused if too many wait or were steered in a row.
        """
        new_turn, scope = draft.new_turn, place.scope
        if new_turn.session is None or not await self._log.has_turn(place) or await self._log.has_end(place.plain):
            return draft
        newest = await self._history.query(scope, GetLastTurn(new_turn.session))
        row = await self._row_of(ScopedKey(scope, newest.turn))
        if place not in row:
            # The newest turn is of another branch.
            row = await self._row_of(place)
            draft = replace(draft, new_turn=msgspec.structs.replace(new_turn, parent=place.turn))
        if len(row) > IN_A_ROW_MAX:
            raise Refused("session_busy", MANY)
        return draft

    async def _row_of(self, key: ScopedKey) -> list[ScopedKey]:
        """Returns the turn and those that it has waited for, newest first, at most IN_A_ROW_MAX + 1."""
        row = [key]
        while len(row) <= IN_A_ROW_MAX:
            try:
                request = (await self._log.read_turn(row[-1])).request
            except TurnUnknown:
                break
            if request is None or not request.is_queued or request.parent is None:
                break
            row.append(ScopedKey(key.scope, request.parent))
        return row

    async def _end_turns_before(self, stored: Stored, by: str | None, at: At) -> None:
        """Ends the turn that the stored one waits for, and those for which that one waits. Raises LogError.

        At the boundary, those that wait end at once, and the running one after its content block.
        """
        scope, turn, request = stored.key.scope, stored.key.turn, stored.entry
        for _ in range(IN_A_ROW_MAX + 1):
            if not request.is_queued or request.parent is None:
                return
            parent = ScopedKey(scope, request.parent)
            try:
                before = await self._log.read_turn(parent)
                if before.end is None:
                    if at == "boundary" and not await self._waits(before, scope):
                        await end_at_boundary(self._log, parent, turn, by)
                        return
                    before = await cancel(self._log, parent, "steer", by, turn)
                if before.attempt:
                    # It has run, so those before it had ended.
                    return
            except TurnUnknown:
                # It was deleted, or has left the log.
                return
            assert before.request is not None  # noqa: S101  # a stored turn has one
            request = before.request
            if before.end is not None and before.end.successor == turn:
                turn = parent.turn

    async def _waits(self, turn: Turn, scope: Scope) -> bool:
        """Returns whether the turn waits for another one. Raises LogUnavailable."""
        if turn.attempt or turn.request is None or not turn.request.is_queued or turn.request.parent is None:
            return False
        parent = ScopedKey(scope, turn.request.parent)
        return await self._log.has_turn(parent) and not await self._log.has_end(parent.plain)


def _require_user(draft: TurnDraft, user: str | None) -> None:
    """Raises Refused if the credential names another user than that of the steered turn."""
    # In a tenant with private users, the turn was found: the user owns it.
    is_shared = draft.principal.access.is_whole_tenant
    if is_shared and draft.principal.user is not None and draft.principal.user != user:
        raise not_found("turn")


def _refuse_tool_results(new_turn: NewTurn) -> None:
    """Raises Refused if a message has a result of a tool: the call may still be written."""
    for message in new_turn.messages or ():
        if isinstance(message.content, list) and any(block.get("type") == "tool_result" for block in message.content):
            raise Refused(
                "request_invalid",
                "`message` has a `tool_result`, which belongs to an answer that has ended: send it with POST /v1/turns",
                param="message",
            )


def make_steering(gateway: Gateway, endings: Endings) -> Steering:
    """Returns the service of a gateway."""
    return Steering(
        gateway.log,
        gateway.claims,
        make_line(gateway),
        gateway.blob_store,
        gateway.history,
        gateway.submitter,
        endings,
    )
