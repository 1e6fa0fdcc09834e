"""Detection of lost turns: running in the database, but no longer in the log. They are ended as failed.

The log deletes entries by age and the database does not, so such a turn would run for ever and keep its session busy. A
restored database beside a log that is not its own has such turns as well.
"""

import asyncio

import structlog

from tailrace.persistence import metrics
from tailrace.persistence.store import Store
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Deliveries, TurnLog

logger = structlog.get_logger()

# The log keeps a turn for a day. A query for a single turn detects the loss at once (gateway/history_client.py).
INTERVAL_S = 10.0
# Turns that are checked between two batches of the recorder.
CHECKED_MAX = 200


class LostTurnFinder:
    """Ends lost turns as failed. The recorder calls `check` between two batches."""

    def __init__(self, log: TurnLog, deliveries: Deliveries, store: Store) -> None:
        self._log = log
        self._deliveries = deliveries
        self._store = store
        self._next_check = 0.0
        self._unchecked: list[TurnKey] | None = None
        """Turns that were running at the start and have not been looked up in the log; None before the first check."""

    async def check(self) -> bool:
        """Ends lost turns, at most once in `INTERVAL_S`. The next call repeats what fails.

        Returns whether it has used the database. Raises StoreBusy, StoreUnwritable and StoreRolledBack.

        An expired turn is recognised by its cursor, which is before the log's first sequence. But the cursors of a
        restored database may belong to another log, and cannot be compared with this log. Therefore each turn that was
        running at the start is also looked up in the log once, some turns in each call. While the log cannot be
        reached, no turn is ended. An `end` that appears in the log later replaces the `end` that was written here.
        """
        now = asyncio.get_running_loop().time()
        if now < self._next_check:
            return False
        self._next_check = now + INTERVAL_S
        try:
            lost = await self._store.fail_expired(await self._deliveries.first_seq()) + await self._fail_unknown()
        except LogUnavailable as error:
            logger.debug("lost turns could not be looked up", why=str(error))
            return False
        metrics.LOST.inc(lost)
        if lost:
            logger.warning("turns have left the log without an end", turns=lost)
        if self._unchecked:
            self._next_check = now
        return True

    async def _fail_unknown(self) -> int:
        """Looks up the next unchecked turns, ends those that the log does not have, and returns their number."""
        if self._unchecked is None:
            self._unchecked = await self._store.running_turns()
        checked = self._unchecked[:CHECKED_MAX]
        stored = await self._log.find_stored(checked)
        lost = [key for key in checked if key not in stored]
        if lost:
            await self._store.fail_lost(lost)
        self._unchecked = self._unchecked[CHECKED_MAX:]
        return len(lost)
