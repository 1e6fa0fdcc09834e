"""Retention by age: deletes sessions that were not used for TAILRACE_HISTORY_DAYS (PROTOCOL R92).

A session is deleted when the log has none of its turns any more, so that no entry of it can be recorded again.
"""

import asyncio
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, NamedTuple

import msgspec
import structlog
from msgspec import Meta

from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.rows import micros
from tailrace.persistence.run_every import run_beside, run_every
from tailrace.persistence.settings import DAYS_MAX
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import DELETED_AT_ONCE, Store
from tailrace.persistence.tables import Tables
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Deliveries
from tailrace.proto.resources import DeleteResource

logger = structlog.get_logger()

INTERVAL_S = 60.0
SESSIONS_MAX = 200


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of retention by age."""

    history_days: Annotated[
        int,
        Meta(
            ge=0,
            le=DAYS_MAX,
            description="days without use after which a session is deleted with its turns; 0: never",
        ),
    ] = 0


class Age(NamedTuple):
    """When a session is old: not used since `before`, and without turns in the log, which begins at `first`.

    The cursors of turns from before `log_created_at` belong to another log.
    """

    before: datetime
    first: Seq
    log_created_at: datetime

    @property
    def values(self) -> dict[str, int]:
        """The parameters of the statements."""
        return {
            "unused_since": micros(self.before),
            "first": self.first,
            "log_created_at": micros(self.log_created_at),
        }


class OldSessions:
    """The old sessions of all tenants. Every method raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, age: Age) -> list[tuple[Tenant, str]]:
        """Returns old sessions, at most `SESSIONS_MAX`."""
        rows = await self._store.read("old_sessions", limit=SESSIONS_MAX, **age.values)
        return [(row["tenant"], row["session"]) for row in rows]

    async def delete(self, tenant: Tenant, what: DeleteResource, age: Age) -> bool:
        """Deletes the session `what` like `Store.delete` if it is old. Returns whether it is old."""
        async with self._store.write() as writer:
            if not await writer.read("old_session", {"tenant": tenant, "session": what.name, **age.values}):
                return False
            await self._store.delete_rows(writer, tenant, what)
            return True


class Retention:
    """Deletes sessions of all tenants that were not used for `days`; none if `days` is 0.

    Ages are measured by the log's clock: a wrong clock of this machine would delete the whole history.
    """

    def __init__(self, store: Store, deliveries: Deliveries, days: int) -> None:
        self._store = store
        self._sessions = OldSessions(store)
        self._deliveries = deliveries
        self._days = days

    async def run(self, stop: asyncio.Event) -> None:
        """Deletes old sessions until `stop` is set."""
        await run_every(INTERVAL_S, self._delete_old, "the deletion of old sessions", stop)

    async def _age(self) -> Age:
        log = await self._deliveries.stream_info()
        return Age(log.ts - timedelta(days=self._days), log.state.first_seq, log.created)

    async def _delete_old(self) -> None:
        age, count = await self._age(), 0
        before = age.before
        while sessions := await self._sessions.list(age):
            for tenant, session in sessions:
                count += await self._delete(tenant, session, age)
            # The log may have deleted more entries meanwhile. What is old is decided once, so that this loop ends.
            age = (await self._age())._replace(before=before)
        if count:
            logger.info("old sessions were deleted", sessions=count, days=self._days)

    async def _delete(self, tenant: Tenant, session: str, age: Age) -> bool:
        """Deletes an old session. Returns False if it is in use again: then its remaining turns stay."""
        what, has_more = DeleteResource("session", session), False
        while True:
            turns = await self._store.turns_to_delete(tenant, what)
            if has_more and not turns:
                return True
            purged = msgspec.structs.replace(what, purged=tuple(turn.turn for turn in turns[:DELETED_AT_ONCE]))
            if not await self._sessions.delete(tenant, purged, age):
                return False
            has_more = len(turns) > DELETED_AT_ONCE
            if not has_more:
                return True


def _start(services: Services, settings: Settings) -> Parts:
    retention = Retention(services.store, services.deliveries, settings.history_days)
    return Parts(beside=[partial(run_beside, retention.run)] if settings.history_days else [])


FEATURE = Feature(Settings, _start, Tables(read_queries(__package__)))
