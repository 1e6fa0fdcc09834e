"""Waits until the database contains every entry of a tenant that was stored in the log before a query arrived.

Clients receive only what is stored in the log, and persistence acknowledges only what is committed. So the database has
caught up when the consumer has acknowledged up to the log's last sequence. It has caught up for one tenant when all
entries up to there are delivered to this process, and it has recorded those of the tenant. The query does not wait for
entries that were stored after its arrival, nor for the backlog of another tenant.
"""

import asyncio
from collections.abc import Callable

from tailrace.proto.errors import Refused
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Deliveries
from tailrace.proto.nats.leases import Progress

# A batch takes some milliseconds from its delivery to its acknowledgement.
POLL_S = 0.01


IsRecorded = Callable[[Tenant | None, Seq, Progress], bool]
"""Returns whether all entries of a tenant up to a sequence are recorded; None: of all tenants."""


class SharedCatchUp:
    """Makes queries wait for the recorder. Queries that wait together share the requests to nats-server.

    If each of hundreds of queries asked every POLL_S, the recorder would lack CPU.
    """

    def __init__(
        self, deliveries: Deliveries, is_recorded: IsRecorded, failure: Callable[[], str], timeout_s: float
    ) -> None:
        """`failure` returns why nothing can be recorded at the moment, or an empty string."""
        self._deliveries = deliveries
        self._is_recorded = is_recorded
        self._failure = failure
        self._timeout_s = timeout_s
        self._reading = asyncio.Lock()
        self._next: asyncio.Task[Progress] | None = None
        """A read that has not begun."""

    async def wait(self, tenant: Tenant | None) -> None:
        """Returns when all entries of `tenant` stored before this call are in the database; None: of all tenants.

        Raises Refused (persistence_unavailable) after `timeout_s`, or at once while there is a failure, because an
        outdated answer would be wrong. Raises LogUnavailable.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                progress = await self._read_next()
                last = progress.last
                while not self._is_recorded(tenant, last, progress):
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

    async def _read_next(self) -> Progress:
        """Returns the progress as it is after this call. One read runs at a time; waiting calls share the next."""
        if self._next is None:
            self._next = asyncio.create_task(self._read())
            # asyncio would log the error of a read for which nothing waits any more.
            self._next.add_done_callback(lambda read: read.cancelled() or read.exception())
        # A waiter may be cancelled; the read goes on for the other waiters.
        return await asyncio.shield(self._next)

    async def _read(self) -> Progress:
        async with self._reading:
            # Later calls must not share this read: it may miss entries that were stored right before these calls.
            self._next = None
            return await self._deliveries.progress()
