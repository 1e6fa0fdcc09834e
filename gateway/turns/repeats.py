"""Repeated POSTs: whose turn the idempotency key of a POST names. Nothing here changes a turn."""

from typing import NamedTuple

from tailrace.gateway.turns.draft import Draft, Stored, TurnDraft
from tailrace.gateway.turns.idempotency_key import turn_deleted
from tailrace.proto.errors import Refused, TurnDamaged, TurnUnknown
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Claim, Claims, Tombstones, TurnLog
from tailrace.proto.ownership import ScopedKey

# The most turns in a row of which each waits for the one before it, if the newest one is a steer. A generator reads all
# of them for the conversation (PROTOCOL R79), and a gateway for a cursor (R138).
IN_A_ROW_MAX = 64


class OtherWriter(NamedTuple):
    """Another POST has claimed the key for `turn`, which is neither stored nor deleted.

    Its gateway may have died before its append, or may still append.
    """

    turn: TurnKey


Repeat = Stored | OtherWriter | None
"""The turn that an earlier POST with this key and body has stored; or None if no turn has the key: it is free, or its
turn had `store: false` and is erased."""


class Repeats:
    """The claims of idempotency keys, and the turns that they name."""

    def __init__(self, log: TurnLog, claims: Claims, tombstones: Tombstones) -> None:
        self._log = log
        self._claims = claims
        self._tombstones = tombstones

    async def find_repeat(self, draft: Draft) -> Repeat:
        """Returns whether the log has a turn for a POST with this key, or this claim of a client without a key.

        Raises Refused if the turn has another body or was deleted, LogUnavailable.
        """
        scope, key, retry = draft.principal.access, draft.idempotency_key, draft.retry
        claim = await self._claims.find(scope.tenant, key) if key is not None else retry and retry.claim
        return None if claim is None else await self._examine(claim, draft)

    async def claim(self, own: TurnKey, draft: Draft) -> Repeat:
        """Claims the key for the turn `own`. Without a key, nothing is claimed.

        Returns None if this POST has claimed it, or what another POST has stored for it. A claim whose turn had `store:
        false` and is erased is replaced. Raises as `find_repeat` does.
        """
        if (key := draft.idempotency_key) is None:
            return await self.find_repeat(draft)
        own_claim = Claim(own.turn, draft.body_sha256)
        claim = await self._claims.claim(own.tenant, key, own_claim)
        while claim != own_claim:
            if (repeat := await self._examine(claim, draft)) is not None:
                return repeat
            claim = await self._claims.replace(own.tenant, key, claim, own_claim)
        return None

    async def has_other_turn(self, key: str, turn: ScopedKey) -> bool:
        """Returns whether the key is claimed for another turn than `turn`. Raises LogUnavailable."""
        claim = await self._claims.find(turn.tenant, key)
        return claim is not None and claim.turn != turn.turn

    async def load(self, key: ScopedKey) -> Stored | None:
        """Returns the turn of an earlier POST if it is stored. Raises LogUnavailable."""
        try:
            turn = await self._log.read_turn(key)
        except TurnDamaged:
            turn = await self._log.read_remains(key)
        except TurnUnknown:
            return None
        return Stored(key, turn.request) if turn.request is not None else None

    async def load_repeat(self, key: ScopedKey, draft: Draft) -> Stored | None:
        """Returns the turn of an earlier POST with the key and body of `draft`, if it is stored.

        Raises Refused if it is of another session than `draft` names in a header (PROTOCOL R147), LogUnavailable.
        """
        stored = await self.load(key)
        named = draft.new_turn.session if isinstance(draft, TurnDraft) else None
        if stored is not None and named not in (None, stored.entry.session):
            raise Refused("idempotency_key_reused", "this Idempotency-Key was used in another session: use a new one")
        return stored

    async def find_steered(self, stored: Stored, body_sha256: str) -> Stored:
        """Returns the turn of this body that `stored` succeeds (PROTOCOL R137), or `stored`. Raises LogUnavailable."""
        found = stored
        for _ in range(IN_A_ROW_MAX + 1):
            if found.entry.body_sha256 == body_sha256:
                return found
            if not found.entry.is_queued or found.entry.parent is None:
                break
            parent = ScopedKey(found.key.scope, found.entry.parent)
            try:
                before = await self._log.read_turn(parent)
            except TurnUnknown:
                break
            if before.request is None or before.end is None or before.end.successor != found.key.turn:
                break
            found = Stored(parent, before.request)
        return stored

    async def _examine(self, claim: Claim, draft: Draft) -> Repeat:
        if claim.body_sha256 != draft.body_sha256:
            raise Refused("idempotency_key_reused", "this Idempotency-Key was used with another body: use a new one")
        claimed = ScopedKey(draft.principal.access, claim.turn)
        if (stored := await self.load_repeat(claimed, draft)) is not None:
            return stored
        match await self._tombstones.find(claimed.plain):
            case "deleted":
                raise turn_deleted(claim.turn)
            case "erased":
                return None
        return OtherWriter(claimed.plain)
