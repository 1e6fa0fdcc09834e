"""Queries: pages, order, cost, and the same answers from both databases."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from itertools import product
from operator import attrgetter
from typing import Any, get_args

import msgspec
import pytest

from tailrace.deploy.cli.copy_database import read_digest
from tailrace.features.batches.persistence import BatchQueries, BatchTable
from tailrace.features.batches.records import Api, ListBatches, ListBatchTurns
from tailrace.features.files.persistence import FileTable
from tailrace.features.files.records import ListFiles
from tailrace.features.projects.persistence import ProjectQueries, ProjectTable
from tailrace.features.projects.records import GetProject, ListProjects
from tailrace.features.retention.persistence import Age, OldSessions
from tailrace.features.search.persistence import SearchQueries
from tailrace.features.search.reader import SearchReader
from tailrace.features.unstored.table import UnstoredTable
from tailrace.features.usage.persistence import UsageQueries, UsageTable
from tailrace.features.usage.records import GetUsage
from tailrace.persistence.database import TABLES as KEYS
from tailrace.persistence.paging import NEWEST, OLDEST, PageCursor
from tailrace.persistence.queries import Queries
from tailrace.persistence.rows import MICROSECOND, TurnRow, build_row, micros, moment, turn_record
from tailrace.persistence.rpc import RowBudget
from tailrace.persistence.sql import load
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows
from tailrace.persistence.turn_list import TurnPageQuery
from tailrace.proto.entries import Message, Outcome
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, child_id, new_id
from tailrace.proto.ownership import Scope
from tailrace.proto.records import ListRunning, ListSessions, ListSessionTurns, ListTurns, TurnRecord
from tailrace.proto.resources import Branch, ChangeSession, CreateSession, DeleteResource, Kind, ListBranches
from tests.harness.stored_turns import (
    DIMENSIONS,
    OURS,
    PROJECTS,
    SOURCES,
    THEIRS,
    batch_of_row,
    counting_reads,
    file_record,
    hash_text,
    key,
    latest_first,
    record_history,
    running_row,
    session_of,
    with_batch,
    words_of_row,
    words_row,
)
from tests.harness.turn_builder import MODEL, NOON, completed_turn, request

# Of texts: NUL and the escape for it, quotes, what sorts last, letters that case changes, and a long text.
HOSTILE = (*"\0\1\x7f'\"\\%_\n\u2028\ufeff\uffff\U0010ffff😀éßİ", "\x010", "\x011", "e\u0301", "x" * 3000)


async def test_a_turn_has_the_owner_of_its_session(store: Store) -> None:
    """Two users of a shared tenant may begin one name at the same moment, each with a turn of its own."""
    names, turn = [TurnId("turn-1"), TurnId("turn-2")], completed_turn("So.").turn
    made = [msgspec.structs.replace(turn, request=request(owner=owner)) for owner in ("ann", "bob")]
    await store.record([build_row(TurnKey(OURS, name), turn) for name, turn in zip(names, made, strict=True)], Seq(2))
    assert [await store.exists(Scope(OURS, "ann"), "turn", name) for name in names] == [True, True]
    assert [await store.exists(Scope(OURS, "bob"), "turn", name) for name in names] == [False, False]


async def test_the_pages_of_a_list_have_each_of_its_items_once_and_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many have the same time. Another tenant has turns with the same ids."""
    monkeypatch.setattr("tailrace.persistence.turn_list.SCAN_MAX", 12)
    rows = await record_history(store)
    queries, batches = Queries(store, 60), BatchQueries(store)
    projects_of, usage_of = ProjectQueries(store, queries), UsageQueries(store, queries)
    users: dict[str, str | None] = {}
    for row in rows:
        users[row.session] = users.get(row.session) or row.user
    used = {session: max(row.asked_at for row in rows if row.session == session) for session in PROJECTS}
    sessions = sorted(PROJECTS, key=lambda session: (used[session], session), reverse=True)
    parents = {row.parent for row in rows}
    running = [row for row in rows if row.outcome == "running"]
    last = NOON.date() + timedelta(days=1)

    async def all_pages(
        run: Callable[[Tenant, Any], Awaitable[Any]], ask: Any, items: str, name: str, limit: int = 1
    ) -> list[str]:
        found, after = list[str](), None
        while not found or after:
            page = await run(OURS, msgspec.structs.replace(ask, after=after, limit=limit))
            found, after = [*found, *(getattr(one, name) for one in getattr(page, items))], page.next
            if not found and after is None:
                break
        return found

    for session, project in PROJECTS.items():
        mine = latest_first(row for row in rows if row.session == session)
        ask = ListSessionTurns(session)
        assert await all_pages(queries.session_turns, ask, "turns", "turn") == mine[::-1]
        newest = msgspec.structs.replace(ask, is_newest_first=True)
        assert await all_pages(queries.session_turns, newest, "turns", "turn") == mine
        assert await store.last_turn(OURS, session) == mine[0]
        leaves = latest_first(row for row in rows if row.session == session and row.turn not in parents)
        assert await all_pages(queries.branches, ListBranches(session), "branches", "turn") == leaves
        begun = latest_first(row for row in running if row.session == session)[::-1]
        assert await all_pages(queries.list_running, ListRunning(session), "turns", "turn") == begun
        later = [row for row in rows if row.session == session and (row.cursor > 20 or row.outcome == "running")]
        positions = await store.turns_since(OURS, session, Seq(20))
        assert [one.turn for one in positions] == [row.turn for row in later]
        found = await session_of(store, session)
        total = sum(row.input_tokens for row in rows if row.session == session)
        assert (found.project_id, found.user, found.turns, found.usage.input_tokens) == (
            project, users[session], len(mine), total,
        )  # fmt: skip
        [asked] = [row.input for row in rows if row.turn == mine[-1]]
        assert found.preview == msgspec.json.decode(asked)[0]["content"]
    assert await all_pages(queries.list_running, ListRunning(), "turns", "turn") == latest_first(running)[::-1]
    assert await UsageTable(store).busy_sessions(OURS, owner=None) == sorted({row.session for row in running})
    for project, user in product((None, "hills", "rivers", "dunes"), (None, "ann", "bob")):
        expected = [
            one for one in sessions if project in (None, PROJECTS[one]) and user in (None, users[one])
        ]  # fmt: skip
        lists = ListSessions(project=project, user=user)
        assert await all_pages(queries.sessions, lists, "sessions", "session") == expected
        for offset in range(4):
            page = await queries.sessions(OURS, msgspec.structs.replace(lists, offset=offset, limit=2))
            assert [one.session for one in page.sessions] == expected[offset : offset + 2]
            assert (page.total, page.next is None) == (len(expected), len(expected) <= offset + 2)
    projects = ["rivers", "lakes", "hills", "seas", "dunes"]
    assert await all_pages(projects_of.projects, ListProjects(), "projects", "id") == projects
    numbered = await projects_of.projects(OURS, ListProjects(offset=1, limit=2))
    assert ([one.id for one in numbered.projects], numbered.total) == (["lakes", "hills"], 5)
    for project in projects:
        one = await projects_of.project(OURS, GetProject(project))
        used_by = [row for row in rows if row.project == project]
        sessions_of = [session for session in PROJECTS if PROJECTS[session] == project]
        tokens = sum(row.input_tokens for row in used_by)
        assert (one.turns, one.sessions, one.usage.input_tokens) == (len(used_by), len(sessions_of), tokens)
        assert micros(one.updated_at) == max([micros(one.created_at), *(row.asked_at for row in used_by)])
    for by, first in product(DIMENSIONS, (NOON.date(), last)):
        names = {
            name_in(row, by) for row in rows if first <= moment(row.asked_at).date() <= last
        }  # fmt: skip
        usage = GetUsage(by, first, last)
        keys = sorted(names, key=lambda name: name or "")
        assert await all_pages(usage_of.usage, usage, "usage", "key") == keys
        for name in names - {None}:
            (one_key,) = (await usage_of.usage(OURS, msgspec.structs.replace(usage, key=name))).usage
            assert one_key.key == name
    recent = Counter(row.model for row in rows if moment(row.asked_at).date() >= last)
    since = await UsageTable(store).usage_since(OURS, NOON + timedelta(days=1))
    assert [(one.key, one.turns) for one in since] == sorted(recent.items())
    outcomes: tuple[Outcome | None, ...] = (None, "completed", "cancelled", "failed")
    for labels, text, outcome in product(
        ({}, {"model": "m"}, {"user": "ann", "metadata.team": "ann"}), (None, "odd", "even all"), outcomes
    ):
        for day in (None, NOON.date(), last):
            expected = latest_first(
                row for row in rows
                if labels.items() <= msgspec.json.decode(row.labels).items()
                and set(hash_text(text or "").split()) <= set(words_of_row(row).split())
                and outcome in (None, row.outcome)
                and (day is None or day <= moment(row.asked_at).date() <= last)
            )  # fmt: skip
            listing = ListTurns(labels, text, day, last if day else None, outcome=outcome)
            # A long page ends with what one scan reads.
            for limit in (1, 50):
                assert (
                    await all_pages(SearchQueries(store, queries).turns, listing, "turns", "turn", limit) == expected
                ), (listing, limit)
    for of, source in SOURCES.items():
        listed = latest_first(row for row in rows if (batch := batch_of_row(row)) and (of is None or source in batch))
        assert await all_pages(batches.batches, ListBatches(of=of), "batches", "batch") == listed
        for number, batch in enumerate(listed):
            older = await batches.batches(OURS, ListBatches(of=of, after_batch=TurnId(batch), limit=2))
            newer = await batches.batches(OURS, ListBatches(of=of, before_batch=TurnId(batch), limit=2))
            assert [one.batch for one in older.batches] == listed[number + 1 : number + 3]
            assert [one.batch for one in newer.batches] == listed[max(0, number - 2) : number]
    for what, user in ((DeleteResource("user", "ann"), "ann"), (DeleteResource("tenant", OURS), None)):
        expected = latest_first(row for row in running if batch_of_row(row) and user in (None, row.user))
        assert [one.turn for one in await store.turns_to_delete(OURS, what)] == expected != []
    assert await BatchTable(store).batch(key(next(row.turn for row in rows if batch_of_row(row) is None))) is None
    assert await store.new_session(OURS, CreateSession("session-10"), NOON - timedelta(days=9))
    assert await all_pages(queries.sessions, ListSessions(), "sessions", "session") == [*sessions, "session-10"]
    empty = await session_of(store, "session-10")
    assert (empty.turns, empty.message_count, empty.total_tokens) == (0, 0, 0)


def name_in(row: TurnRow, dimension: str) -> str | None:
    """Returns the key of the total in which a turn counts."""
    names = {"day": str(moment(row.asked_at).date()), "session": row.session, "project": row.project}
    return names.get(dimension, msgspec.json.decode(row.labels, type=dict[str, str]).get(dimension))


async def test_a_long_branch_is_converted_while_the_event_loop_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [running_row(f"turn-{number}", parent=f"turn-{number - 1}" if number else None) for number in range(102)]
    await store.record(rows)
    has_begun, loop_runs = threading.Event(), threading.Event()

    def convert(row: dict[str, Any]) -> TurnRecord:
        has_begun.set()
        assert loop_runs.wait(5)
        return turn_record(row)

    monkeypatch.setattr("tailrace.persistence.store.turn_record", convert)
    reading = asyncio.create_task(store.branch(key("turn-101")))
    while not reading.done():
        await asyncio.sleep(0.01)
        if has_begun.is_set():
            loop_runs.set()
    assert [turn.turn for turn in await reading] == [row.turn for row in rows]


async def test_a_page_of_branches_reads_only_those_that_fit_in_a_message(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pages have all of them."""
    monkeypatch.setattr("tailrace.persistence.rpc.PAGE_BYTES_MAX", 300)
    leaves = [f"leaf-{number:02}" for number in range(20)]
    await store.record([running_row("root"), *(running_row(leaf, parent="root", step=2) for leaf in leaves)])
    queries, read = Queries(store, 60), list[int]()
    branch_to = store.branch_to

    async def read_and_count(tenant: Tenant, leaf: dict[str, Any]) -> Branch:
        read.append(1)
        return await branch_to(tenant, leaf)

    monkeypatch.setattr(store, "branch_to", read_and_count)
    found, after = list[Branch](), None
    while not found or after:
        page = await queries.branches(OURS, ListBranches("session-1", after, 50))
        found, after = [*found, *page.branches], page.next
        assert len(read) <= len(page.branches) + 1
        read.clear()
    assert [(one.turn, one.turns) for one in found] == [(leaf, ["root", leaf]) for leaf in reversed(leaves)]


@pytest.mark.parametrize("of", ["session", "running", "tenant", "label", "words", "slowest", "costliest"])
async def test_a_page_of_large_turns_reads_few_of_them(store: Store, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """200 of them would fill the memory, and the queries of all tenants would wait. The pages have all of them."""
    monkeypatch.setattr("tailrace.persistence.rpc.PAGE_BYTES_MAX", 5000)
    names = [f"turn-{number:02}" for number in range(20)]
    large = [Message("user", "light " * 500)]
    rows = [running_row(name, step=step, messages=large) for step, name in enumerate(names, 1)]
    if of != "running":
        ended = {
            "outcome": "completed",
            "first_token_at": micros(NOON + timedelta(days=1)),
            "added": words_row(hash_text("light")),
        }
        rows = [msgspec.structs.replace(row, **ended) for row in rows]
    await store.record(rows)
    queries, searches, read = Queries(store, 60), SearchQueries(store, Queries(store, 60)), list[int]()
    first = NOON.date()
    lists: dict[str, tuple[Callable[[Tenant, Any], Awaitable[Any]], Any]] = {
        "session": (queries.session_turns, ListSessionTurns("session-1")),
        "running": (queries.list_running, ListRunning()),
        "tenant": (queries.turns, ListTurns()),
        "label": (queries.turns, ListTurns(labels={"model": MODEL})),
        "words": (searches.turns, ListTurns(text="light")),
        "slowest": (queries.turns, ListTurns(order="first_token_s", first=first)),
        "costliest": (queries.turns, ListTurns(order="-cost_usd", first=first)),
    }
    run, ask = lists[of]
    ends_with = RowBudget.ends_with

    def count(budget: RowBudget, row: Mapping[str, Any]) -> bool:
        read.append(1)
        return ends_with(budget, row)

    monkeypatch.setattr(RowBudget, "ends_with", count)
    found, after = list[str](), None
    while not found or (after and of not in ("slowest", "costliest")):
        page = await run(OURS, msgspec.structs.replace(ask, after=after, limit=50))
        found, after = [*found, *(one.turn for one in page.turns)], page.next
        # The next one, and one whose text fits although its record does not.
        assert len(page.turns) <= len(read) <= len(page.turns) + 2
        read.clear()
    assert sorted(found) == (names[: len(found)] if of in ("slowest", "costliest") else names)


async def test_the_recorder_writes_between_the_turns_of_a_deletion(store: Store) -> None:
    """Each may have megabytes: a transaction that deletes a thousand of them would take minutes."""
    names = [f"turn-{number:02}" for number in range(40)]
    await store.record([running_row(name) for name in names])
    deleting = asyncio.create_task(
        store.delete(OURS, DeleteResource("session", "session-1", tuple(map(TurnId, names))))
    )
    await asyncio.sleep(0)
    await store.without_queue().record([running_row("other", session="session-2")])
    assert not deleting.done()
    assert (await deleting).turns == 40
    assert await store.turn(key("other")) is not None


async def test_a_page_of_the_turns_of_a_batch_reads_only_those_that_fit_in_a_message(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pages have all of them, but none for an input without a turn."""
    monkeypatch.setattr("tailrace.persistence.rpc.PAGE_BYTES_MAX", 2000)
    batch, numbers = TurnId(new_id()), [number for number in range(20) if number != 7]
    await store.record([running_row(child_id(batch, number)) for number in numbers])
    queries, read, find = BatchQueries(store), list[int](), store.turn

    async def read_and_count(key: TurnKey) -> TurnRecord | None:
        read.append(1)
        return await find(key)

    monkeypatch.setattr(store, "turn", read_and_count)
    found, first = list[int](), 0
    while first < 20:
        page = await queries.turns(OURS, ListBatchTurns(batch, first, 20 - first))
        # One did not fit, and one may be missing.
        assert len(read) <= len(page.turns) + 2
        found, first = [*found, *(one.index for one in page.turns)], page.next
        read.clear()
    assert found == numbers


async def test_a_query_of_a_circle_of_parents_ends(store: Store) -> None:
    await store.record([running_row("turn-1", parent="turn-2"), running_row("turn-2", parent="turn-1")])
    assert len(await store.branch(key("turn-1"), 100)) > 1


async def test_files_that_have_expired_are_in_no_list(store: Store) -> None:
    """Those of one purpose are listed alone. At the time at which a file expires, it has expired."""
    later, after_that = NOON + MICROSECOND, NOON + 2 * MICROSECOND
    files = {"a": (None, "x"), "b": (later, "y"), "c": (after_that, "x"), "d": (None, "y"), "e": (after_that, "x")}
    for file, (expires_at, purpose) in files.items():
        for tenant in (OURS, THEIRS):
            await FileTable(store).put_file(tenant, file_record(file, purpose=purpose, expires_at=expires_at))
    for now, wanted in product((NOON, later, after_that), (None, "x", "y")):
        expected = [
            file for file, (ends, of) in files.items() if (ends is None or ends > now) and wanted in (None, of)
        ]  # fmt: skip
        for is_oldest_first in (True, False):
            found, ask = list[str](), ListFiles(purpose=wanted, is_oldest_first=is_oldest_first)
            while page := await FileTable(store).files(OURS, ask, 2, now):
                assert len(page) <= 2
                found += [one.file for one in page]
                ask = msgspec.structs.replace(ask, after=found[-1])
            assert found == (expected if is_oldest_first else expected[::-1])
    for file, now, exists in (("b", NOON, True), ("b", later, False), ("a", after_that, True), ("x", NOON, False)):
        assert (await FileTable(store).file(OURS, file, now) is not None) == exists
    await FileTable(store).delete_files(OURS, ["a", "c"])
    assert (await FileTable(store).every_file(OURS), await store.released_blobs(OURS)) == (["b", "d", "e"], ["a", "c"])
    assert (await FileTable(store).every_file(THEIRS), await store.released_blobs(THEIRS)) == ([*files], [])
    assert await FileTable(store).expired_files(later) == {OURS: ["b"], THEIRS: ["b"]}


async def test_lists_and_statistics_of_sessions_read_as_much_for_many_turns_as_for_few(store: Store) -> None:
    """The totals of a session are those of its turns, also while its tenant is erased in rounds."""
    ended, made, costs = completed_turn("Light").turn, 0, []

    async def counts() -> list[tuple[int, int, int]]:
        page = await store.sessions(OURS, None, NEWEST, 9, NOON, owner=None)
        return [(one.turns, one.message_count, one.total_tokens) for one in page]

    for total in (3, 200):
        await store.record([build_row(key(f"turn-{n:03}"), ended) for n in range(made, total)])
        made = total
        if store.system == "postgresql":
            # PostgreSQL does that itself, a minute later. Without it, the planner reads all of a small table.
            await store.database.read("ANALYZE", {})
        async with counting_reads(store) as read:
            assert await counts() == [(total, 2 * total, 11 * total)]
            assert [one.turns for one in await UsageTable(store).usage_since(OURS, NOON)] == [total]
        costs.append(sum(read))
    assert costs[1] < 2 * costs[0]
    for left in (198, 1):
        purged = tuple(TurnId(f"turn-{n:03}") for n in range(left, made))
        await store.delete(OURS, DeleteResource("tenant", OURS, purged))
        made = left
        assert await counts() == [(left, 2 * left, 11 * left)]
    await store.delete(OURS, DeleteResource("tenant", OURS, (TurnId("turn-000"),)))
    usage = (await UsageTable(store).usage(OURS, "session", NOON.date(), NOON.date(), "", 9))[0]
    assert (await counts(), [(one.key, one.turns) for one in usage]) == ([], [(None, 200)])


async def test_a_list_of_running_turns_reads_no_others(file_store: Store) -> None:
    """Of all sessions, and of one."""
    ended, made, costs = completed_turn("Light").turn, 0, []
    await file_store.record([running_row("running", step=9)])
    for total in (3, 200):
        await file_store.record([build_row(key(f"turn-{n:03}"), ended) for n in range(made, total)])
        made = total
        async with counting_reads(file_store) as read:
            found = [
                await file_store.list_running(OURS, session, OLDEST, 9, owner=None) for session in (None, "session-1")
            ]
        assert [[turn.turn for turn in page] for page in found] == [["running"], ["running"]]
        costs.append(sum(read))
    assert costs[1] < 2 * costs[0]


async def test_a_list_of_the_batches_of_one_api_or_of_the_files_with_one_purpose_reads_no_others(store: Store) -> None:
    """A tenant may have many of another API, and with another purpose. Both orders."""
    many = f'{{"of":1,"parallel":1{SOURCES["anthropic"]}}}'
    few = f'{{"of":1,"parallel":1{SOURCES["openai"]}}}'
    made, costs = 0, []
    for total in (40, 2000):
        rows = [running_row(f"turn-{n:04}", step=n, session=f"s-{n % 9}") for n in range(made, total)]
        await store.record([with_batch(row, few if row.turn == "turn-0020" else many) for row in rows])
        for n in range(made, total):
            purpose = "user_data" if n == 20 else "batch"
            await FileTable(store).put_file(OURS, file_record(f"file-{n:04}", sha256="a", purpose=purpose))
        made = total
        async with counting_reads(store) as read:
            batches = [
                *await BatchTable(store).batches(OURS, NEWEST, 9, "openai", owner=None),
                *await BatchTable(store).newer_batches(OURS, OLDEST, 9, "openai", owner=None),
            ]
            files = [
                *await FileTable(store).files(OURS, ListFiles(purpose="user_data"), 9, NOON),
                *await FileTable(store).files(OURS, ListFiles(purpose="user_data", is_oldest_first=True), 9, NOON),
            ]
        assert ([one.batch for one in batches], [one.file for one in files]) == (["turn-0020"] * 2, ["file-0020"] * 2)
        costs.append(sum(read))
    assert costs[1] < 2 * costs[0]


async def test_a_batch_of_an_api_that_is_unknown_here_is_only_in_the_list_of_all_batches(store: Store) -> None:
    """A newer version may have recorded it."""
    batch = '{"of":1,"parallel":1,"file":{"file":null,"endpoint":"/v1/newer"}}'
    await store.record([with_batch(running_row("turn-1"), batch)])
    apis: tuple[Api | None, ...] = (None, "openai", "anthropic")
    assert [len(await BatchTable(store).batches(OURS, NEWEST, 9, of, owner=None)) for of in apis] == [1, 0, 0]


async def test_turns_of_another_tenant_are_not_found(store: Store) -> None:
    """All statements name the tenant, so knowing an id is not enough."""
    await store.record([build_row(key("turn-1"), completed_turn("Light").turn)])
    assert await store.turn(key("turn-1", THEIRS)) is None
    assert await store.session(THEIRS, "session-1", NOON) is None
    assert await store.sessions(THEIRS, None, NEWEST, 9, NOON, owner=None) == []
    assert await store.session_turns(THEIRS, "session-1", OLDEST, 9) == []
    assert await store.last_turn(THEIRS, "session-1") is None
    assert await store.branch(key("turn-1", THEIRS)) == []
    assert await store.leaves(THEIRS, "session-1", NEWEST, 9) == []
    assert await ProjectTable(store).projects(THEIRS, NEWEST, 9, NOON) == []
    assert await UsageTable(store).usage_since(THEIRS, NOON) == []
    assert await UsageTable(store).busy_sessions(THEIRS, owner=None) == []
    named: list[tuple[Kind, str]] = [("turn", "turn-1"), ("session", "session-1"), ("tenant", "theirs")]
    for kind, name in named:
        assert await store.turns_to_delete(THEIRS, DeleteResource(kind, name, (TurnId("turn-1"),))) == []
        await store.delete(THEIRS, DeleteResource(kind, name, (TurnId("turn-1"),)))
    await store.change_session(THEIRS, ChangeSession("session-1", "theirs", "theirs", "theirs"))
    assert (await session_of(store, "session-1")).title is None
    assert await store.turn(key("turn-1")) is not None


async def test_both_databases_answer_the_same_after_any_changes(file_store: Store, postgresql_store: Store) -> None:
    """Turns, sessions, projects, files and batches are written and deleted.

    Every query returns the same, in order. Only the turns of a session or project to be deleted have no order.
    """
    stores = [file_store, postgresql_store]
    tables = (BatchTable, FileTable, UnstoredTable, ProjectTable, UsageTable, OldSessions)
    parts_of_stores = [(store, *(table(store) for table in tables)) for store in stores]
    chance, by_id = random.Random(34), attrgetter("turn")
    billed, parked, held = random.Random(1), random.Random(2), random.Random(3)
    cursors = chance.sample(range(1000), 1000)

    async def call_both(method: str, *given: object, **named: object) -> Any:
        """Returns what both stores answer."""
        parts = [next(one for one in parts if hasattr(one, method.partition(".")[0])) for parts in parts_of_stores]
        answers = [await attrgetter(method)(part)(*given, **named) for part in parts]
        assert answers[0] == answers[1], (method, given)
        return answers[0]

    def name(kind: str) -> str:
        return f"{chance.choice(('', 'A', 'Ä'))}{kind}{chance.randrange(3)}"

    def text() -> str:
        """Any text that JSON can carry to a gateway."""
        return "".join(chance.choice(HOSTILE) for _ in range(chance.randrange(9)))

    def label() -> str:
        # See `labels_of`.
        return text().replace("\0", "")

    def row(number: int) -> TurnRow:
        ended = completed_turn("Li\0ght", step=chance.randrange(9)).turn
        made = build_row(key(f"turn-{number}"), ended) if chance.random() < 0.5 else running_row(f"turn-{number}")
        user, labels = (
            name("user"),
            {"model": made.model, "metadata.team": name("team"), f"metadata.{label()}": label()},
        )
        made = msgspec.structs.replace(
            made,
            session=name("session"),
            user=user,
            text=text(),
            stop_sequence=text(),
            labels=msgspec.json.encode(labels | {"user": user}).decode(),
            added=words_row(hash_text(chance.choice(("a b", "b c", "c"))) if chance.random() < 0.9 else ""),
            parent=f"turn-{number - 1}" if chance.random() < 0.5 else None,
            project=name("project") if chance.random() < 0.5 else None,
            blobs=f'["{name("blob")}"]',
            by_model=billed.choice((None, '{"m":{"input_tokens":5,"cost_nusd":3},"n":{"output_tokens":7}}')),
            cursor=cursors.pop(),
        )
        if billed.random() < 0.1:
            made = msgspec.structs.replace(made, added={**made.added, "put_older_cost": {}})
        if made.ended_at is not None and parked.random() < 0.5:
            waits = {"park_turn": {"calls_number": parked.choice((1, 2)), "request": "{}"}}
            made = msgspec.structs.replace(made, added={**made.added, **waits})
        if held.random() < 0.5:
            made = msgspec.structs.replace(made, added={**made.added, **reserved(made, number)})
        return with_batch(made, chance.choice((None, *(f'{{"of":1,"parallel":1{one}}}' for one in SOURCES.values()))))

    def reserved(made: TurnRow, number: int) -> AddedRows:
        """What a turn holds of two budgets; of a batch, if its number is odd."""
        amounts = [
            ["budgets.ours.tenant.usd_day.2026-01-01", number, 5, 1],
            ["budgets.ours.k_1.usd_day.2026-01-01", 0, 5, 0],
        ]
        reservations = {
            "held": msgspec.json.encode(amounts).decode(),
            "batch": f"turn-{number - 1}" if number % 2 else None,
            "ended_at": made.ended_at,
            "kept_until": held.choice((None, number)),
        }
        return {"put_reservations": reservations, "put_budget_keys": {"owners": '["k_1"]', "key": f"k{number}"}}

    async def compare_budgets(number: int) -> None:
        """Reads budgets, and ends and deletes reservations."""
        given = {"tenant": OURS, "turn": f"turn-{number - 5}", "ended_at": number, "oldest_at": number - 20}
        days = {
            "subject": "budgets.ours.tenant.usd_day.2026-01-01",
            "owner": "k_1",
            "first": 0,
            "last": 99999,
            "since": 0,
        }
        found = [
            [
                sorted(map(str, await store.read(name, tenant=OURS, **days)))
                for name in ("budget_of_tenant", "budget_of_key")
            ]
            + [sorted(map(str, await store.read("unsure_reservations", limit=999)))]
            for store in stores
        ]
        assert found[0] == found[1]
        for store in stores:
            async with store.write(OURS) as writer:
                await writer.execute("end_reservations", given)
                await writer.execute("delete_ended_reservations", given)

    async def decide(decided: TurnRow) -> None:
        """Decides about a call of a turn, parked or not."""
        call = parked.choice(("call-1", "call-2"))
        given = {"tenant": OURS, "session": decided.session, "turn": decided.turn, "call": call}
        for store in stores:
            async with store.write(OURS) as writer:
                if await writer.execute(
                    "put_decision", given | {"decision": "{}", "decided_by": "key", "decided_at": 1}
                ):
                    await writer.execute("count_decision", given | {"decided_at": 1})

    async def note(number: int) -> None:
        """Stores a webhook that is about no turn, and attempts it."""
        given = {"tenant": OURS, "notice": f"n{number % 9}", "body": f"{number}\0", "noted_at": number}
        for store in stores:
            async with store.write(OURS) as writer:
                await writer.execute("put_notice", given | {"expires_at": number + 60})
                await writer.execute("set_notice_attempts", given | {"attempts": number, "next_at": None})
                await writer.execute("delete_old_notices", given)

    for number in range(120):
        await note(number)
        await compare_budgets(number)
        rows = [row(chance.randrange(50)) for _ in range(3)]
        await call_both("record", rows, Seq(number))
        await decide(rows[0])
        if number % 4 == 0:
            kind = chance.choice(get_args(Kind))
            what = DeleteResource(kind, rows[0].turn if kind == "turn" else name(kind))
            if kind != "tenant" or chance.random() < 0.3:
                turns, same = [await store.turns_to_delete(OURS, what) for store in stores]
                if kind in ("session", "project"):
                    turns, same = sorted(turns, key=by_id), sorted(same, key=by_id)
                assert turns == same, what
                purged = tuple(one.turn for one in turns)
                await call_both("delete", OURS, msgspec.structs.replace(what, purged=purged))
        file = file_record(name("file"), sha256="a", purpose=name("purpose"), bytes_count=number)
        file = msgspec.structs.replace(file, expires_at=chance.choice((None, NOON + timedelta(seconds=number))))
        await call_both("put_file", OURS, file)
        await call_both("new_session", OURS, CreateSession(name("session"), project_id=name("project")), NOON)
        await call_both("change_session", OURS, ChangeSession(name("session"), text(), None, "system"))
        await call_both("put", key(f"turn-{number}"), chance.choice((None, text())))
        await call_both("forget", [key(f"turn-{number - 2}")])
        await call_both("delete_files", OURS, [name("file")])
    await call_both("record", [row(number) for number in range(50, 100)], Seq(999))
    await call_both("fail_expired", Seq(300))
    for table in KEYS:
        contents = [await read_digest(store.database.read, table) for store in stores]
        assert contents[0] == contents[1]
        assert contents[0].rows or table == "unsearched"
    for by in ("day", "session", "project", "model", "key", "user", "metadata.team"):
        start = ""
        while page := (await call_both("usage", OURS, by, NOON.date(), NOON.date(), start, 2))[0]:
            start = f"{page[-1].key or ''}\0"
    assert await call_both("billed_usage", OURS, NOON.date(), NOON.date() + timedelta(days=1))
    assert await call_both("whole_since", OURS) is not None
    assert await call_both("tenants_with_usage", "", 9) == [OURS]
    before, middle = PageCursor(micros(NOON + timedelta(seconds=900)), "turn-2"), "session2"
    sessions = await call_both("sessions", OURS, None, NEWEST, 99, NOON, owner=None)
    project = next(one.project_id for one in sessions if one.project_id)
    by_user = TurnPageQuery(OURS, {"model": MODEL, "user": "user1"}, NOON, NEWEST, 9)
    of_owners: list[tuple[Any, ...]] = [
        ("sessions", OURS, None, before, 5, NOON),
        ("sessions", OURS, project, NEWEST, 5, NOON),
        ("sessions", OURS, None, NEWEST, 5, NOON, "user1"),
        ("numbered_sessions", OURS, None, 2, 5, NOON),
        ("numbered_sessions", OURS, project, 0, 5, NOON),
        ("numbered_sessions", OURS, project, 0, 5, NOON, "user1"),
        ("list_running", OURS, None, OLDEST, 9),
        ("batches", OURS, NEWEST, 9, "openai"),
        ("newer_batches", OURS, OLDEST, 9, "anthropic"),
        ("busy_sessions", OURS),
    ]
    queries: list[tuple[Any, ...]] = [
        ("projects", OURS, NEWEST, 5, NOON),
        ("numbered_projects", OURS, 1, 5, NOON),
        ("turn_list.read_page", TurnPageQuery(OURS, {}, None, before, 9)),
        ("turn_list.read_page", by_user),
        ("turn_list.read_page", TurnPageQuery(OURS, {}, None, NEWEST, 9, "failed")),
        ("list_of_user", OURS, None),
        ("every", key("turn-118")),
        ("session_turns", OURS, middle, OLDEST, 9),
        ("turns_since", OURS, middle, Seq(400)),
        ("leaves", OURS, middle, NEWEST, 9),
        ("branch", key("turn-77")),
        ("files", OURS, ListFiles(), 9, NOON),
        ("files", OURS, ListFiles(is_oldest_first=True), 9, NOON),
        ("expired_files", NOON + timedelta(seconds=200)),
        ("list", Age(NOON + timedelta(days=1), Seq(1000), NOON)),
        ("released_blobs", OURS),
        ("usage_since", OURS, NOON - timedelta(days=1)),
        ("read_recorded_upto",),
    ]
    empty = [query for query in queries if not await call_both(*query)]
    empty += [query for query in of_owners if not await call_both(*query, owner=None)]
    assert not empty, empty
    assert await call_both("session_turns", OURS, middle, NEWEST, 9, is_newest_first=True)
    for query, wanted in ((TurnPageQuery(OURS, {}, None, before, 9), "b"), (by_user, "B c")):
        found = [await SearchReader(store).read_page(query, hash_text(wanted).split()) for store in stores]
        assert found[0] == found[1]
        assert found[0][0]


def test_statements_are_loaded_by_name_without_comments_and_with_their_fragments() -> None:
    """A fragment is no statement, and may include an earlier one."""
    text = """-- The head of the file.
-- fragment: columns
a, b
-- fragment: rows
SELECT {columns} FROM t
-- name: all
-- All rows.
{rows}

-- name: one
{rows} WHERE a = :a
"""
    assert load(text) == {"all": "SELECT a, b FROM t", "one": "SELECT a, b FROM t WHERE a = :a"}
    with pytest.raises(KeyError, match="columns"):
        load("-- name: all\nSELECT {columns}\n")
