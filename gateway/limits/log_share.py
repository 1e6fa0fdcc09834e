"""The share of the log that the requests of one tenant may fill in a day, so that other tenants can always store turns.

Each gateway counts in memory and adds its count to a counter in NATS once a second. So a submission waits for nothing,
and a tenant can exceed its share by what it sends to all gateways in a second.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from tailrace.gateway.http.log_fullness import LogFullness
from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Counters

logger = structlog.get_logger()

FLUSH_EVERY_S = 1.0
# The name of the counter in its subject, after the tenant.
NAME, WHAT = "tenant", "log_bytes"


class LogShare:
    """What each tenant has stored today, in bytes of request bodies."""

    def __init__(
        self, counters: Counters, fullness: LogFullness, share: float, now: Callable[[], float] = time.time
    ) -> None:
        """`share`: of the byte limit of the log, from 0 to 1. `now` returns Unix seconds."""
        self._counters = counters
        self._fullness = fullness
        self._share = share
        self._now = now
        self._day = ""
        self._stored: dict[Tenant, int] = {}
        """The values of the counters in NATS, when they were last added to."""
        self._new: Counter[Tenant] = Counter()
        """What was stored since then, through this gateway."""

    def check(self, tenant: Tenant, size: int) -> None:
        """Raises Refused if `size` more bytes exceed the tenant's share."""
        most = int(self._share * self._fullness.bytes_max)
        if most and self._stored.get(tenant, 0) + self._new[tenant] + size > most:
            midnight = datetime.fromtimestamp(self._now(), UTC).replace(hour=0, minute=0, second=0) + timedelta(days=1)
            raise Refused(
                "rate_limited",
                f"The requests of this tenant may fill {self._share:.0%} of the log on one day, and have. "
                f"New turns are accepted from {midnight:%Y-%m-%dT%H:%M:%SZ} on.",
                retry_after_s=max(1.0, midnight.timestamp() - self._now()),
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
        """Adds to the counters in NATS what was stored since the last time. Keeps it if NATS does not answer."""
        day = f"{datetime.fromtimestamp(self._now(), UTC):%Y-%m-%d}"
        if day != self._day:
            self._day = day
            self._stored.clear()
        for tenant, size in list(self._new.items()):
            try:
                value = await self._counters.add(subjects.budget(tenant, NAME, WHAT, day), size)
            except LogUnavailable as error:
                logger.debug("stored bytes not counted yet", error=str(error))
                return
            self._stored[tenant] = value
            self._new[tenant] -= size
            if not self._new[tenant]:
                del self._new[tenant]
