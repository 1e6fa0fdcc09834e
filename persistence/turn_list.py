"""Reads pages of a tenant's turns, by labels, words and outcome. The cost does not grow with the database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from tailrace.persistence.database import Database
from tailrace.persistence.paging import END_OF_TIME, NEWEST, OLDEST, PageCursor
from tailrace.persistence.rows import micros, turn_record
from tailrace.proto.entries import Outcome
from tailrace.proto.errors import Refused, StoreBusy
from tailrace.proto.ids import Tenant
from tailrace.proto.records import TurnRecord
from tailrace.proto.runtime.fair_semaphore import FairSemaphore

# A row of `searched` has the number `microsecond * NUMBERS + n`, with an n below NUMBERS (see `put_words`). LAST_AT is
# the last microsecond whose numbers are integers of the database.
NUMBERS = 1024
LAST_AT = END_OF_TIME // NUMBERS
# The most turns that a search reads for one page. Each is compared with each word of the search.
SCAN_MAX = 1000
SEARCH_S_MAX = 2.0
# A search waits at most this long for those before it. In this time, more than one search can end. Wait and search
# together are shorter than the time limit of the gateway, unless the recorder is far behind.
SEARCH_WAIT_S_MAX = 3.0
# The most searches of one tenant that wait. Each counts as one of the queries that the process answers at once, and all
# tenants share those.
SEARCHES_WAITING_MAX = 3
# Most turns are completed. They are found by another index.
INDEXED_OUTCOMES = ("cancelled", "failed")
# The order in which labels are tried: those that are not listed have the fewest turns each, models the most.
BY_SELECTIVITY = {"user": 1, "key": 2, "model": 3}

Read = Callable[[str, Mapping[str, Any]], Awaitable[list[dict[str, Any]]]]
"""Runs an SQL query with its parameters; returns the rows."""


class Scan(NamedTuple):
    """A statement that reads a page of turns by one index, with the label or word of this index.

    `end`: the position of the last of the `SCAN_MAX` turns that it may read; OLDEST if there are fewer.
    """

    statement: str
    values: Mapping[str, str]
    end: PageCursor


class TurnListReader:
    """Reads pages of turns. Searches for words run one at a time."""

    def __init__(self, database: Database, read: Read) -> None:
        """`read` runs every query but those for words, which `database.search` can interrupt."""
        self._read = read
        self._search = database.search
        self._system = database.system
        self._sql = database.statements
        self._searches = FairSemaphore(1)

    async def read_page(
        self,
        tenant: Tenant,
        labels: Mapping[str, str],
        start: datetime | None,
        before: PageCursor,
        limit: int,
        words: Sequence[str] = (),
        outcome: Outcome | None = None,
    ) -> tuple[list[TurnRecord], PageCursor | None]:
        """Returns turns from `start` on and before `before`, newest first: those with all `labels` and hashed `words`.

        With `outcome` only those that have ended so. Also returns the position of the last turn that was read, or None
        if there are no more turns. It reads at most `SCAN_MAX` turns, by the index of the rarest label, word or
        outcome: the cost does not grow with the database. Searches for words run one at a time, those of each tenant in
        turn. Raises StoreBusy for one that runs or waits for too long, and Refused if SEARCHES_WAITING_MAX of the
        tenant's searches wait.
        """
        async with self._search_slot(tenant) if words else nullcontext():
            page: dict[str, Any] = {"tenant": tenant, "before_at": before.at, "before": before.name, "start": ""}
            page |= {"from_at": micros(start) if start is not None else 0, "words": " ".join(words), "limit": limit}
            page["outcome"] = outcome or ""
            best = Scan("turns", {}, OLDEST)
            if labels or words or outcome:
                best = await self._best_scan(page, labels, words)
            if best.end != OLDEST:
                page |= {"from_at": best.end.at, "start": best.end.name}
            others = {name: value for name, value in labels.items() if name != best.values.get("name")}
            page |= {
                **best.values,
                **_numbers(page),
                "others": msgspec.json.encode(others).decode(),
                "offset": SCAN_MAX,
            }
            rows = await (self._search if words else self._read)(self._sql[best.statement], page)
            return [turn_record(row) for row in rows], None if best.end == OLDEST else best.end

    @asynccontextmanager
    async def _search_slot(self, tenant: Tenant) -> AsyncIterator[None]:
        """Runs the block when no other search runs, for at most SEARCH_S_MAX.

        Raises StoreBusy if it takes longer, or waits for longer than SEARCH_WAIT_S_MAX, and Refused, see `read_page`.
        """
        if self._searches.waiting(tenant) >= SEARCHES_WAITING_MAX:
            message = f"{SEARCHES_WAITING_MAX} other searches of this tenant are waiting: retry when they have ended"
            raise Refused("rate_limited", message, retry_after_s=SEARCH_S_MAX)
        limit = asyncio.timeout(SEARCH_WAIT_S_MAX)
        try:
            async with limit, self._searches.reserve(tenant=tenant):
                limit.reschedule(asyncio.get_running_loop().time() + SEARCH_S_MAX)
                yield
        except TimeoutError as error:
            why = "the search, or another one before it, takes too long: search for fewer or rarer words"
            raise StoreBusy(why) from error

    async def _best_scan(self, page: Mapping[str, Any], labels: Mapping[str, str], words: Sequence[str]) -> Scan:
        """Returns the scan whose `end` is the oldest: that of the rarest label, word or outcome."""
        best = Scan("turns", {}, NEWEST)
        if page["outcome"] in INDEXED_OUTCOMES:
            best = await self._scan("turns_of_outcome", page)
            if best.end == OLDEST:
                return best
        for name in sorted(labels, key=lambda name: BY_SELECTIVITY.get(name, 0)):
            best = min(best, await self._scan("labelled_turns", page, name=name, value=labels[name]), key=_end)
            if best.end == OLDEST:
                return best
        if self._system == "sqlite":
            # One word each: for several, the index reads until it finds a row that has all of them.
            for word in words:
                others = " ".join(one for one in words if one != word)
                scan = await self._scan("found_turns", {**page, **_numbers(page)}, word=word, words=others)
                best = min(best, scan, key=_end)
                if best.end == OLDEST:
                    break
        elif words and (scan := await self._scan("found_turns", page)).end == OLDEST:
            return scan
        # In PostgreSQL, the words are frequent then, and their index has no order: all of their turns would have to be
        # read. Turns are read by a label or outcome instead, or by time (the statement `turns` does not check labels).
        return best if best.end != NEWEST else await self._scan("turns", page)

    async def _scan(self, statement: str, page: Mapping[str, Any], **values: str) -> Scan:
        rows = await self._read(self._sql[f"end_of_{statement}"], {**page, **values, "offset": SCAN_MAX - 1})
        return Scan(statement, values, PageCursor(rows[0]["asked_at"], rows[0]["turn"]) if rows else OLDEST)


def _end(scan: Scan) -> PageCursor:
    return scan.end


def _numbers(page: Mapping[str, Any]) -> dict[str, int]:
    """Returns the first and last `searched.number` of a page's range."""
    first, last = (min(page[name], LAST_AT) * NUMBERS for name in ("from_at", "before_at"))
    return {"from_number": first, "before_number": last + NUMBERS - 1}
