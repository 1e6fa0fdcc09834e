"""Turns with `store: false`: the sums of their usage are kept, and their entries are erased (PROTOCOL R109)."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec
import structlog

from tailrace.features.unstored import metrics
from tailrace.features.unstored.table import UnstoredTable
from tailrace.persistence.recorder import leave_out
from tailrace.persistence.rows import TurnRow, blobs_of
from tailrace.persistence.run_every import run_every
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows
from tailrace.proto.errors import LogError, StoreError, StoreRefused, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Tombstones, TurnLog
from tailrace.proto.nats.tombstones import ErasureNote
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.resources import DeleteResource, TurnToDelete
from tailrace.proto.runtime.gather import gather_limited

logger = structlog.get_logger()

INTERVAL_S = 1.0
# The log overwrites one entry at a time. Meanwhile the next turn is read.
ERASED_AT_ONCE = 2
# A later pass finds further notes.
DUE_MAX = 10_000
KEPT_LABELS = ("model", "key")
# Concurrent queries to the log.
LOOKED_UP_AT_ONCE = 16
# The log keeps a turn for a day.
LOST_INTERVAL_S = 3600.0
# Less than every turn.
FIRST_TURN = TurnKey(Tenant(""), TurnId(""))


class UnstoredTurns:
    """Counts and erases turns with `store: false`. A turn can be read for `grace_s` seconds after its end."""

    def __init__(self, log: TurnLog, tombstones: Tombstones, store: Store, grace_s: float) -> None:
        self._log = log
        self._tombstones = tombstones
        self._store = store
        self._unqueued_store = store.without_queue()
        """For writes that no client waits for. They skip the queue of the tenants, so that a tenant with many writes
        does not delay the erasures of other tenants."""
        self._notes, self._unqueued_notes = UnstoredTable(store), UnstoredTable(self._unqueued_store)
        self._grace = timedelta(seconds=grace_s)
        self._after = Seq(0)
        self._due: dict[Seq, ErasureNote] = {}
        self._looked_up = FIRST_TURN
        """The last turn whose note `_forget_lost` has checked."""
        self._next_look_up = 0.0

    async def divert(self, key: TurnKey, turn: Turn) -> bool:
        """Handles a turn with `store: false` and returns True: it must not be recorded. Returns False for other turns.

        Notes the turn and its user. If the turn has ended, adds its usage to the totals, and notes that it is to be
        erased. May be repeated after a kill at any point: the turn is counted once. Raises LogUnavailable, StoreError.
        """
        if turn.request is None or turn.request.store:
            return False
        # This comes first, so that a deletion which begins later finds the turn by its user.
        row = self._store.build_row(key, turn)
        await self._notes.put(key, turn.request.user, row if turn.end is None else None)
        if turn.end is None:
            return True
        # A row without content adds the usage to the totals, and its deletion leaves them. The tombstone is set in
        # between: without it, the row still exists, and recording it again changes nothing; with it, the turn is
        # counted.
        if not await self._tombstones.exists(key):
            try:
                await self._store.record([without_content(row, self._store.of_unstored(row))])
            except StoreRefused as error:
                leave_out(key.turn, error)
            if turn.end.is_stopped:
                await self._tombstones.put([key])
            else:
                await self._tombstones.put_erased(key)
        session = DeleteResource("session", turn.request.session, (TurnId(key.turn),))
        await self._unqueued_store.delete(key.tenant, session)
        await self._tombstones.note_erasure(key)
        return True

    async def find_to_delete(self, key: TurnKey) -> TurnToDelete | None:
        """Returns the turn for a deletion, or None if the log has no such turn with `store: false`.

        The turn is reported as running until its usage is counted. Then its blobs are released here. Raises
        LogUnavailable, StoreError.
        """
        try:
            turn = await self._log.read_turn(ScopedKey.whole(key))
        except TurnUnknown:
            return None
        if turn.request is None or turn.request.store:
            return None
        is_running = not await self._tombstones.exists(key)
        if not is_running:
            await self._store.release_blobs(key.tenant, blobs_of(turn))
        return TurnToDelete(key.turn, is_running, is_unstored=True)

    async def list_of_user(self, tenant: Tenant, user: str | None) -> list[TurnToDelete]:
        """Returns some turns with `store: false` of a user, or of all users if `user` is None; an empty list if none.

        Their fields are as `find_to_delete` sets them. Raises LogUnavailable, StoreError.
        """
        while noted := await self._notes.list_of_user(tenant, user):
            keys = [TurnKey(tenant, turn) for turn in noted]
            found = await gather_limited(self.find_to_delete, keys, LOOKED_UP_AT_ONCE)
            if gone := [key for key, one in zip(keys, found, strict=True) if one is None]:
                await self._notes.forget(gone)
            if left := [one for one in found if one is not None]:
                return left
        return []

    async def run(self, stop: asyncio.Event) -> None:
        """Erases the turns whose time is over, until `stop` is set."""
        await run_every(INTERVAL_S, self._erase_due, "the erasure of turns with `store: false`", stop)

    async def _find_due(self) -> None:
        """Reads further notes, oldest first. After a restart it reads all of them."""
        now: datetime | None = None
        while len(self._due) < DUE_MAX and (found := await self._tombstones.next_erasure_note(self._after)) is not None:
            # By the log's clock: a wrong clock of this machine would erase turns that are still read.
            now = now or await self._log.now()
            if found.noted_at + self._grace > now:
                break
            self._due[found.seq] = found
            self._after = found.seq
        metrics.UNSTORED_DUE.set(len(self._due))

    async def _erase_due(self) -> None:
        """Erases the turns that are due, several at once. Those that cannot be erased stay due.

        Also removes notes of turns that have left the log, see `_forget_lost`.
        """
        await self._find_due()
        failed: list[str] = []

        async def erase(note: ErasureNote) -> None:
            try:
                if not await self._erase(note):
                    return
            except (LogError, StoreError) as error:
                failed.append(f"{note.key.turn}: {error}")
                return
            del self._due[note.seq]
            metrics.UNSTORED_DUE.set(len(self._due))

        await gather_limited(erase, tuple(self._due.values()), ERASED_AT_ONCE)
        if failed:
            logger.warning("turns with `store: false` cannot be erased: retried", turns=len(failed), why=failed[0])
        await self._forget_lost()

    async def _forget_lost(self) -> None:
        """Removes notes of turns that have left the log without an end. Looks up some turns in each call.

        All are looked up once in LOST_INTERVAL_S.
        """
        now = asyncio.get_running_loop().time()
        if now < self._next_look_up:
            return
        noted = await self._notes.every(self._looked_up)
        stored = await self._log.find_stored(noted)
        if lost := [key for key in noted if key not in stored]:
            await self._unqueued_notes.forget(lost)
        if noted:
            self._looked_up = noted[-1]
        else:
            self._looked_up, self._next_look_up = FIRST_TURN, now + LOST_INTERVAL_S

    async def _erase(self, note: ErasureNote) -> bool:
        """Erases a turn, then forgets it, then removes its note: after a kill, the next pass finds the note again.

        Returns False if some entries are left for the next pass.
        """
        # Blobs come first: after the erasure no entry names them. A turn that was deleted has none left.
        with suppress(TurnUnknown):
            turn = await self._log.read_turn(ScopedKey.whole(note.key))
            await self._unqueued_store.release_blobs(note.key.tenant, blobs_of(turn))
        # Also for an unknown turn: entries without a request would be found by nothing but the note.
        erased = await self._log.erase(note.key)
        if not erased.is_gone:
            return False
        await self._log.purge_events(note.key)
        if erased.entries:
            logger.info("turn erased", turn=note.key.turn)
        await self._unqueued_notes.forget([note.key])
        await self._tombstones.remove_erasure_note(note.key)
        return True


def without_content(row: TurnRow, added: AddedRows) -> TurnRow:
    """Returns the row with nothing but what sums of usage need, and `added`, the rows of features."""
    labels = msgspec.json.decode(row.labels)
    return msgspec.structs.replace(
        row,
        project=None,
        input="[]",
        content="[]",
        text="",
        stop_sequence=None,
        envelope="{}",
        details="{}",
        error=None,
        metadata="{}",
        text_chars=None,
        text_sha256=None,
        blobs="[]",
        user=None,
        added=added,
        labels=msgspec.json.encode({name: labels[name] for name in KEPT_LABELS if name in labels}).decode(),
    )
