"""Estimates how many turns are ahead of a tenant's next turn, from the reports of generators and their consumer.

A submission does not wait for these reports. They are collected in the background: once a second while turns are
submitted or wait, and otherwise every few seconds, for the metrics.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from tailrace.gateway import metrics
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.generator_health import GeneratorHealth
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.leases import consumer_backlog, oldest_request_at
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.runtime.logged_causes import LoggedCauses
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.subjects import GENERATORS

logger = structlog.get_logger()

REFRESH_EVERY_S = 1.0
REFRESH_IDLE_EVERY_S = 5.0
# A busy generator answers within some milliseconds.
REPORTS_WAIT_S = 0.25
RETRY_AFTER_S = 10.0
# Generators fetch turns as they are stored, also those that must wait. If a turn is not fetched within this time, later
# turns of all tenants wait behind it.
FETCHED_WITHIN_S = 1.0


class QueueState(NamedTuple):
    """The queue at one moment."""

    generators: Sequence[GeneratorHealth]
    undelivered: int
    """Turns that no generator has fetched."""
    leased: int
    """Turns that a generator holds, or has released with a delay before the next delivery."""
    undelivered_s: float = 0.0
    """The age of the oldest turn that no generator has fetched; 0 if there is none."""

    def count_ahead(self, tenant: Tenant, submitted: int = 0) -> int | None:
        """Returns how many turns at most are ahead of the next turn of `tenant`.

        None if it can start at once, or if no turn waits and no generator has answered in time. `submitted`: how many
        turns the tenant has submitted since the reports.
        """
        is_free = any(one.free > 0 and tenant not in one.waiting for one in self.generators)
        if is_free and self.undelivered_s < FETCHED_WITHIN_S:
            return None
        if not self.generators and not self.undelivered:
            return None
        own = sum(one.waiting.get(tenant, 0) for one in self.generators)
        return own + (self.orphan_count if own else 0) + self.undelivered + submitted

    @property
    def orphan_count(self) -> int:
        """Turns that were leased and that no generator holds now."""
        return max(0, self.leased - sum(one.held for one in self.generators))

    @property
    def oldest_waiting_s(self) -> float:
        """The age of the oldest turn that waits to begin; 0 if none waits."""
        return max(self.undelivered_s, *(one.oldest_waiting_s for one in self.generators), 0.0)

    @property
    def is_empty(self) -> bool:
        """Whether no turn waits: all are delivered, and each generator has a free slot."""
        return not (self.undelivered or any(one.waiting or one.free <= 0 for one in self.generators))


EMPTY = QueueState((), undelivered=0, leased=0)


class QueueEstimate:
    """The queue as this gateway sees it."""

    def __init__(self, connection: Connection, rpc: Rpc, most: int) -> None:
        """`most`: a new turn is refused if this many turns wait before it."""
        self._connection = connection
        self._rpc = rpc
        self._most = most
        self._state = EMPTY
        """EMPTY also while the state is unknown."""
        self._submitted: Counter[Tenant] = Counter()
        """Turns that this gateway has stored since the last refresh began."""
        self._has_submission = asyncio.Event()
        self._logged = LoggedCauses()
        """Why health reports could not be read. Never cleared."""

    def check(self, tenant: Tenant) -> None:
        """Raises Refused if too many turns may start before the tenant's next turn."""
        if (self._state.count_ahead(tenant, self._submitted[tenant]) or 0) >= self._most:
            message = f"{self._most} turns or more wait for a generator before this one: retry later"
            raise Refused("queue_full", message, retry_after_s=RETRY_AFTER_S)

    def estimate_position(self, tenant: Tenant) -> int | None:
        """Counts a new turn of `tenant` and returns its estimated position, from 1; None if it can start at once."""
        ahead = self._state.count_ahead(tenant, self._submitted[tenant])
        self._submitted[tenant] += 1
        self._has_submission.set()
        return None if ahead is None else ahead + 1

    async def watch(self) -> None:
        """Refreshes the estimate until it is cancelled."""
        while True:
            if self._state.is_empty:
                await is_set_within(self._has_submission, REFRESH_IDLE_EVERY_S)
            self._has_submission.clear()
            await self._refresh()
            await asyncio.sleep(REFRESH_EVERY_S)

    async def _refresh(self) -> None:
        # The answers may lack turns that are stored meanwhile.
        before = self._submitted.copy()
        try:
            backlog = await consumer_backlog(self._connection, GENERATORS)
            oldest = await oldest_request_at(self._connection, backlog.delivered) if backlog.waiting else None
            reports = await self._rpc.every_health(GENERATORS, wait_s=REPORTS_WAIT_S)
        except LogUnavailable as error:
            logger.debug("queue unknown", error=str(error))
            self._state = EMPTY
            return
        generators = [health for report in reports if (health := self._decode(report)) is not None]
        self._state = state = QueueState(
            generators, backlog.waiting, backlog.leased, age_s(oldest) if oldest is not None else 0.0
        )
        self._submitted -= before
        metrics.OLDEST_WAITING_S.set(state.oldest_waiting_s)
        # The turns of a generator whose report cannot be read look like orphaned ones.
        if len(generators) == len(reports):
            metrics.ORPHANED.set(state.orphan_count)

    def _decode(self, report: bytes) -> GeneratorHealth | None:
        """Returns None for a report that this release cannot read. Such a report must not end the gateway."""
        try:
            return msgspec.json.decode(report, type=GeneratorHealth)
        except DECODE_ERRORS as error:
            # Reports come every second, and a generator of another release may run for days.
            if self._logged.add(str(error)):
                logger.warning("a generator's health report cannot be read", error=str(error))
            return None
