"""Turns that the log has no more, without an end: nobody can end them any more, so they have failed. It knows no row.

The log forgets by age, the database does not: what is running there would run for ever, and its session be busy. And a
database may have been restored beside another log than its own.
"""

import asyncio

import structlog

from tailrace.persistence.store import Store
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.errors import LogUnavailable, StoreBusy, StoreUnwritable
from tailrace.proto.nats import Deliveries, TurnLog
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# A turn is lost after a day. What is asked for by name is told as lost at once (gateway/history_client.py).
LOOK_EVERY_S = 10.0
# Of those the log's leader is asked at once, and so many between two batches that are recorded.
AT_ONCE, AT_A_LOOK = 8, 200


class Losses:
    def __init__(self, log: TurnLog, deliveries: Deliveries, store: Store) -> None:
        self._log = log
        self._deliveries = deliveries
        self._store = store
        self._next = 0.0
        self._unasked: list[TurnKey] | None = None
        """The turns that ran at the start, and that the log was not asked for yet."""

    async def look(self) -> None:
        """Ends what was lost, if it has not just done so; what it cannot do now it does the next time.

        What grew too old is seen by its place in the log. Once after a start, a few at a time, the log is asked for
        every turn that runs: the places of another log say nothing. A log that is away denies nothing, and one that
        comes back has the last word: the end that it tells takes the place of the one that was made here.
        """
        now = asyncio.get_running_loop().time()
        if now < self._next:
            return
        self._next = now + LOOK_EVERY_S
        try:
            lost = await self._store.lose(await self._deliveries.first(), LOST_FAILURE) + await self._denied()
        except (LogUnavailable, StoreBusy, StoreUnwritable) as error:
            logger.debug("nobody knows what was lost", why=str(error))
            return
        if lost:
            logger.warning("turns have left the log without an end", turns=lost)
        if self._unasked:
            self._next = now

    async def _denied(self) -> int:
        """Ends those of the next few that the log does not know; how many they were."""
        if self._unasked is None:
            self._unasked = await self._store.running()
        asked = self._unasked[:AT_A_LOOK]
        places = asyncio.Semaphore(AT_ONCE)

        async def is_known(key: TurnKey) -> bool:
            async with places:
                return await self._log.is_known(key)

        known = await asyncio.gather(*(is_known(key) for key in asked))
        lost = [key for key, stands in zip(asked, known, strict=True) if not stands]
        if lost:
            await self._store.lose_turns(lost, LOST_FAILURE)
        self._unasked = self._unasked[AT_A_LOOK:]
        return len(lost)
