"""Recorder: consumes `request` and `end` entries, folds their turns, commits the rows, then acknowledges.

Entries wait in a DeliveryQueue, so that the backlog of one tenant delays no other tenant. The recorder keeps no further
state about a turn. After a kill between commit and acknowledgement the same entries are delivered again,
and writing them again changes nothing. While the database cannot be written, the leases are released and the
log delivers the entries again later; streaming is not affected.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter

import msgspec
import structlog

from tailrace.persistence import metrics
from tailrace.persistence.delivery_queue import DeliveryQueue
from tailrace.persistence.health import PersistenceHealth
from tailrace.persistence.lost_turns import LostTurnFinder
from tailrace.persistence.record_spans import RecordSpans
from tailrace.persistence.rows import TurnRow, blobs_of
from tailrace.persistence.store import Store
from tailrace.persistence.unrecorded_turns import UnrecordedTurns
from tailrace.proto.errors import LogUnavailable, StoreBusy, StoreError, StoreRefused, StoreUnwritable, TurnUnknown
from tailrace.proto.fold import Turn, text_proof
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey, is_child_id
from tailrace.proto.nats import Deliveries, Delivery, Tombstones, TurnLog
from tailrace.proto.nats.leases import PULL_S
from tailrace.proto.nats.replay import WOKEN_WAIT_S
from tailrace.proto.ownership import KNOWN_SETTINGS, ScopedKey
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.runtime.logged_causes import LoggedCauses
from tailrace.proto.runtime.race import is_set_within

logger = structlog.get_logger()

# Concurrent folds, which hide the round trip to the log. Their work is done by one event loop: with more folds of large
# turns, leases would be renewed late, and folds would go on long after FOLD_S.
FOLDS_MAX = 4
# How long a batch may begin folds. Queries of all tenants wait for the batch. A bound in entries or bytes would not
# hold on a busy machine, and an `end` does not show how large its request is.
FOLD_S = 0.25
# Entries that wait to be recorded. While fewer wait, an entry of another tenant is delivered at once. And nats-server
# finds the next entry of a consumer with two filters fast only near the end of the log (`firstMatchingMulti` in
# filestore.go). Each entry costs a renewal of its lease every three seconds.
WAITING_MAX = 8192
# Entries that are fetched at once.
FETCHED_MAX = 512
# The time between two requests for entries. Each costs as much as the entries of a turn.
FETCH_PAUSE_S = 0.02
# How long no entry is fetched while WAITING_MAX wait.
FULL_WAIT_S = 0.1
# After a batch, the recorder pauses, at most PAUSE_S_MAX, so that batches take only this share of its time. So slow
# batches become fewer, each with more turns: a transaction costs about as much for twenty turns as for one.
WRITING_SHARE = 0.25
PAUSE_S_MAX = 0.1
# A database that answers no statement is reported after this time. Its error may come a minute later.
STALLED_S = 10.0
# How often the backlog is counted, for its metric. A request for each batch would cost as much as a turn's rows.
COUNT_EVERY_S = 1.0
# How long the entries of one turn are overwritten. Meanwhile nothing else is recorded.
ERASING_S = 1.0


class Recorder:
    """Writes delivered turns to the store, except those that one of `unrecorded` handles.

    `store` comes from `Store.without_queue`.
    """

    def __init__(
        self,
        log: TurnLog,
        tombstones: Tombstones,
        deliveries: Deliveries,
        store: Store,
        unrecorded: Sequence[UnrecordedTurns],
        queue: DeliveryQueue | None = None,
        *,
        batch_max: int,
        retry_wait_s: float,
    ) -> None:
        self._log = log
        self._tombstones = tombstones
        self._deliveries = deliveries
        self._store = store
        self._unrecorded = unrecorded
        self._queue = DeliveryQueue() if queue is None else queue
        self._batch_max = batch_max
        self._retry_wait_s = retry_wait_s
        self._lost_turns = LostTurnFinder(log, deliveries, store)
        self._is_cut = False
        """Whether FOLD_S has ended the last batch."""
        self._spans = RecordSpans(store.system)
        self._batch_failure = ""
        self._check_failure = ""
        metrics.FAILING.set_function(lambda: bool(self.failure))
        self._logged = LoggedCauses()
        self.has_recorded = False
        """Whether the database has recorded anything of a log."""
        self._outcomes: list[str] = []
        """The outcomes of the turns whose ends are in the current batch."""

    @property
    def failure(self) -> str:
        """Why the recorder cannot write; empty while it can."""
        return self._batch_failure or self._check_failure

    async def run(self, stop: asyncio.Event) -> None:
        """Records batches until `stop` is set, and completes the current batch.

        Raises StoreCorrupt, StoreTooNew and StoreRolledBack, before any entry of the current batch is acknowledged.
        """
        with suppress(LogUnavailable):
            self._queue.begin(await self._deliveries.progress())
        beside = [
            fetching := asyncio.create_task(self._fetch_until(stop)),
            asyncio.create_task(self._deliveries.keep_renewed(self._queue.leases)),
        ]
        try:
            await self._record_until(stop, beside)
            # Its last request may have messages. Another process need not wait until their leases expire.
            await fetching
            await self._give_back(0.0)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)

    async def _fetch_until(self, stop: asyncio.Event) -> None:
        """Fetches entries as they are stored, also while a batch is recorded."""
        while not stop.is_set():
            # While the database fails, leave the entries to other processes.
            most = self._batch_max if self.failure else FETCHED_MAX
            if len(self._queue) < (self._batch_max if self.failure else WAITING_MAX):
                self._queue.add(await self._deliveries.next(most))
                await is_set_within(stop, FETCH_PAUSE_S)
            else:
                await is_set_within(stop, FULL_WAIT_S)

    async def _record_until(self, stop: asyncio.Event, beside: Sequence[asyncio.Task[None]]) -> None:
        loop, next_count = asyncio.get_running_loop(), 0.0
        while not stop.is_set():
            is_waiting = await self._queue.wait(PULL_S)
            for task in beside:
                if task.done():
                    # Raises its error.
                    await task
            began = loop.time()
            if is_waiting:
                await self._record(stop)
            # While a full batch waits, or one of as much work as FOLD_S allows, a pause could not make it larger.
            is_full = self._is_cut or len(self._queue) >= self._batch_max
            pause_s = 0.0 if is_full else (loop.time() - began) * (1 / WRITING_SHARE - 1)
            self._store.raise_if_damaged()
            await self._find_lost_turns()
            if loop.time() >= next_count:
                next_count = loop.time() + COUNT_EVERY_S
                with suppress(LogUnavailable):
                    backlog = await self._deliveries.backlog()
                    metrics.BACKLOG.set(backlog.waiting + backlog.leased)
            await is_set_within(stop, min(pause_s, PAUSE_S_MAX))

    async def _give_back(self, delay_s: float) -> int:
        """Releases all leases, and returns how many there were."""
        leases = self._queue.give_back()
        for delivery in leases:
            await delivery.release(delay_s)
        return len(leases)

    def report_health(self, database: str, database_id: str, damaged_turns: Callable[[], int] = int) -> bytes:
        """Returns this process' PersistenceHealth as JSON."""
        health = PersistenceHealth(
            not self.failure, self.failure, database, database_id, damaged_turns(), self.has_recorded, KNOWN_SETTINGS
        )
        return msgspec.json.encode(health)

    async def _record(self, stop: asyncio.Event) -> None:
        try:
            with metrics.BATCH_S.time():
                batch, folded = await self._fold()
                rows = await self._write(folded, self._queue.reached_with(batch))
                self._spans.end()
                for delivery in batch:
                    await delivery.ack()
                self._queue.settle(batch)
            self.has_recorded = True
            metrics.LAG_S.observe(age_s(max(delivery.at for delivery in batch)))
        except (StoreBusy, StoreUnwritable, LogUnavailable, MemoryError) as error:
            self._spans.end(type(error).__name__)
            self._fail(str(error) or type(error).__name__, await self._give_back(self._retry_wait_s))
            await is_set_within(stop, self._retry_wait_s)
        else:
            if self.failure:
                logger.info("recording works again")
            self._batch_failure = self._check_failure = ""
            self._logged.clear()
            metrics.RECORDED.inc(len(rows))
            for outcome in self._outcomes:
                metrics.ENDED.labels(outcome).inc()
            # Log a turn only with the batch that holds its end: the request may be delivered after the end is recorded.
            delivered = {delivery.seq for delivery in batch}
            for row in rows:
                if row.ended_at is not None and row.cursor in delivered:
                    logger.debug("turn recorded", turn=row.turn, outcome=row.outcome)

    async def _find_lost_turns(self) -> None:
        """Ends lost turns. While no turn is delivered, this shows whether the database works."""
        try:
            with self._report_stall(self._fail_check):
                was_checked = await self._lost_turns.check()
        except (StoreBusy, StoreUnwritable) as error:
            self._fail_check(str(error))
            return
        if was_checked and self._check_failure:
            self._check_failure = ""
            if not self._batch_failure:
                self._logged.clear()
                logger.info("the database works again")

    def _fail_check(self, why: str) -> None:
        self._check_failure = why
        if self._logged.add(why):
            logger.warning("the database cannot be used", why=why)

    def _fail(self, why: str, entries: int) -> None:
        self._batch_failure = why
        if self._logged.add(why):
            logger.warning("batch could not be recorded and is retried", entries=entries, why=why)

    @contextmanager
    def _report_stall(self, report: Callable[[str], None]) -> Iterator[None]:
        """Calls `report` while the block runs, when the database has not answered for STALLED_S."""

        async def watch() -> None:
            loop = asyncio.get_running_loop()
            left_s = STALLED_S
            while left_s > 0:
                await asyncio.sleep(left_s)
                left_s = self._store.answered_at + STALLED_S - loop.time()
            report(f"the database has not answered for {STALLED_S:.0f} s")

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _write(self, rows: Sequence[TurnRow], last: Seq) -> Sequence[TurnRow]:
        """Writes `rows`, read up to the entry at `last`; returns the stored rows.

        A row that the database can never hold is logged and left out.
        """
        try:
            with self._report_stall(partial(self._fail, entries=len(rows))):
                await self._store.record(rows, last)
        except StoreRefused as error:
            if len(rows) > 1:
                return [stored for row in rows for stored in await self._write([row], last)]
            leave_out(rows[0].turn, error)
            return []
        return rows

    async def _fold(self) -> tuple[list[Delivery], list[TurnRow]]:
        """Takes entries and folds their turns, until FOLD_S is over; returns the entries, and the rows in their order.

        Raises the error of a fold when all folds have ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FOLD_S
        turns, rows = self._queue.take(self._batch_max), list[tuple[Seq, TurnRow]]()
        batch, errors = list[Delivery](), list[Exception]()
        self._outcomes, self._is_cut = [], False

        async def fold_some() -> None:
            for entries in turns:
                batch.extend(entries)
                try:
                    row = await self._fold_turn(entries)
                except Exception as error:  # noqa: BLE001  # raised below: a group would cancel the other folds
                    errors.append(error)
                else:
                    if row is not None:
                        rows.append((min(one.seq for one in entries), row))
                self._is_cut = self._is_cut or loop.time() >= deadline
                if errors or self._is_cut:
                    turns.close()

        await asyncio.gather(*(fold_some() for _ in range(FOLDS_MAX)))
        if errors:
            raise errors[0]
        return batch, [row for _, row in sorted(rows, key=itemgetter(0))]

    async def _fold_turn(self, delivered: Sequence[Delivery]) -> TurnRow | None:
        """Returns the row of the turn of `delivered`, folded at least up to them; None if it cannot be recorded.

        Removes an orphan (see `_is_orphan`) and returns None. An error of one turn does not stop the others in the
        batch.
        """
        last = max(delivered, key=lambda one: one.seq)
        key = last.key
        try:
            turn = await self._read_turn(last)
            if any(one.kind == "request" for one in delivered) and await self._is_orphan(key, turn):
                # Release its blobs first; after the purge they are unknown.
                await self._store.release_blobs(key.tenant, blobs_of(turn))
                await self._remove(key)
                logger.info("turn purged: its parent was deleted", turn=key.turn)
                return None
            if last.kind == "end":
                self._outcomes.append(turn.outcome)
            for one in self._unrecorded:
                if await one.divert(key, turn):
                    return None
            if turn.request is not None and not turn.request.store:
                raise StoreRefused("a turn with `store: false` is not recorded")
            self._spans.start(key, turn)
            row = self._store.build_row(key, turn)
        except (StoreRefused, TurnUnknown) as error:
            # Also for a turn that a client has deleted: the log does not show whether it was deleted or has expired.
            leave_out(key.turn, error)
            return None
        except (LogUnavailable, StoreError, MemoryError):
            raise
        except Exception:
            # A bug. Acknowledge the entry all the same: otherwise it would be delivered for ever, and queries, which
            # wait until the recorder has caught up, would never be answered.
            metrics.LEFT_OUT.inc()
            logger.exception("turn cannot be recorded", turn=key.turn)
            return None
        _verify_text(key, turn)
        return row

    async def _remove(self, key: TurnKey) -> None:
        """Removes a turn that may run, and overwrites its entries: its parent may have been erased.

        Raises LogUnavailable.
        """
        is_stored = True
        while is_stored:
            deadline = asyncio.get_running_loop().time() + ERASING_S
            if not (await self._log.erase(key, deadline, purges_rest=True)).is_gone:
                raise LogUnavailable(f"{key.turn} could not be erased")
            # A replicated stream is purged up to the last entry that its leader has stored when the request arrives
            # (jetstream_cluster.go, jsClusteredStreamPurgeRequest). An append that is in flight then stays, and its
            # generator goes on.
            await asyncio.sleep(WOKEN_WAIT_S)
            is_stored = await self._log.last_seq(key) != BEFORE_FIRST
        await self._log.purge_events(key)

    async def _read_turn(self, last: Delivery) -> Turn:
        """Folds the turn at least up to the entry `last`."""
        key = ScopedKey.whole(last.key)
        if last.kind == "end" and (entry := last.take_entry()):
            return await self._log.read_ended_turn(key, entry[0])
        # A running turn is recorded from its request alone: its `end` is delivered later.
        return await self._log.read_turn_upto(key, last.seq, 1 if last.kind == "request" else None)

    async def _is_orphan(self, key: TurnKey, turn: Turn) -> bool:
        """Returns whether the turn continues a deleted turn, whose text is in its request (ADR 15).

        Such a turn was stored after the deletion had searched for follow-ups, and therefore after the tombstone. A
        parent without a tombstone may have expired in the log or be missing in the database: this proves no deletion.
        """
        if turn.request is None or turn.request.parent is None:
            return False
        parent = TurnKey(key.tenant, turn.request.parent)
        # A generator may store a result of a batch between its purge and its tombstone. Its mark is older than both.
        is_deleted = self._tombstones.is_deleted if is_child_id(key.turn, parent.turn) else self._tombstones.exists
        # A POST with the same Idempotency-Key may have stored the parent again under the same id during the deletion.
        return await is_deleted(parent) and not await self._log.has_turn(ScopedKey.whole(parent))


def leave_out(turn: str, why: Exception) -> None:
    """Counts and logs a turn that is not recorded, for a reason that will not change."""
    metrics.LEFT_OUT.inc()
    logger.error("turn cannot be recorded", turn=turn, why=str(why))


def _verify_text(key: TurnKey, turn: Turn) -> None:
    """Compares the folded text with the length and hash in the turn's end, and logs a mismatch. Raises nothing."""
    if turn.end is None:
        return
    metrics.SKIPPED.inc(turn.skipped)
    if (turn.end.text_chars, turn.end.text_sha256) != text_proof(turn.text):
        metrics.PROOF_MISMATCHES.inc()
        logger.error(
            "text does not match the hash in its end",
            turn=key.turn,
            chars=len(turn.text),
            expected_chars=turn.end.text_chars,
        )
