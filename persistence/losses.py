"""Turns that have left the log without an end: nobody can end them any more, so they have failed. It knows no row.

The log forgets by age, the database does not: what is running there would run for ever, and its session be busy.
"""

import asyncio

import structlog

from persistence.store import Store
from proto.ending import LOST
from proto.errors import LogUnavailable, StoreBusy, StoreUnwritable
from proto.log import Deliveries

logger = structlog.get_logger()

# A turn is lost after a day. What is asked for by name is told as lost at once (gateway/history.py).
LOOK_EVERY_S = 10.0


class Losses:
    def __init__(self, deliveries: Deliveries, store: Store) -> None:
        self._deliveries = deliveries
        self._store = store
        self._next = 0.0

    async def look(self) -> None:
        """Ends what was lost, if it has not just done so; what it cannot do now it does the next time."""
        now = asyncio.get_running_loop().time()
        if now < self._next:
            return
        self._next = now + LOOK_EVERY_S
        try:
            lost = await self._store.lose(await self._deliveries.first(), LOST)
        except (LogUnavailable, StoreBusy, StoreUnwritable) as error:
            logger.debug("nobody knows what was lost", why=str(error))
            return
        if lost:
            logger.warning("turns have left the log without an end", turns=lost)
