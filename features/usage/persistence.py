"""Usage in the database: sums of tokens and cost, and statistics. The recorder adds each turn to the totals."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

import msgspec

from tailrace.features.usage.records import (
    ROWS_MAX,
    TURN_DAYS_MAX,
    BilledUsage,
    BilledUsageList,
    GetBilledUsage,
    GetStats,
    GetUsage,
    GetUsageBy,
    GetUsageOfAll,
    ListTenantUsage,
    Stats,
    UsagePage,
    UsageRecord,
    require_days,
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
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import cursor_invalid
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnKey
from tailrace.proto.records import Totals, TurnRecord
from tailrace.proto.runtime.settings import NoSettings
from tailrace.proto.usage import Usage

TENANTS_MAX = 1000
BUSY_SESSIONS_MAX = 1_000
COUNTS = ("turns", "messages", *Usage.__struct_fields__, "cost_nusd")
# The filters that are columns. The others are labels.
COLUMN_FILTERS = ("model", "key", "session", "project")
# The columns of `totals` that `billed_records` sums.
BILLED_COLUMNS = ("turns", *Usage.__struct_fields__, "cost_nusd")


Keys = tuple[str, ...]
"""The values of one or two dimensions; '' without a value."""
FIRST_KEYS: Keys = ("", "")


class Selection(NamedTuple):
    """The usage of the days `first` to `last`, by one or two dimensions.

    Only of the turns that all `filters` select; with `owner`, only of those that it owns.
    """

    tenant: Tenant
    by: Sequence[str]
    first: date
    last: date
    filters: Mapping[str, str] = {}
    owner: str | None = None

    @property
    def is_of_one_name(self) -> bool:
        """Whether the totals of one name answer it."""
        return self.owner is None and len(self.filters) == 1 and {*self.by} <= {"day", *self.filters}

    @property
    def is_of_all(self) -> bool:
        """Whether the totals of one dimension answer it."""
        return self.owner is None and not self.filters and len(self.by) == 1


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

    async def usage_of_name(self, what: Selection, start: Keys, limit: int) -> tuple[list[UsageRecord], Totals]:
        """Like `usage_of_turns` for one filter, grouped by nothing but its dimension and the day. Reads no turns."""
        ((dimension, key),) = what.filters.items()
        days = _days(what.first, what.last)
        rows = await self._store.read("usage_of_name", tenant=what.tenant, dimension=dimension, key=key, **days)
        total = _sum(rows)
        of_days = [(str(EPOCH.date() + timedelta(days=row["day"])), row) for row in rows]
        if "day" not in what.by:
            last_used_at = max((row["last_used_at"] for row in rows), default=None)
            of_days = [("", {**total, "last_used_at": last_used_at})] if rows else []
        found = [
            (keys, row)
            for day, row in of_days
            if (keys := tuple(day if name == "day" else key for name in what.by)) >= start[: len(what.by)]
        ]
        return [usage_record(row, keys) for keys, row in found[:limit]], Totals(**totals_of(total))

    async def usage_of_turns(self, what: Selection, start: Keys, limit: int) -> tuple[list[UsageRecord], Totals]:
        """Returns the usage of the turns that `what` selects, ordered by their keys, from `start` on, and its total.

        Deleted turns are in the total and in the record without keys if there is no owner and at most one filter: then
        the totals of the tenant have them.
        """
        statement, values = _source_of(what)
        rows = await self._store.read(statement, start=start[0], and_start=start[1], limit=limit, **values)
        kinds = {row["kind"]: row for row in rows}
        total, found = kinds["total"], kinds["found"]
        if values["dimension"] == "" or any(total[name] < found[name] for name in COUNTS):
            # While a user is erased, the totals have lost the name of turns that are not deleted yet.
            total = found
        parts: list[Mapping[str, Any]] = sorted((row for row in rows if row["kind"] == "part"), key=_keys_of)
        if start == FIRST_KEYS:
            nameless = [row for row in parts if _keys_of(row) == FIRST_KEYS]
            rest = _rest(total, kinds["named"])
            if _sum(nameless) != _sum(rest):
                parts = [*rest, *parts[len(nameless) :]]
        return [usage_record(row, _keys_of(row)[: len(what.by)]) for row in parts[:limit]], Totals(**totals_of(total))

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
            (GetUsageBy, self.usage_by),
            (ListTenantUsage, self.by_tenant),
            (GetUsageOfAll, self.of_all),
            (GetBilledUsage, self.billed),
            (GetStats, self.stats),
        ]

    async def usage(self, tenant: Tenant, query: GetUsage) -> UsagePage:
        """Returns a page of totals, one for each value of `query.by`; with `query.key`, only the total of this value.

        Raises Refused for an invalid cursor.
        """
        owner = scope_of(tenant, query).only_owner
        what = Selection(tenant, [query.by], query.first, query.last, owner=owner)
        limit = paging.clamp_limit(query.limit)
        if query.key is None:
            return await self._page(what, query.after, limit)
        found, total = await self._read(what, (query.key, ""), 1)
        return UsagePage(
            [one for one in found if one.key == query.key], None, await self._table.whole_since(tenant), total
        )

    async def usage_by(self, tenant: Tenant, query: GetUsageBy) -> UsagePage:
        """Returns a page of usage by one or two dimensions.

        Raises Refused for an invalid cursor, and if it had to read the turns of more than TURN_DAYS_MAX days.
        """
        owner = scope_of(tenant, query).only_owner
        what = Selection(tenant, query.by, query.first, query.last, query.filters, owner)
        if (what.filters or len(what.by) > 1) and not what.is_of_one_name:
            table = "usage by two dimensions, or with a filter on another dimension than `by`,"
            require_days(table, what.first, what.last, TURN_DAYS_MAX)
        return await self._page(what, query.after, paging.clamp_limit(query.limit, ROWS_MAX))

    async def _page(self, what: Selection, after: str | None, limit: int) -> UsagePage:
        start = FIRST_KEYS if after is None else _start_after(after, len(what.by))
        found, total = await self._read(what, start, limit + 1)
        cursor = _cursor_of(found[limit - 1]) if len(found) > limit else None
        return UsagePage(found[:limit], cursor, await self._table.whole_since(what.tenant), total)

    async def _read(self, what: Selection, start: Keys, limit: int) -> tuple[list[UsageRecord], Totals]:
        """Returns at most `limit` records from the keys `start` on, and the total, from where that reads the least."""
        if what.is_of_all:
            return await self._table.usage(what.tenant, what.by[0], what.first, what.last, start[0], limit)
        if what.is_of_one_name:
            return await self._table.usage_of_name(what, start, limit)
        return await self._table.usage_of_turns(what, start, limit)

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
        start = _start_after(query.after, 1)[0] if query.after is not None else ""
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
            what = Selection(tenant, ["model"], since.date(), today, owner=owner)
            by_model, _ = await self._table.usage_of_turns(what, FIRST_KEYS, ROWS_MAX)
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


def usage_record(row: Mapping[str, Any], keys: Sequence[str] = ()) -> UsageRecord:
    """Returns the usage in a row of sums, by default of its key. A key is null for turns without a value."""
    last_used_at = row["last_used_at"]
    keys = keys or [row["key"]]
    return UsageRecord(
        key=keys[0] or None,
        keys=[key or None for key in keys],
        last_used=moment(last_used_at) if last_used_at is not None else None,
        **totals_of(row),
    )


def _sum(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the sums of rows of sums."""
    listed = list(rows)
    return {name: sum(row[name] for row in listed) for name in COUNTS}


def _source_of(what: Selection) -> tuple[str, dict[str, Any]]:
    """Returns the statement that reads the turns of `what` by the narrowest index, and its values without the page."""
    first_at = micros(datetime.combine(what.first, time(), UTC))
    labels = {name: value for name, value in what.filters.items() if name not in COLUMN_FILTERS}
    values: dict[str, Any] = {
        "tenant": what.tenant,
        "by": what.by[0],
        "and_by": what.by[1] if len(what.by) > 1 else "",
        "from_at": first_at,
        "before_at": micros(datetime.combine(what.last, time(), UTC) + timedelta(days=1)),
        # Clocks of several machines have written the times.
        "since_at": first_at - micros(EPOCH + timedelta(days=1)),
        **{name: what.filters.get(name) for name in COLUMN_FILTERS},
        **_days(what.first, what.last),
    }
    if what.owner is not None:
        statement, (values["label"], values["value"]) = "usage_of_label", ("owner", what.owner)
    elif "session" in what.filters:
        statement = "usage_of_session"
    elif labels or "key" in what.filters:
        # Fewer turns have a certain field of metadata than a certain user, and more have a certain key.
        name = min(labels, key=lambda name: name == "user", default="key")
        statement, (values["label"], values["value"]) = "usage_of_label", (name, what.filters[name])
        labels.pop(name, None)
    else:
        statement = "usage_of_project" if "project" in what.filters else "usage_of_days"
    # The totals of one dimension, which also have deleted turns; those of '' do not exist.
    dimension, name, last_name = "", "", ""
    if what.owner is None and not what.filters:
        dimension, name, last_name = "day", str(what.first), str(what.last)
    elif what.owner is None and len(what.filters) == 1:
        ((dimension, name),) = what.filters.items()
        last_name = name
    values |= {"dimension": dimension, "name": name, "last_name": last_name}
    return statement, values | {"others": msgspec.json.encode(labels).decode()}


def _rest(total: Mapping[str, Any], named: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the row of the turns without a field of metadata, or with an empty one; nothing if there are none."""
    rest: dict[str, Any] = {name: total[name] - named[name] for name in COUNTS}
    return [{"key": "", "and_key": "", "last_used_at": None, **rest}] if any(rest.values()) else []


def _keys_of(row: Mapping[str, Any]) -> Keys:
    return row["key"], row["and_key"]


def _cursor_of(record: UsageRecord) -> str:
    """Returns the cursor of the page after a record. By one dimension, older versions read it, too."""
    keys = [key or "" for key in record.keys]
    return paging.encode(PageCursor(0, keys[0] if len(keys) == 1 else msgspec.json.encode(keys).decode()))


def _start_after(cursor: str, dimensions: int) -> Keys:
    """Returns the first possible keys of the page after `cursor`. Raises Refused."""
    name = paging.decode(cursor).name
    # The text with a NUL added is the next one after a text.
    if dimensions == 1:
        return f"{name}\0", ""
    try:
        key, and_key = msgspec.json.decode(name, type=tuple[str, str])
    except DECODE_ERRORS as error:
        raise cursor_invalid() from error
    return key, f"{and_key}\0"


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
