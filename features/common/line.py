"""The line of a conversation: which turn follows which, among steers and turns that wait (`on_busy: queue`).

The claim `steer TURN` names the turn behind a turn (PROTOCOL R137). Of messages that arrive at the same moment, one
takes the place, and the others go on to the place behind it. A claim is replaced, and never left out, so a turn whose
append came too late has no place.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from msgspec import UNSET
from msgspec.structs import replace

from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.draft import TurnDraft
from tailrace.gateway.turns.submit import UNCLEAR
from tailrace.proto.conversation import has_results
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable, Refused, TurnUnknown
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Claim, Claims, Tombstones, TurnLog
from tailrace.proto.ownership import ScopedKey

# The pause between two looks at a claim whose turn is not stored yet.
LOOK_EVERY_S = 0.1
RENEW_TRIES = 10
OVERTAKEN = "another message has taken the place of this one meanwhile: repeat the request"


class PlaceTaken(LogUnavailable):
    """Another message has the place of this one, whose turn is cancelled and deleted."""

    def __init__(self) -> None:
        super().__init__(OVERTAKEN)


def place_behind(turn: TurnId) -> str:
    """Returns the name of the claim of the turn behind a turn. No Idempotency-Key of a client contains a space."""
    return f"steer {turn}"


class Line:
    """The places of all conversations."""

    def __init__(self, log: TurnLog, claims: Claims, tombstones: Tombstones, deleter: Deleter, wait_s: float) -> None:
        """`wait_s`: how long a claim may name a turn that is not stored, until another turn takes its place."""
        self._log = log
        self._claims = claims
        self._tombstones = tombstones
        self._deleter = deleter
        self._wait_s = wait_s

    @asynccontextmanager
    async def take_place(self, draft: TurnDraft, turn: TurnKey, entry: Request) -> AsyncIterator[Request]:
        """See OptionalSteps."""
        if not _is_in_line(draft, entry):
            yield entry
            return
        entry = await self._join(turn, entry)
        yield entry
        try:
            await self.require_place(
                ScopedKey(draft.principal.access, turn.turn), _place_of(entry), entry.body_sha256 or ""
            )
        except PlaceTaken:
            await self._free_key(draft, turn)
            raise
        except LogUnavailable as error:
            # The turn is stored: a repeated POST finds it, unless it has no key.
            raise LogUnavailable(UNCLEAR, may_repeat=draft.is_repeatable or draft.retry is not None) from error

    async def _free_key(self, draft: TurnDraft, turn: TurnKey) -> None:
        """Removes the claim of the draft's key for `turn`: a repeated POST stores another turn."""
        key = draft.idempotency_key
        found = None if key is None else await self._claims.read(turn.tenant, key)
        if key is not None and found is not None and found.claim.turn == turn.turn:
            await self._claims.remove(turn.tenant, key, found.revision)

    async def _join(self, turn: TurnKey, entry: Request) -> Request:
        """Takes the place behind the entry's parent, or behind the last turn of the line from there on, for `turn`."""
        name, tenant = _place_of(entry), turn.tenant
        while True:
            mine = Claim(turn.turn, entry.body_sha256 or "")
            found = await self._claims.claim(tenant, name, mine)
            if found.turn == mine.turn:
                return entry
            before = await self.follow(tenant, name, mine)
            if before is None:
                return entry
            name = place_behind(before)
            entry = replace(
                entry,
                messages=entry.messages[entry.history :],
                history=0,
                thinking=None,
                previous=None,
                parent=before,
                is_queued=True,
            )

    async def follow(self, tenant: Tenant, name: str, mine: Claim) -> TurnId | None:
        """Returns the stored turn that the claim `name` names; None if the place is taken for `mine`.

        Waits for the turn: its gateway may have died before the append. `mine` replaces it then, and if it was deleted.
        Raises LogUnavailable.
        """
        seen, until = None, 0.0
        while (found := await self._claims.read(tenant, name)) is not None and found.claim.turn != mine.turn:
            key = TurnKey(tenant, found.claim.turn)
            if await self._log.has_turn(ScopedKey.whole(key)):
                return found.claim.turn
            if found.revision != seen:
                # Not the time since the request: its gateway has as much time as the one of any other claim.
                seen, until = found.revision, asyncio.get_running_loop().time() + self._wait_s
            is_late = asyncio.get_running_loop().time() > until
            if is_late or await self._tombstones.exists(key):
                await self._claims.renew(tenant, name, found, mine)
            else:
                await asyncio.sleep(LOOK_EVERY_S)
        return None if found is not None else (await self._claims.claim(tenant, name, mine)).turn

    async def require_place(self, turn: ScopedKey, name: str, sha256: str) -> None:
        """Stores the claim `name` of a turn again. If another turn has it, deletes the turn, and raises PlaceTaken.

        Raises LogUnavailable, too. A read alone may be a moment old (PROTOCOL R14).
        """
        for _ in range(RENEW_TRIES):
            found = await self._claims.read(turn.tenant, name)
            if found is None:
                await self._claims.claim(turn.tenant, name, Claim(turn.turn, sha256))
            elif found.claim.turn != turn.turn:
                break
            elif await self._claims.renew(turn.tenant, name, found) is not None:
                return
        with suppress(TurnUnknown):
            await cancel(self._log, turn, "steer")
        # Otherwise it would be a branch beside the turn that has its place.
        with suppress(Refused, LogUnavailable):
            await self._deleter.delete(turn.scope, "turn", turn.turn)
        raise PlaceTaken


def _is_in_line(draft: TurnDraft, entry: Request) -> bool:
    """Returns whether the turn follows the newest one of its session, also if others arrive at the same moment.

    A parent that the client names is a branch by intention, and results belong behind the turn with their calls.
    """
    return draft.new_turn.parent is UNSET and not any(map(has_results, entry.messages[entry.history :]))


def _place_of(entry: Request) -> str:
    # A session's name may be that of a turn.
    return f"steer the session {entry.session}" if entry.parent is None else place_behind(entry.parent)


def make_line(gateway: Gateway) -> Line:
    """Returns the line of a gateway."""
    # An append ends after `accept_timeout_s`. The rest is for the claim before it, and a busy process.
    wait_s = 2 * gateway.settings.accept_timeout_s
    return Line(gateway.log, gateway.claims, Tombstones(gateway.connection), gateway.deleter, wait_s)
