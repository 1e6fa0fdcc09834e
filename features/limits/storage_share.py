"""The share of a store that one tenant may fill in a period, so that other tenants can always store something.

The period is as long as the store keeps its content: a day for the log, a week for the blobs. Each gateway counts in
memory and adds its count to a counter in NATS once a second. So a submission waits for nothing, and a tenant can exceed
its share by what it sends to all gateways in a second.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from tailrace.features.limits.quotas import DAY_S
from tailrace.features.limits.records import TENANT
from tailrace.gateway.auth.admission import Share
from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Counters, StreamSize

logger = structlog.get_logger()

FLUSH_EVERY_S = 1.0
# Shares hold from this fill level of the store on, so that a tenant alone may use the store up to here. New turns of
# all tenants are refused at TAILRACE_FULL_AT: the space between is for other tenants.
ENFORCED_FROM = 0.7


class Store(NamedTuple):
    """A store that tenants share: the name of its counters, its name and period in messages, its retention."""

    counter: str
    noun: str
    period: str
    kept_s: float


LOG = Store("log_bytes", "The log", "a day", DAY_S)
BLOBS = Store("blob_bytes", "The blob store", "a week", 7 * DAY_S)


class StorageShare(Share):
    """Counts the bytes that each tenant has stored in the current period, and refuses those above the share."""

    def __init__(
        self,
        store: Store,
        counters: Counters,
        size: Callable[[], StreamSize],
        share: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`size` returns the store's fill level. `share` of its byte limit: 0 to 1. `now` returns Unix seconds."""
        self._store = store
        self._counters = counters
        self._size = size
        self._share = share
        self._now = now
        self._period = 0
        self._stored: dict[Tenant, int] = {}
        """The values of the counters in NATS at the last flush."""
        self._new: Counter[Tenant] = Counter()
        """The bytes stored after that flush, through this gateway."""

    def check(self, tenant: Tenant, size: int) -> None:
        """Raises Refused if the store is nearly full, and `size` more bytes exceed the tenant's share."""
        store = self._size()
        # The size was read up to a second ago.
        if not store.limit or store.used + self._new.total() < ENFORCED_FROM * store.limit:
            return
        if self._stored.get(tenant, 0) + self._new[tenant] + size > self._share * store.limit:
            renews_at = (self._period_at(self._now()) + 1) * self._store.kept_s
            raise Refused(
                "rate_limited",
                f"{self._store.noun} is nearly full, and this request would exceed the {self._share:.0%} of it "
                f"that one tenant may fill in {self._store.period}. "
                f"The next period begins at {datetime.fromtimestamp(renews_at, UTC):%Y-%m-%dT%H:%M:%SZ}.",
                retry_after_s=max(1.0, renews_at - self._now()),
            )

    def add(self, tenant: Tenant, size: int) -> None:
        """Counts `size` bytes that were stored."""
        self._new[tenant] += size

    async def flush_periodically(self) -> None:
        """Adds to the counters in NATS every `FLUSH_EVERY_S` seconds, forever."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self.flush()

    async def flush(self) -> None:
        """Adds the bytes since the last flush to the counters in NATS, once: the answer of NATS may be lost."""
        period = self._period_at(self._now())
        if period != self._period:
            self._period = period
            self._stored.clear()
        for tenant, size in list(self._new.items()):
            subject = subjects.budget(tenant, TENANT, self._store.counter, str(period))
            failure = ""
            try:
                value = await self._counters.add(subject, size)
            except LogUnavailable as error:
                # The bytes may have been added. A repetition every second would count them many times.
                value, failure = self._stored.get(tenant, 0) + size, str(error)
            self._stored[tenant] = value
            self._new[tenant] -= size
            if not self._new[tenant]:
                del self._new[tenant]
            if failure:
                logger.debug("stored bytes may not be counted", tenant=tenant, why=failure)
                return

    def _period_at(self, now: float) -> int:
        return int(now // self._store.kept_s)
