"""Retention by age: deletes sessions that were not used for TAILRACE_HISTORY_DAYS (PROTOCOL R92).

A session is deleted when the log has none of its turns any more, so that no entry of it can be recorded again.
"""

import asyncio
from datetime import datetime, timedelta

import msgspec
import structlog

from tailrace.persistence.run_every import run_every
from tailrace.persistence.store import DELETE_TURNS_MAX, Store
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Deliveries
from tailrace.proto.resources import DeleteResource

logger = structlog.get_logger()

INTERVAL_S = 60.0


class Retention:
    """Deletes sessions of all tenants that were not used for `days`; none if `days` is 0.

    The ages are those of the log's clock: a wrong clock of this machine would delete the whole history.
    """

    def __init__(self, store: Store, deliveries: Deliveries, days: int) -> None:
        self._store = store
        self._deliveries = deliveries
        self._days = days

    async def run(self, stop: asyncio.Event) -> None:
        """Deletes old sessions until `stop` is set."""
        if self._days:
            await run_every(INTERVAL_S, self._delete_old, "the deletion of old sessions", stop)
        await stop.wait()

    async def _delete_old(self) -> None:
        log, count = await self._deliveries.stream_info(), 0
        before = log.ts - timedelta(days=self._days)
        while sessions := await self._store.old_sessions(before, log.state.first_seq, log.created):
            for tenant, session in sessions:
                count += await self._delete(tenant, session, before, log.state.first_seq, log.created)
            log = await self._deliveries.stream_info()
        if count:
            logger.info("old sessions were deleted", sessions=count, days=self._days)

    async def _delete(
        self, tenant: Tenant, session: str, before: datetime, first: Seq, log_created_at: datetime
    ) -> bool:
        """Deletes an old session. Returns False if it is in use again: then the rest of it stays."""
        what, has_more = DeleteResource("session", session), False
        while True:
            turns = await self._store.turns_to_delete(tenant, what)
            if has_more and not turns:
                return True
            purged = msgspec.structs.replace(what, purged=tuple(turn.turn for turn in turns))
            if not await self._store.delete_old(tenant, purged, before, first, log_created_at):
                return False
            has_more = len(turns) == DELETE_TURNS_MAX
            if not has_more:
                return True
