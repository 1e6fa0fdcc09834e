"""Reads pages of a tenant's turns, by labels and outcome. The cost of a page does not grow with the database."""

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from tailrace.persistence.paging import NEWEST, OLDEST, PageCursor
from tailrace.persistence.rows import micros, turn_record
from tailrace.persistence.rpc import RowBudget
from tailrace.proto.entries import Outcome
from tailrace.proto.ids import Tenant
from tailrace.proto.records import TurnRecord

# The most turns that are read for one page.
SCAN_MAX = 1000
# The most turns that are searched for the slowest turns.
COMPARED_MAX = 100_000
# Most turns are completed. They are found by another index.
INDEXED_OUTCOMES = ("cancelled", "failed")
# The order in which labels are tried: unlisted labels have the fewest turns each, models the most.
BY_SELECTIVITY = {"user": 1, "key": 2, "model": 3}


class Read(Protocol):
    """Runs a named query with its parameters; returns the rows."""

    def __call__(self, name: str, /, **values: Any) -> Awaitable[list[dict[str, Any]]]: ...


class Scan(NamedTuple):
    """A statement that reads a page of turns by one index, with the values for this index.

    `end`: the position of the last of the `SCAN_MAX` turns that it may read; OLDEST if there are fewer.
    """

    statement: str
    values: Mapping[str, str]
    end: PageCursor


class TurnPageQuery(NamedTuple):
    """A page of a tenant's turns: from `start` on and before `before`, newest first, with all `labels`.

    With `outcome` only turns of this outcome.
    """

    tenant: Tenant
    labels: Mapping[str, str]
    start: datetime | None
    before: PageCursor
    limit: int
    outcome: Outcome | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of a statement that looks for the end of a scan."""
        return {
            "tenant": self.tenant,
            "from_at": 0 if self.start is None else micros(self.start),
            "start": "",
            "before_at": self.before.at,
            "before": self.before.name,
            "limit": self.limit,
            "outcome": self.outcome or "",
        }

    def values_of(self, scan: Scan) -> dict[str, Any]:
        """The parameters of the statement of `scan`."""
        values = {**self.values, **scan.values}
        if scan.end != OLDEST:
            values |= {"from_at": scan.end.at, "start": scan.end.name}
        others = {name: value for name, value in self.labels.items() if name != scan.values.get("name")}
        return values | {"others": msgspec.json.encode(others).decode(), "offset": SCAN_MAX}


Page = tuple[list[TurnRecord], PageCursor | None]
"""Turns, and the position of the last turn that was read; None if there are no more turns."""


class TurnListReader:
    """Reads pages of turns."""

    def __init__(self, read: Read, read_turns: Read) -> None:
        """`read_turns` reads a page of turns, see Store."""
        self._read = read
        self._read_turns = read_turns

    async def read_page(self, query: TurnPageQuery) -> Page:
        """Returns a page. Reads at most `SCAN_MAX` turns, by the index of the rarest label or outcome."""
        scan = Scan("turns", {}, OLDEST)
        if query.labels or query.outcome:
            scan = await self.best_scan(query)
            if scan.end == NEWEST:
                # The statement `turns` does not check labels.
                scan = await self.scan("turns", query.values)
        rows = await self._read_turns(scan.statement, **query.values_of(scan))
        return page_of_scan(scan, rows)

    async def read_slowest(self, query: TurnPageQuery) -> Page:
        """Returns the turns whose first token took longest, among the newest COMPARED_MAX of the query's days."""
        return await self._read_listed(query, "slowest_turns", offset=COMPARED_MAX)

    async def read_costliest(self, query: TurnPageQuery) -> Page:
        """Returns the turns of the query's days that cost most."""
        if not query.labels:
            return await self._read_listed(query, "costliest_turns")
        name = "owner" if "owner" in query.labels else min(query.labels, key=selectivity_of)
        return await self._read_listed(query, "costliest_labelled_turns", name=name, value=query.labels[name])

    async def _read_listed(self, query: TurnPageQuery, statement: str, **values: Any) -> Page:
        """Returns the turns whose ids a statement finds, in its order."""
        labels = {name: value for name, value in query.labels.items() if name != values.get("name")}
        values |= query.values | {"others": msgspec.json.encode(labels).decode()}
        found = (await self._read(statement, **values))[: query.limit - 1]
        return [turn_record(row) for row in await read_listed(self._read, query.tenant, found)], None

    async def best_scan(self, query: TurnPageQuery) -> Scan:
        """Returns the scan whose `end` is the oldest (of the rarest label or outcome), or NEWEST without scans.

        With the label `owner`, always its scan: a private user would see the positions of others' turns as ends.
        """
        best, values = Scan("turns", {}, NEWEST), query.values
        if "owner" in query.labels:
            return await self.scan("labelled_turns", values, name="owner", value=query.labels["owner"])
        if query.outcome in INDEXED_OUTCOMES:
            best = await self.scan("turns_of_outcome", values)
        for name in sorted(query.labels, key=selectivity_of):
            if best.end == OLDEST:
                break
            scan = await self.scan("labelled_turns", values, name=name, value=query.labels[name])
            best = min(best, scan, key=end_of)
        return best

    async def scan(self, statement: str, page: Mapping[str, Any], /, **values: str) -> Scan:
        """Returns the scan of a statement `x`, whose end the statement `end_of_x` finds."""
        rows = await self._read(f"end_of_{statement}", **{**page, **values, "offset": SCAN_MAX - 1})
        return Scan(statement, values, PageCursor(rows[0]["asked_at"], rows[0]["turn"]) if rows else OLDEST)


async def read_listed(read: Read, tenant: Tenant, listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the turns whose ids `listed` has, as far as a page needs them.

    If the statement that sorts the turns returned their rows, the database would sort all rows.
    """
    rows, budget = list[dict[str, Any]](), RowBudget()
    for one in listed:
        for row in await read("turn", tenant=tenant, turn=one["turn"]):
            rows.append(row)
            if budget.ends_with(row):
                return rows
    return rows


def page_of_scan(scan: Scan, rows: Sequence[Mapping[str, Any]]) -> Page:
    """Returns the page of the rows that the statement of `scan` has found."""
    return [turn_record(row) for row in rows], None if scan.end == OLDEST else scan.end


def selectivity_of(name: str) -> int:
    """Returns the position of a label in the order in which labels are tried."""
    return BY_SELECTIVITY.get(name, 0)


def end_of(scan: Scan) -> PageCursor:
    """Returns the end of a scan, by which scans are compared."""
    return scan.end
