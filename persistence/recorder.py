"""Turns that were asked or have ended are folded and written, many a transaction, and then acknowledged; never before.

Nothing is kept here about a turn. Killed between commit and acknowledgement, the same entries come again, and writing
them again changes nothing. When the database cannot be written, entries go back to the log, which waits: nobody who
streams notices.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

from tailrace.persistence import metrics
from tailrace.persistence.lost_turns import Losses
from tailrace.persistence.rows import Row, blobs_of, row
from tailrace.persistence.store import Store
from tailrace.proto.errors import LogUnavailable, StoreBusy, StoreError, StoreRefused, StoreUnwritable, TurnUnknown
from tailrace.proto.fold import Turn, text_proof
from tailrace.proto.ids import Seq
from tailrace.proto.nats import Deliveries, Delivery, Tombstones, TurnLog
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# A fold waits for the log most of its time; more at once would only fill the memory.
FOLDS_MAX = 8


class Recorder:
    """Records until `stop` is set. `trouble` says why it cannot, in a sentence; empty while it can."""

    def __init__(
        self,
        log: TurnLog,
        tombstones: Tombstones,
        deliveries: Deliveries,
        store: Store,
        *,
        batch_max: int,
        retry_wait_s: float,
    ) -> None:
        self._log = log
        self._tombstones = tombstones
        self._deliveries = deliveries
        self._store = store
        self._batch_max = batch_max
        self._retry_wait_s = retry_wait_s
        self._losses = Losses(log, deliveries, store)
        self._folds = asyncio.Semaphore(FOLDS_MAX)
        self.trouble = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Finishes the batch that it has when `stop` is set. Raises StoreCorrupt, with nothing of it acknowledged."""
        while not stop.is_set():
            batch = await self._deliveries.next(self._batch_max)
            if batch:
                await self._batch(batch, stop)
            self._store.require_whole()
            await self._losses.look()
            with suppress(LogUnavailable):
                backlog = await self._deliveries.backlog()
                metrics.BACKLOG.set(backlog.waiting + backlog.leased)

    def report(self) -> bytes:
        """How this process is, for whoever asks."""
        return msgspec.json.encode({"ok": not self.trouble, "detail": self.trouble})

    async def _batch(self, batch: Sequence[Delivery], stop: asyncio.Event) -> None:
        try:
            with metrics.BATCH_S.time():
                async with _leased(batch, self._deliveries.renew_every_s):
                    rows = await self._written(await self._rows(batch), max(delivery.seq for delivery in batch))
                for delivery in batch:
                    await delivery.done()
        except (StoreBusy, StoreUnwritable, LogUnavailable) as error:
            self.trouble = str(error)
            logger.warning("turns wait in the log", entries=len(batch), why=self.trouble)
            for delivery in batch:
                await delivery.give_back(self._retry_wait_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._retry_wait_s)
        else:
            if self.trouble:
                logger.info("turns are recorded again")
            self.trouble = ""
            metrics.RECORDED.inc(len(rows))
            # Not again for a request that is delivered after its end was recorded.
            delivered = {delivery.seq for delivery in batch}
            for made in rows:
                if made.ended_at is not None and made.cursor in delivered:
                    logger.info("turn recorded", turn=made.turn, outcome=made.outcome)

    async def _written(self, rows: Sequence[Row], reached: Seq) -> Sequence[Row]:
        """Those of `rows` that are in the database now. One that it can never hold keeps no other out of it."""
        try:
            await self._store.record(rows, reached)
        except StoreRefused as error:
            if len(rows) > 1:
                return [kept for one in rows for kept in await self._written([one], reached)]
            metrics.LEFT_OUT.inc()
            logger.error("turn cannot be recorded", turn=rows[0].turn, why=str(error))  # noqa: TRY400  # the reason is known
            return []
        return rows

    async def _rows(self, batch: Sequence[Delivery]) -> list[Row]:
        reached: dict[TurnKey, Seq] = {}
        for delivery in batch:
            reached[delivery.key] = max(delivery.seq, reached.get(delivery.key, delivery.seq))
        asked = {delivery.key for delivery in batch if delivery.kind == "request"}
        folded = await asyncio.gather(
            *(self._row(key, seq, is_asked=key in asked) for key, seq in reached.items()), return_exceptions=True
        )
        for failed in folded:
            if isinstance(failed, BaseException):
                raise failed
        return [made for made in folded if isinstance(made, Row)]

    async def _row(self, key: TurnKey, reached: Seq, *, is_asked: bool) -> Row | None:
        """The row of one turn; None when there can be none. The edge of one turn: it keeps no other from its row.

        `is_asked`: its request has come, and not its end alone.
        """
        try:
            async with self._folds:
                turn = await self._log.turn_upto(key, reached)
                if is_asked and await self._is_orphan(key, turn):
                    # Before the log forgets it: nobody else could tell what it refers to.
                    await self._store.release(key.tenant, blobs_of(turn))
                    await self._log.purge(key)
                    logger.info("turn taken out of the log: its conversation was deleted", turn=key.turn)
                    return None
            made = row(key, turn)
        except (LogUnavailable, StoreError):
            raise
        except TurnUnknown:
            metrics.LEFT_OUT.inc()
            logger.error("turn has left the log before it was recorded", turn=key.turn)  # noqa: TRY400  # the reason is known
            return None
        except Exception:
            # A mistake of ours. Given back it would come again for ever, and no query could ever catch up.
            metrics.LEFT_OUT.inc()
            logger.exception("turn cannot be recorded", turn=key.turn)
            return None
        _prove(key, turn)
        return made

    async def _is_orphan(self, key: TurnKey, turn: Turn) -> bool:
        """Whether the turn goes on from one that was deleted, whose text its request repeats (ADR 15).

        The deletion has not seen it: it was stored after that had looked for follow-ups, and so after the tombstone. A
        parent that is merely not here may have been forgotten by the database or the log, and condemns nobody.
        """
        if turn.request is None or turn.request.parent is None:
            return False
        parent = TurnKey(key.tenant, turn.request.parent)
        # With an Idempotency-Key, what was deleted may have been asked anew under its id.
        return await self._tombstones.stands(parent) and not await self._log.is_known(parent)


def _prove(key: TurnKey, turn: Turn) -> None:
    """Compares the text with what the turn's end says of it. The fold is recorded either way: the log is the truth."""
    if turn.end is None:
        return
    metrics.SKIPPED.inc(turn.skipped)
    said = (turn.end.text_chars, turn.end.text_sha256)
    if said != text_proof(turn.text):
        metrics.PROOF_MISMATCHES.inc()
        logger.error("text is not what the turn's end says of it", turn=key.turn, chars=len(turn.text), said=said[0])


@asynccontextmanager
async def _leased(batch: Sequence[Delivery], every_s: float) -> AsyncIterator[None]:
    """Renews the leases while the block runs: a slow commit must not have the same batch delivered again."""
    renewing = asyncio.create_task(_renew(batch, every_s))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])


async def _renew(batch: Sequence[Delivery], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        for delivery in batch:
            await delivery.keep()
