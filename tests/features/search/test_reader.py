"""Search for words: results, cost, time limit and fairness between tenants."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tailrace.features.search.persistence import store_older_words
from tailrace.features.search.reader import SEARCHES_WAITING_MAX, SearchReader
from tailrace.features.search.words import hash_words
from tailrace.persistence.paging import NEWEST, PageCursor
from tailrace.persistence.rows import micros
from tailrace.persistence.store import Store
from tailrace.persistence.turn_list import Page, TurnPageQuery
from tailrace.proto.entries import Outcome
from tailrace.proto.errors import Refused, StoreBusy
from tailrace.proto.ids import Tenant, TurnId
from tests.harness.open_store import open_store
from tests.harness.stored_turns import OURS, THEIRS, counting_reads, hash_text, key, running_row, words_row
from tests.harness.turn_builder import completed_turn


async def read_page(store: Store, query: TurnPageQuery, words: Sequence[str]) -> Page:
    """Reads a page as ListTurns does: with or without words."""
    return await (SearchReader(store).read_page(query, words) if words else store.turn_list.read_page(query))


async def search(store: Store, words: Sequence[str]) -> Page:
    """Searches all turns of `OURS`."""
    return await read_page(store, TurnPageQuery(OURS, {}, None, NEWEST, 9), words)


async def test_a_search_finds_no_turn_by_the_words_of_another_tenant(store: Store) -> None:
    """Both turns have the same id. The hashes of words differ by tenant, unless two are equal by chance."""
    ours, theirs = running_row("turn-1"), msgspec.structs.replace(running_row("turn-1"), tenant=THEIRS)
    await store.record([ours, msgspec.structs.replace(theirs, added=words_row(hash_text("rare")))])
    found, _ = await search(store, hash_text("rare").split())
    assert found == []


async def test_words_that_an_older_version_writes_during_an_upgrade_are_stored_again(store: Store) -> None:
    """Also those that it writes after the migration, over the words of this version."""
    made = store.build_row(key("turn-1"), completed_turn("Tailrace™").turn)
    words = hash_words(OURS, ["tailracetm"]).split()
    for row in (made, msgspec.structs.replace(made, added=words_row(hash_words(OURS, ["older"])))):
        await store.record([row])
    assert await search(store, words) == ([], None)
    assert [await store_older_words(store) for _ in range(2)] == [1, 0]
    found, _ = await search(store, words)
    assert [one.turn for one in found] == ["turn-1"]


CONDITIONS: tuple[tuple[dict[str, str], str, Outcome | None], ...] = (
    ({}, "all", None),
    ({}, "all old", None),
    ({}, "rare all", None),
    ({}, "even odd", None),
    ({"user": "rare"}, "all", None),
    ({"user": "rare", "model": "m"}, "", None),
    ({"model": "m"}, "rare", None),
    ({"model": "m", "user": "many"}, "even", None),
    ({"metadata.half": "1"}, "even", None),
    ({"metadata.half": "1", "metadata.other": "0"}, "", None),
    ({}, "", "failed"),
    ({}, "", "cancelled"),
    ({}, "", "completed"),
    ({}, "all", "failed"),
    ({"user": "many"}, "", "failed"),
    ({"model": "m"}, "even", "completed"),
)
ENDLESS = {
    "sqlite": "WITH RECURSIVE endless(n) AS (SELECT 1 UNION ALL SELECT 1 FROM endless) SELECT count(*) FROM endless",
    "postgresql": "SELECT pg_sleep(3600)",
}


async def test_a_search_that_takes_long_is_ended_and_delays_no_other_query(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.record([store.build_row(key("turn-1"), completed_turn("Light").turn)])
    words = hash_words(OURS, ["light"]).split()
    statements = store.sql
    monkeypatch.setattr("tailrace.features.search.reader.SEARCH_S_MAX", 60.0)
    search_statement = statements["found_turns"]
    monkeypatch.setitem(statements, "found_turns", ENDLESS[store.system])
    searching = asyncio.create_task(search(store, words))
    async with asyncio.timeout(30):
        await asyncio.sleep(0.1)
        assert await store.turn(key("turn-1")) is not None
        assert not searching.done()
        searching.cancel()
        await asyncio.wait({searching})
        monkeypatch.setattr("tailrace.features.search.reader.SEARCH_S_MAX", 0.1)
        with pytest.raises(StoreBusy, match="search for fewer"):
            await search(store, words)
    monkeypatch.setitem(statements, "found_turns", search_statement)
    found, _ = await search(store, words)
    assert [one.turn for one in found] == ["turn-1"]


async def test_a_search_that_is_cancelled_before_it_begins_is_interrupted(file_store: Store) -> None:
    """It runs in a thread of its own, which may not have begun."""
    database = file_store.database
    for steps in range(1, 5):
        searching = asyncio.create_task(database.search(ENDLESS["sqlite"], {}))
        for _ in range(steps):
            await asyncio.sleep(0)
        searching.cancel()
        await asyncio.wait({searching}, timeout=5)
        assert searching.cancelled()
    row = {"input": "found", "content": "", "text": ""}
    assert await database.search("SELECT 'found' AS input, '' AS content, '' AS text", {}) == [row]


async def test_a_tenant_with_many_searches_is_refused_and_other_tenants_are_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search also ends if it waits for too long."""
    statements = store.sql
    monkeypatch.setattr("tailrace.features.search.reader.SEARCH_S_MAX", 0.5)
    monkeypatch.setattr("tailrace.features.search.reader.SEARCH_WAIT_S_MAX", 0.75)
    search_statement = statements["found_turns"]
    monkeypatch.setitem(statements, "found_turns", ENDLESS[store.system])

    reader = SearchReader(store)

    def begin_search(tenant: Tenant) -> asyncio.Task[Any]:
        query = TurnPageQuery(tenant, {}, None, NEWEST, 9)
        return asyncio.create_task(reader.read_page(query, hash_words(tenant, ["light"]).split()))

    searches = [begin_search(OURS) for _ in range(SEARCHES_WAITING_MAX + 1)]
    with pytest.raises(Refused, match="other searches of this tenant are waiting") as refused:
        await begin_search(OURS)
    assert (refused.value.code, refused.value.retry_after_s) == ("rate_limited", 0.5)
    theirs = begin_search(THEIRS)
    async with asyncio.timeout(10):
        found = await asyncio.gather(*searches, theirs, return_exceptions=True)
    assert {type(one) for one in found} == {StoreBusy}
    monkeypatch.setitem(statements, "found_turns", search_statement)
    assert await begin_search(OURS) == ([], None)


# Once autovacuum has counted the rows, PostgreSQL joins a table that is as small as here by reading all of it.
BY_INDEX = "enable_seqscan=off&enable_hashjoin=off&enable_mergejoin=off"


@pytest.mark.rule("R146")
async def test_a_page_for_a_private_user_ends_at_the_position_of_no_other_users_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever label, word or outcome is rarer than the owner. The pages together have all turns that match."""
    monkeypatch.setattr("tailrace.persistence.turn_list.SCAN_MAX", 4)
    rows = []
    for n in range(60):
        is_rare = n <= 10
        labels = {"model": "m", "owner": "bob" if n % 10 else "ann", "metadata.team": "rare" if is_rare else "many"}
        row = running_row(f"t{n:02}", step=n, session=f"s-{labels['owner']}")
        added = words_row(hash_text("all rare" if is_rare else "all"))
        ended: Outcome = "failed" if is_rare else "completed"
        encoded = msgspec.json.encode(labels).decode()
        rows.append(msgspec.structs.replace(row, labels=encoded, added=added, outcome=ended))
    await store.record(rows)
    own = {(row.asked_at, row.turn) for row in rows[::10]}
    for named, text, outcome in OF_PRIVATE_USER:
        found: list[str] = []
        before: PageCursor | None = NEWEST
        while before is not None:
            query = TurnPageQuery(OURS, {"owner": "ann", **named}, None, before, 9, outcome)
            page, before = await read_page(store, query, hash_text(text).split())
            found += [one.turn for one in page]
            assert before is None or (before.at, before.name) in own, (named, text, outcome)
        is_rare = (named, text, outcome) not in OF_PRIVATE_USER[:3]
        assert found == [row.turn for row in rows[::-1] if (row.asked_at, row.turn) in own][-2 if is_rare else 0 :]


OF_PRIVATE_USER: tuple[tuple[dict[str, str], str, Outcome | None], ...] = (
    ({}, "", None),
    ({"model": "m"}, "", None),
    ({}, "all", None),
    ({"metadata.team": "rare"}, "", None),
    ({}, "", "failed"),
    ({}, "rare", None),
    ({"metadata.team": "rare"}, "all rare", "failed"),
)


@pytest_asyncio.fixture
async def store_by_index(either_database: Path | str) -> AsyncIterator[Store]:
    where = either_database if isinstance(either_database, Path) else f"{either_database}?{BY_INDEX}"
    async with open_store(where) as store:
        yield store


@pytest.mark.timeout(120)
async def test_a_search_reads_as_much_in_a_large_database_as_in_a_small_one(
    store_by_index: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For words, labels and outcomes, rare and frequent. The pages together have all turns that match."""
    store = store_by_index
    monkeypatch.setattr("tailrace.persistence.turn_list.SCAN_MAX", 40)
    costs: list[list[int]] = []
    expected: dict[int, list[str]] = {number: [] for number in range(len(CONDITIONS))}
    made = 0
    for total in (200, 3000):
        rows = []
        for n in range(made, total):
            labels = {"model": "m", "user": "rare" if n in (7, 180) else "many", "metadata.half": str(n % 2)}
            labels["metadata.other"] = str(n % 2)
            words = f"all {'odd' if n % 2 else 'even'} {'rare' if n in (9, 190) else ''} {'old' if n < 60 else ''}"
            ended: Outcome = "failed" if n in (5, 170) else "cancelled" if n % 3 else "completed"
            for number, (named, text, outcome) in enumerate(CONDITIONS):
                is_found = named.items() <= labels.items() and set(text.split()) <= set(words.split())
                if is_found and outcome in (None, ended):
                    expected[number].insert(0, f"t{n}")
            row = running_row(f"t{n}", step=n, session=f"s{n % 9}")
            encoded = msgspec.json.encode(labels).decode()
            rows.append(msgspec.structs.replace(row, labels=encoded, added=words_row(hash_text(words)), outcome=ended))
        await store.record(rows)
        if store.system == "postgresql":
            # As autovacuum does, at any moment.
            await store.database.read("ANALYZE", {})
        made = total
        costs.append([])
        for named, text, outcome in CONDITIONS:
            async with counting_reads(store) as read:
                await read_page(store, TurnPageQuery(OURS, named, None, NEWEST, 20, outcome), hash_text(text).split())
            costs[-1].append(sum(read))
    for number, (named, text, outcome) in enumerate(CONDITIONS):
        found: list[str] = []
        before: PageCursor | None = NEWEST
        while before is not None:
            query = TurnPageQuery(OURS, named, None, before, 200, outcome)
            page, end = await read_page(store, query, hash_text(text).split())
            found += [one.turn for one in page]
            before = PageCursor(micros(page[-1].asked_at), TurnId(page[-1].turn)) if len(page) == 200 else end
        assert found == expected[number], (named, text, outcome)
    # The first page has them, because failed turns have an index.
    failed, end = await store.turn_list.read_page(TurnPageQuery(OURS, {}, None, NEWEST, 9, "failed"))
    assert ([one.turn for one in failed], end) == (["t170", "t5"], None)
    small, large = costs
    assert [(more, less) for more, less in zip(large, small, strict=True) if more > 2 * less] == []
