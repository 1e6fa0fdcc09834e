"""Usage in the database: sums of tokens and cost, and statistics. The recorder adds each turn to the totals."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from tailrace.features.usage.records import (
    BilledUsage,
    BilledUsageList,
    GetBilledUsage,
    GetStats,
    GetUsage,
    GetUsageOfAll,
    ListTenantUsage,
    Stats,
    UsagePage,
    UsageRecord,
)
from tailrace.persistence import paging
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.paging import PageCursor
from tailrace.persistence.queries import Queries, scope_of
from tailrace.persistence.rows import EPOCH, micros, moment, totals_of
from tailrace.persistence.rpc import QueryHandler
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows, Tables
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnKey
from tailrace.proto.records import Totals, TurnRecord
from tailrace.proto.runtime.settings import NoSettings
from tailrace.proto.usage import Usage

TENANTS_MAX = 1000
BUSY_SESSIONS_MAX = 1_000
COUNTS = ("turns", "messages", *Usage.__struct_fields__, "cost_nusd")
# The columns of `totals` that `billed_records` sums.
BILLED_COLUMNS = ("turns", *Usage.__struct_fields__, "cost_nusd")


class UsageTable:
    """The usage of all tenants. Every method raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def usage(
        self, tenant: Tenant, by: str, first: date, last: date, start: str, limit: int
    ) -> tuple[list[UsageRecord], Totals]:
        """Returns the usage of turns of the days `first` to `last`, and its total.

        The usage is grouped by `by`, ordered by key, from the key `start` on: at most `limit` records.
        """
        statement = "usage_by_day" if by == "day" else "usage"
        rows = await self._store.read(
            statement, tenant=tenant, dimension=by, start=start, limit=limit, **_days(first, last)
        )
        kinds = {row["kind"]: row for row in rows}
        parts: list[Mapping[str, Any]] = sorted(
            (row for row in rows if row["kind"] == "part"), key=lambda row: str(row["key"])
        )
        if by.startswith("metadata.") and not start:
            parts = [*_rest(kinds["total"], kinds["named"]), *(row for row in parts if row["key"])]
        return [usage_record(row) for row in parts[:limit]], Totals(**totals_of(kinds["total"]))

    async def usage_of_owner(
        self, tenant: Tenant, by: str, first: date, last: date, owner: str
    ) -> tuple[list[UsageRecord], Totals]:
        """Returns the usage of the turns that `owner` owns, grouped by `by` in order, and its total."""
        of: dict[str, Any] = {"tenant": tenant, "owner": owner}
        of |= {"from_at": micros(_midnight(first)), "before_at": micros(_midnight(last) + timedelta(days=1))}
        parts = await self._store.read("usage_of_owner", dimension=by, **of)
        days = parts if by == "day" else await self._store.read("usage_of_owner", dimension="day", **of)
        total = _sum(days)
        if by.startswith("metadata."):
            named = [row for row in parts if row["key"]]
            parts = [*map(dict, _rest(total, _sum(named))), *named]
        return [usage_record(row) for row in parts], Totals(**totals_of(total))

    async def usage_by_tenant(self, first: date, last: date, after: str, limit: int) -> list[UsageRecord]:
        """Returns the usage of `limit` tenants after `after`, in order, also of those without usage on these days."""
        rows = await self._store.read("usage_by_tenant", after=after, limit=limit, **_days(first, last))
        return [usage_record(row) for row in rows]

    async def usage_of_all(
        self, by: str, first: date, last: date, start: str, limit: int
    ) -> tuple[list[UsageRecord], Totals]:
        """Returns the usage of all tenants by day or model, ordered by key, from the key `start` on, and its total."""
        rows = await self._store.read("usage_of_all", dimension=by, start=start, limit=limit, **_days(first, last))
        parts = sorted((row for row in rows if row["kind"] == "part"), key=lambda row: str(row["key"]))
        (total,) = (row for row in rows if row["kind"] == "total")
        return [usage_record(row) for row in parts], Totals(**totals_of(total))

    async def whole_since(self, tenant: Tenant) -> datetime | None:
        """Returns when the last turn was accepted whose usage and cost an older version has counted; None: no turn."""
        rows = await self._store.read("older_cost", tenant=tenant)
        return moment(rows[0]["asked_at"]) if rows else None

    async def billed_usage(self, tenant: Tenant, first: date, last: date) -> list[BilledUsage]:
        """Returns the usage of the days `first` to `last` by day and by the model that is billed."""
        return billed_records(await self._store.read("billed_usage", tenant=tenant, **_days(first, last)))

    async def tenants_with_usage(self, after: str, limit: int) -> list[Tenant]:
        """Returns tenants after `after` that have usage, in order."""
        return [row["tenant"] for row in await self._store.read("tenants_with_usage", after=after, limit=limit)]

    async def active_sessions(self, tenant: Tenant, since: datetime, *, owner: str | None) -> int:
        """Returns the number of sessions that were used after `since`, of all owners if `owner` is None."""
        rows = await self._store.read("active_sessions", tenant=tenant, since=micros(since), owner=owner)
        return int(rows[0]["sessions"])

    async def usage_since(self, tenant: Tenant, since: datetime) -> list[UsageRecord]:
        """Returns the usage by model of the turns from the beginning of the UTC day of `since` on."""
        rows = await self._store.read("usage_since", tenant=tenant, first=(since - EPOCH).days)
        return [usage_record(row) for row in rows]

    async def busy_sessions(self, tenant: Tenant, *, owner: str | None) -> list[SessionId]:
        """Returns the sessions that have a running turn, at most `BUSY_SESSIONS_MAX`."""
        rows = await self._store.read("busy_sessions", tenant=tenant, owner=owner, limit=BUSY_SESSIONS_MAX)
        return [row["session"] for row in rows]


class UsageQueries:
    """Runs the queries of one tenant at a time. Each query raises StoreError."""

    def __init__(self, store: Store, queries: Queries) -> None:
        self._table = UsageTable(store)
        self._queries = queries

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [
            (GetUsage, self.usage),
            (ListTenantUsage, self.by_tenant),
            (GetUsageOfAll, self.of_all),
            (GetBilledUsage, self.billed),
            (GetStats, self.stats),
        ]

    async def usage(self, tenant: Tenant, query: GetUsage) -> UsagePage:
        """Returns a page of totals, one for each value of `query.by`; with `query.key`, only the total of this value.

        Raises Refused for an invalid cursor.
        """
        limit = paging.clamp_limit(query.limit)
        start = _start_after(query.after) if query.after is not None else query.key or ""
        owner = scope_of(tenant, query).only_owner
        if owner is not None:
            found, total = await self._table.usage_of_owner(tenant, query.by, query.first, query.last, owner)
            found = [record for record in found if (record.key or "") >= start][: limit + 1]
        else:
            found, total = await self._table.usage(tenant, query.by, query.first, query.last, start, limit + 1)
        if query.key is not None:
            found = [record for record in found[:1] if record.key == query.key]
        more = len(found) > limit
        cursor = paging.encode(PageCursor(0, found[limit - 1].key or "")) if more else None
        return UsagePage(found[:limit], cursor, await self._table.whole_since(tenant), total)

    async def by_tenant(self, _: Tenant, query: ListTenantUsage) -> UsagePage:
        """Returns a page of totals, one for each tenant that has usage. Raises Refused for an invalid cursor."""
        limit = paging.clamp_limit(query.limit)
        after = paging.decode(query.after).name if query.after is not None else ""
        found = await self._table.usage_by_tenant(query.first, query.last, after, limit + 1)
        cursor = paging.encode(PageCursor(0, found[limit - 1].key or "")) if len(found) > limit else None
        return UsagePage([one for one in found[:limit] if one.turns], cursor)

    async def of_all(self, _: Tenant, query: GetUsageOfAll) -> UsagePage:
        """Returns a page of totals over all tenants. Raises Refused for an invalid cursor."""
        limit = paging.clamp_limit(query.limit)
        start = _start_after(query.after) if query.after is not None else ""
        found, total = await self._table.usage_of_all(query.by, query.first, query.last, start, limit + 1)
        cursor = paging.encode(PageCursor(0, found[limit - 1].key or "")) if len(found) > limit else None
        return UsagePage(found[:limit], cursor, total=total)

    async def billed(self, tenant: Tenant, query: GetBilledUsage) -> BilledUsageList:
        """Returns the usage by day and billed model, and the next tenants."""
        found = await self._table.billed_usage(tenant, query.first, query.last)
        tenants = await self._table.tenants_with_usage(tenant, TENANTS_MAX)
        return BilledUsageList(found, tenants, await self._table.whole_since(tenant))

    async def stats(self, tenant: Tenant, query: GetStats) -> Stats:
        """Returns the number of active sessions, recent usage, and the sessions that have a running turn."""
        since, owner = self._queries.since, scope_of(tenant, query).only_owner
        if owner is None:
            by_model = await self._table.usage_since(tenant, since)
        else:
            today = datetime.now(UTC).date()
            by_model, _ = await self._table.usage_of_owner(tenant, "model", since.date(), today, owner)
        return Stats(
            active_sessions=await self._table.active_sessions(tenant, since, owner=owner),
            by_model=by_model,
            running=await self._table.busy_sessions(tenant, owner=owner),
        )


def billed_records(rows: Iterable[Mapping[str, Any]]) -> list[BilledUsage]:
    """Returns the usage by day and billed model, from the totals of three dimensions: see `billed_usage`."""
    found: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        sign = -1 if row["dimension"] == "moved" else 1
        counts = found.setdefault((row["day"], row["key"]), [0] * len(BILLED_COLUMNS))
        for index, name in enumerate(BILLED_COLUMNS):
            counts[index] += sign * row[name]
    return [
        BilledUsage(EPOCH.date() + timedelta(days=day), model, turns, Usage(*counts), cost)
        for (day, model), (turns, *counts, cost) in sorted(found.items())
        if any((turns, *counts, cost))
    ]


def usage_record(row: Mapping[str, Any]) -> UsageRecord:
    """Returns the usage in a row of sums. Its key is null for turns without a value."""
    last_used_at = row["last_used_at"]
    return UsageRecord(
        key=row["key"] or None,
        last_used=moment(last_used_at) if last_used_at is not None else None,
        **totals_of(row),
    )


def _sum(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the sums of rows of sums."""
    listed = list(rows)
    return {name: sum(row[name] for row in listed) for name in COUNTS}


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _rest(total: Mapping[str, Any], named: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the row of the turns without a field of metadata, or with an empty one; nothing if there are none."""
    rest: dict[str, Any] = {name: total[name] - named[name] for name in COUNTS}
    return [{"key": "", "last_used_at": None, **rest}] if any(rest.values()) else []


def _start_after(cursor: str) -> str:
    """Returns the first possible key of the page after `cursor`. Raises Refused."""
    # The text with a NUL added is the next one after a text.
    return f"{paging.decode(cursor).name}\0"


def _days(first: date, last: date) -> dict[str, int]:
    return {"first": (first - EPOCH.date()).days, "last": (last - EPOCH.date()).days}


def _rows_of(_: TurnKey, turn: Turn, record: TurnRecord) -> AddedRows:
    """Notes a turn whose usage and cost an older version has counted."""
    is_older = turn.end is not None and turn.end.price_date is None and any(record.usage.counts)
    return {"put_older_cost": {}} if is_older else {}


def _start(services: Services, _: NoSettings) -> Parts:
    return Parts(UsageQueries(services.store, services.queries).handlers())


TABLES = Tables(read_queries(__package__), _rows_of, count_models=["count_moved", "count_billed"])
FEATURE = Feature(NoSettings, _start, TABLES)
