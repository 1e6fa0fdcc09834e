"""Reads pages of the turns that have given words. The cost does not grow with the database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tailrace.persistence.paging import END_OF_TIME, NEWEST, OLDEST
from tailrace.persistence.store import Store
from tailrace.persistence.turn_list import Page, Scan, TurnPageQuery, end_of, page_of_scan
from tailrace.proto.errors import Refused, StoreBusy
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.fair_semaphore import FairSemaphore

# A row of `searched` has the number `microsecond * NUMBERS + n`, with an n below NUMBERS (see `put_words`). LAST_AT is
# the last microsecond whose numbers are integers of the database.
NUMBERS = 1024
LAST_AT = END_OF_TIME // NUMBERS
SEARCH_S_MAX = 2.0
# A search waits at most this long for those before it. In this time, more than one search can end. Wait and search
# together are shorter than the time limit of the gateway, unless the recorder is far behind.
SEARCH_WAIT_S_MAX = 3.0
# The most searches of one tenant that wait. Each counts as one of the queries that the process answers at once, and all
# tenants share those.
SEARCHES_WAITING_MAX = 3


class SearchReader:
    """Searches for words, one search at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._searches = FairSemaphore(1)

    async def read_page(self, query: TurnPageQuery, words: Sequence[str]) -> Page:
        """Returns a page of the turns with all hashed `words`. There must be at least one word.

        It reads at most `SCAN_MAX` turns, by the index of the rarest label, word or outcome. Searches run one at a
        time; tenants take turns. Raises StoreBusy for a search that runs or waits for too long, and Refused
        if SEARCHES_WAITING_MAX of the tenant's searches wait.
        """
        async with self._slot(query.tenant):
            scan = await self._best_scan(query, words)
            statement = scan.statement if scan.statement == "found_turns" else f"{scan.statement}_with_words"
            values = query.values_of(scan)
            # The scan's own `words` omit the word of its index.
            values = {"words": " ".join(words), **values, **_numbers(values)}
            return page_of_scan(scan, await self._store.database.search(self._store.sql[statement], values))

    @asynccontextmanager
    async def _slot(self, tenant: Tenant) -> AsyncIterator[None]:
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

    async def _best_scan(self, query: TurnPageQuery, words: Sequence[str]) -> Scan:
        """Returns the scan whose `end` is the oldest: that of the rarest label, word or outcome.

        With the label `owner`, always its scan, see TurnListReader.best_scan.
        """
        turn_list, values = self._store.turn_list, query.values
        best = await turn_list.best_scan(query)
        if best.end == OLDEST or "owner" in query.labels:
            return best
        if self._store.system == "sqlite":
            # One word per scan: for several, the index reads until it finds a row that has all of them.
            for word in words:
                others = " ".join(one for one in words if one != word)
                scan = await turn_list.scan("found_turns", {**values, **_numbers(values)}, word=word, words=others)
                best = min(best, scan, key=end_of)
                if best.end == OLDEST:
                    break
        else:
            scan = await turn_list.scan("found_turns", {**values, "words": " ".join(words)})
            if scan.end == OLDEST:
                return scan
        # In PostgreSQL, the words are frequent then, and their index has no order: all of their turns would have to be
        # read. Turns are read by a label or outcome instead, or by time (the statement `turns` does not check labels).
        return best if best.end != NEWEST else await turn_list.scan("turns", values)


def _numbers(page: dict[str, Any]) -> dict[str, int]:
    """Returns the first and last `searched.number` of a page's range."""
    first, last = (min(page[name], LAST_AT) * NUMBERS for name in ("from_at", "before_at"))
    return {"from_number": first, "before_number": last + NUMBERS - 1}
