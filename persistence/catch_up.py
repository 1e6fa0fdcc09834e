"""Waits until the database contains every entry that was stored in the log before a query arrived.

Clients receive only what is stored in the log, and persistence acknowledges only what is committed. So the database has
caught up when the consumer has acknowledged up to the log's last sequence. Under constant load the backlog is never
empty: the query does not wait for entries that were stored after its arrival.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from tailrace.proto.errors import Refused
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import Deliveries

# A batch takes some milliseconds from its delivery to its acknowledgement.
POLL_S = 0.01


class RecordingProgress(NamedTuple):
    """How far the log is recorded. `last`: its last entry. `floor`: all entries up to this sequence are recorded."""

    last: Seq
    floor: Seq


DRAINED = RecordingProgress(last=BEFORE_FIRST, floor=Seq(2**63 - 1))
"""The whole log is recorded."""


class SharedCatchUp:
    """Makes queries wait for the recorder. Queries that wait together share the requests to nats-server.

    If each of hundreds of queries asked every POLL_S, the recorder would lack CPU.
    """

    def __init__(self, deliveries: Deliveries, failure: Callable[[], str], timeout_s: float) -> None:
        """`failure` returns why nothing can be recorded at the moment, or an empty string."""
        self._deliveries = deliveries
        self._failure = failure
        self._timeout_s = timeout_s
        self._reading = asyncio.Lock()
        self._next: asyncio.Task[RecordingProgress] | None = None
        """A read that has not begun."""

    async def wait(self) -> None:
        """Returns when all entries stored before this call are in the database.

        Raises Refused (persistence_unavailable) after `timeout_s`, or at once while there is a failure, because an
        outdated answer would be wrong. Raises LogUnavailable.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                progress = await self._read_next()
                last = progress.last
                while progress.floor < last:
                    if self._failure():
                        raise TimeoutError
                    await asyncio.sleep(POLL_S)
                    progress = await self._read_next()
        except TimeoutError as error:
            raise Refused(
                "persistence_unavailable",
                "the database is behind the log: try again in some seconds",
                retry_after_s=2,
            ) from error

    async def _read_next(self) -> RecordingProgress:
        """Returns the progress as it is after this call. One read runs at a time; waiting calls share the next."""
        if self._next is None:
            self._next = asyncio.create_task(self._read())
            # asyncio would log the error of a read for which nothing waits any more.
            self._next.add_done_callback(lambda read: read.cancelled() or read.exception())
        # A waiter may be cancelled; the read goes on for the other waiters.
        return await asyncio.shield(self._next)

    async def _read(self) -> RecordingProgress:
        async with self._reading:
            # Later calls must not share this read: it may miss entries that were stored right before these calls.
            self._next = None
            if await self._deliveries.is_drained():
                return DRAINED
            return RecordingProgress(await self._deliveries.last_seq(), (await self._deliveries.backlog()).floor)
