"""The store with a real SQLite file and a real PostgreSQL server: rows, queries, migrations, damaged files."""

import asyncio
import os
import random
import re
import resource
import socket
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import UTC, date, datetime, timedelta
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from tailrace.persistence.batch_queries import BatchQueries
from tailrace.persistence.copy_database import TableHasher, copy_database, read_digest
from tailrace.persistence.database import TABLES as KEYS
from tailrace.persistence.migrations import migrations
from tailrace.persistence.paging import NEWEST, OLDEST, PageCursor
from tailrace.persistence.postgresql import SET_VERSION, PostgreSQL, to_positional
from tailrace.persistence.queries import Queries
from tailrace.persistence.resource_queries import ResourceQueries
from tailrace.persistence.rows import MICROSECOND, TurnRow, build_row, labels_of, micros, moment, turn_record
from tailrace.persistence.search_words import hash_words
from tailrace.persistence.sql import load
from tailrace.persistence.sqlite import STATEMENTS, SQLite, move_aside
from tailrace.persistence.store import Store
from tailrace.persistence.turn_list import SEARCHES_WAITING_MAX
from tailrace.proto.batch_records import Api, ListBatches, ListBatchTurns
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import Outcome
from tailrace.proto.errors import (
    Refused,
    StoreBusy,
    StoreCorrupt,
    StoreRefused,
    StoreRolledBack,
    StoreTooNew,
    StoreUnwritable,
)
from tailrace.proto.files import FileRecord, ListFiles
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId, child_id, new_id
from tailrace.proto.records import (
    ListRunning,
    ListSessions,
    ListSessionTurns,
    ListTurns,
    SessionRecord,
    TurnRecord,
    record_from_fold,
)
from tailrace.proto.resources import (
    Branch,
    ChangeSession,
    CreateProject,
    CreateSession,
    DeleteResource,
    GetProject,
    GetUsage,
    Kind,
    ListBranches,
    ListProjects,
    TurnToDelete,
)
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage
from tests.harness.open_store import open_store
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.turn_builder import MODEL, NOON, Handwritten, completed_turn
from tests.harness.until import until

OURS, THEIRS = Tenant("ours"), Tenant("theirs")
TRANSACTIONS = "tailrace_persistence_transaction_seconds_count"
TABLES = [table for table in KEYS if table not in ("reached", "totals")]
# Or over the index of those that are running, of which there are few, over what is mostly empty, or has one row.
BY_INDEX = re.compile(
    r"SEARCH \w+ USING (COVERING )?(INDEX \w+|PRIMARY KEY) \(tenant=\? AND |"
    r"SEARCH sessions USING (COVERING )?INDEX sessions_by_age \(updated_at<\?\)$|"
    r"SEARCH files USING COVERING INDEX files_expiring \(expires_at<\?\)$|"
    r"SEARCH unstored USING PRIMARY KEY \(\(tenant,turn\)>\(\?,\?\)\)$|"
    r"SEARCH searched USING (COVERING INDEX \w+|INTEGER PRIMARY KEY) \(rowid[>=]|"
    r"SCAN search VIRTUAL TABLE INDEX \d+:M1><$|"
    r"SCAN (turns USING INDEX turns_running|searched USING INDEX searched_older)$|"
    r"SCAN (blob_releases|reached|identity|unsearched)$"
)
# As the first version wrote them.
SESSION_1 = "INSERT INTO sessions VALUES (:tenant, :session, :asked_at, :ended_at)"
TURN_1 = """
INSERT INTO turns VALUES (
    :tenant, :turn, :session, :parent, :model, :outcome, :input, :content, :text, :stop_reason, :error,
    :attempts, :metadata, :asked_at, :ended_at, :cursor, :text_chars, :text_sha256
)
"""
USAGE_1 = """
INSERT INTO usage VALUES (
    :tenant, :session, :turn, :input_tokens, :output_tokens, :cache_creation_input_tokens, :cache_read_input_tokens,
    :is_estimated, :cost_nusd
)
"""
# Of texts: NUL and the escape for it, quotes, what sorts last, letters that case changes, and a long text.
HOSTILE = (*"\0\1\x7f'\"\\%_\n\u2028\ufeff\uffff\U0010ffff😀éßİ", "\x010", "\x011", "e\u0301", "x" * 3000)
# None are steps over a table: what was found already, a parameter's list, and the one row of a VALUES.
FOUND = (
    "SCAN branch",
    "SCAN found",
    "SCAN page",
    "SCAN (subquery-1)",
    "SCAN CONSTANT ROW",
    *(f"{step} days" for step in ("SCAN", "SEARCH")),
    "SCAN keys",
    *(f"SCAN {name} VIRTUAL TABLE INDEX 1:" for name in ("json_each", "field", "moved", "other", "word", "written")),
    "SCAN 1 CONSTANT ROW",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tailrace.db"


@pytest_asyncio.fixture
async def file_store(path: Path) -> AsyncIterator[Store]:
    async with open_store(path) as store:
        yield store


@pytest_asyncio.fixture
async def store(either_database: Path | str) -> AsyncIterator[Store]:
    async with open_store(either_database) as store:
        yield store


@pytest_asyncio.fixture
async def postgresql_store(postgresql: PostgreSQLServer) -> AsyncIterator[Store]:
    async with open_store(await postgresql.new_database()) as store:
        yield store


def key(turn: str, tenant: Tenant = OURS) -> TurnKey:
    return TurnKey(tenant, TurnId(turn))


def running_row(
    turn: str, *, session: str = "session-1", parent: str | None = None, step: int = 1, **given: object
) -> TurnRow:
    """The row of a turn that is running; `step` is also the second at which it was asked."""
    log = Handwritten(step)
    log.store_request(session=SessionId(session), parent=parent, **given)
    return build_row(key(turn), log.turn)


async def session_of(store: Store, session: str, since: datetime = NOON) -> SessionRecord:
    found = await store.session(OURS, session, since)
    assert found is not None
    return found


async def turn_of(store: Store, where: TurnKey) -> TurnRecord:
    found = await store.turn(where)
    assert found is not None
    return found


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def size_of(path: Path) -> int:
    return path.stat().st_size


async def content_of(store: Store) -> list[dict[str, object]]:
    """All rows except those of totals, which stay."""
    return [
        row
        for table in TABLES
        for row in await store._database.read(f"SELECT * FROM {table} ORDER BY {', '.join(KEYS[table])}", {})
    ]


@pytest.mark.rule("R27")
async def test_writing_a_turn_twice_changes_nothing(store: Store) -> None:
    """After a kill between commit and acknowledgement it is written again."""
    rows = [build_row(key("turn-1"), completed_turn("Light").turn), running_row("turn-2")]
    await store.record(rows)
    before = await content_of(store)
    await store.record(rows)
    assert await content_of(store) == before


@pytest.mark.rule("R27")
async def test_an_older_fold_never_overwrites_a_newer_one(store: Store) -> None:
    """Entries are delivered in any order; text, usage and session stay those of the newest fold."""
    log = completed_turn("Light")
    beginning = Handwritten()
    beginning.stored = log.stored[:1]
    await store.record([build_row(key("turn-1"), log.turn)])
    before = await content_of(store)
    await store.record([build_row(key("turn-1"), beginning.turn)])
    assert await content_of(store) == before


@pytest.mark.rule("R27")
async def test_a_turn_that_has_ended_has_the_same_rows_if_it_was_recorded_before(store: Store) -> None:
    ended = msgspec.structs.replace(
        build_row(key("turn-1"), completed_turn("Light").turn), stop_sequence="s", envelope='{"a":1}', fits=True,
        error="e", attempts=7, batch="{}", text_sha256="a", cost_is_unknown=True, cache_creation_input_tokens=3,
        cache_read_input_tokens=4, is_estimated=True, cost_nusd=5, messages=6, asked_by="k",
    )  # fmt: skip
    await store.record([running_row("turn-1")])
    await store.record([ended, msgspec.structs.replace(ended, tenant=THEIRS)])
    ours, theirs = [
        [{**row, "tenant": None, "number": None} for row in await content_of(store) if row["tenant"] == tenant]
        for tenant in (OURS, THEIRS)
    ]
    assert ours == theirs


@pytest.mark.rule("R27")
async def test_a_running_turn_that_has_left_the_log_is_failed(store: Store) -> None:
    """Of any tenant; ended turns, and turns that the log may still have, do not change."""
    ended, theirs = completed_turn("Light").turn, key("turn-1", THEIRS)
    late, first = Handwritten(5), Seq(ended.chain.last + 1)
    late.stored = [msgspec.structs.replace(stored, seq=first) for stored in completed_turn("Light").stored[:1]]
    rows = [running_row("turn-1"), build_row(key("turn-2"), ended), build_row(key("turn-3"), late.turn)]
    await store.record([*rows, msgspec.structs.replace(rows[0], tenant=THEIRS)])
    assert await store.fail_expired(first) == 2
    for lost in (key("turn-1"), theirs):
        record = await turn_of(store, lost)
        assert (record.outcome, record.error, record.ended_at) == ("failed", LOST_FAILURE, None)
    kept = [(await turn_of(store, key(turn))).outcome for turn in ("turn-2", "turn-3")]
    assert kept == ["completed", "running"]
    assert await store.busy_sessions(OURS) == ["session-1"]
    assert await store.fail_expired(first) == 0
    await store.record([running_row("turn-4")])
    await store.fail_lost([key("turn-2"), key("turn-3")])
    kept = [(await turn_of(store, key(f"turn-{number}"))).outcome for number in (2, 3, 4)]
    assert kept == ["completed", "failed", "running"]


@pytest.mark.parametrize("wrong", [{"outcome": "sleeping"}, {"cost_nusd": 2**63}, {"text": "\ud800"}])
async def test_a_batch_is_written_completely_or_not_at_all(store: Store, wrong: dict[str, object]) -> None:
    """A row that SQLite rejects rolls back its batch."""
    refused = TurnRow(**{**msgspec.structs.asdict(running_row("turn-2")), **wrong})
    with pytest.raises(StoreRefused):
        await store.record([running_row("turn-1"), refused])
    assert await content_of(store) == []
    await store.record([running_row("turn-1")])
    assert await store.turn(key("turn-1")) is not None


async def test_a_database_that_lacks_what_was_committed_is_not_written(
    store: Store, either_database: Path | str
) -> None:
    """As after a restore, or a failover without synchronous replication. The next start records the log again."""
    for seq in (Seq(7), Seq(6)):
        await store.record([running_row("turn-1")], seq)
    async with open_store(either_database) as administrator:
        await administrator.reset_recorded_upto()
    with pytest.raises(StoreRolledBack, match="up to 0, and this process had recorded it up to 7"):
        await store.record([running_row("turn-2")], Seq(8))
    # No turn may be recorded for hours.
    with pytest.raises(StoreRolledBack):
        await store.fail_expired(Seq(1))
    assert (await store.turn(key("turn-2")), await store.read_recorded_upto()) == (None, 0)


MIGRATED = {
    "sqlite": "PRAGMA user_version = 999",
    "postgresql": "UPDATE tailrace_version SET version = 999",
}


async def test_a_row_that_a_newer_schema_refuses_is_not_left_out(store: Store) -> None:
    """During an upgrade, an older process may still run. What it cannot write is recorded by a newer one."""
    refused = TurnRow(**{**msgspec.structs.asdict(running_row("turn-1")), "outcome": "sleeping"})
    async with store._database.transaction() as transaction:
        await transaction.execute(MIGRATED[store.system], {})
    with pytest.raises(StoreTooNew, match="has schema version 999"):
        await store.record([refused])
    await store.record([running_row("turn-2")])
    assert await store.turn(key("turn-2")) is not None


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_turn_is_refused_whose_usage_makes_a_sum_too_large(store: Store, at_once: bool) -> None:
    """In the totals and in the sum of a batch: the recorder leaves such a turn out, and goes on."""
    rows = [msgspec.structs.replace(running_row(f"turn-{number}"), input_tokens=2**62) for number in range(2)]
    if not at_once:
        await store.record([rows.pop()])
    with pytest.raises(StoreRefused):
        await store.record(rows)
    assert (await store.turn(key("turn-0")), await store.turn(key("turn-1")) is None) == (None, at_once)


SOURCES: dict[Api | None, str] = {
    None: "",
    "openai": ',"file":{"file":"file-1","endpoint":"/v1/chat/completions"}',
    "anthropic": ',"file":{"file":null,"endpoint":"/v1/messages"}',
}
PROJECTS = {
    f"session-{number}": project
    for number, project in enumerate(
        ("rivers", "rivers", "hills", "rivers", None, "rivers", "seas", "rivers", "rivers")
    )
}


def history(chance: random.Random) -> list[TurnRow]:
    """Returns turns of few sessions, users and times. The order of their ids is not that of their times."""
    rows: list[TurnRow] = []
    for number, name in enumerate(chance.sample(range(40), 40)):
        row = running_row(f"turn-{name:02}")
        labels = {"model": chance.choice(("m", "n")), "key": "k", "metadata.team": chance.choice(("ann", "b"))}
        user, of = chance.choice(("ann", "bob", "cat", None)), chance.choice((None, *SOURCES))
        labels |= {"user": user} if user else {}
        session = f"session-{number % 9}"
        day = chance.randrange(3)
        if day == 2:
            labels["metadata.team"] = "a"
        rows.append(
            msgspec.structs.replace(
                row,
                session=session,
                project=PROJECTS[session],
                user=user,
                model=labels["model"],
                asked_by="k",
                asked_at=micros(NOON + timedelta(days=day, seconds=chance.randrange(3))),
                labels=msgspec.json.encode(labels).decode(),
                words=hash_text(f"all {chance.choice(('odd', 'even'))}"),
                parent=chance.choice(rows).turn if number % 3 else None,
                outcome=chance.choice(("running", "completed", "completed", "cancelled", "failed")),
                batch=f'{{"of":1,"parallel":1{SOURCES[of]}}}' if chance.random() < 0.5 else None,
                blobs=f'["{number % 7}"]',
                cursor=number,
                messages=number,
                input_tokens=2**number,
                output_tokens=number,
                cache_creation_input_tokens=number,
                cache_read_input_tokens=number,
                cost_nusd=number,
            )
        )
    return rows


async def record_history(store: Store) -> list[TurnRow]:
    """Records the same turns for two tenants; returns those of ours."""
    rows = history(random.Random(11))
    for number, project in enumerate(("lakes", "hills", "rivers", "seas", "dunes")):
        created_at = NOON - timedelta(days=number // 3)
        for tenant in (THEIRS, OURS):
            assert await store.new_project(tenant, CreateProject(project, project), created_at)
    for tenant in (OURS, THEIRS):
        await store.record([msgspec.structs.replace(row, tenant=tenant) for row in rows])
    return rows


def latest_first(rows: Iterable[TurnRow]) -> list[str]:
    return [row.turn for row in sorted(rows, key=lambda row: (row.asked_at, row.turn), reverse=True)]


async def test_the_pages_of_a_list_have_each_of_its_items_once_and_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many have the same time. Another tenant has turns with the same ids."""
    monkeypatch.setattr("tailrace.persistence.turn_list.SCAN_MAX", 12)
    rows = await record_history(store)
    queries, batches = Queries(store, 60), BatchQueries(store)
    resources = ResourceQueries(store, queries)
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
        assert await all_pages(resources.branches, ListBranches(session), "branches", "turn") == leaves
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
    assert await all_pages(queries.list_running, ListRunning(), "turns", "turn") == latest_first(running)[::-1]
    assert await store.busy_sessions(OURS) == sorted({row.session for row in running})
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
    assert await all_pages(resources.projects, ListProjects(), "projects", "id") == projects
    numbered = await resources.projects(OURS, ListProjects(offset=1, limit=2))
    assert ([one.id for one in numbered.projects], numbered.total) == (["lakes", "hills"], 5)
    for project in projects:
        one = await resources.project(OURS, GetProject(project))
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
        assert await all_pages(resources.usage, usage, "usage", "key") == keys
        for name in names - {None}:
            (one_key,) = (await resources.usage(OURS, msgspec.structs.replace(usage, key=name))).usage
            assert one_key.key == name
    recent = Counter(row.model for row in rows if moment(row.asked_at).date() >= last)
    since = await store.usage_since(OURS, NOON + timedelta(days=1))
    assert [(one.key, one.turns) for one in since] == sorted(recent.items())
    outcomes: tuple[Outcome | None, ...] = (None, "completed", "cancelled", "failed")
    for labels, text, outcome in product(
        ({}, {"model": "m"}, {"user": "ann", "metadata.team": "ann"}), (None, "odd", "even all"), outcomes
    ):
        for day in (None, NOON.date(), last):
            expected = latest_first(
                row for row in rows
                if labels.items() <= msgspec.json.decode(row.labels).items()
                and set(hash_text(text or "").split()) <= set(row.words.split())
                and outcome in (None, row.outcome)
                and (day is None or day <= moment(row.asked_at).date() <= last)
            )  # fmt: skip
            asked = ListTurns(labels, text, day, last if day else None, outcome=outcome)
            # A long page ends with what one scan reads.
            for limit in (1, 50):
                assert await all_pages(queries.turns, asked, "turns", "turn", limit) == expected, (asked, limit)
    for of, source in SOURCES.items():
        listed = latest_first(row for row in rows if row.batch and (of is None or source in row.batch))
        assert await all_pages(batches.batches, ListBatches(of=of), "batches", "batch") == listed
        for number, batch in enumerate(listed):
            older = await batches.batches(OURS, ListBatches(of=of, after_batch=TurnId(batch), limit=2))
            newer = await batches.batches(OURS, ListBatches(of=of, before_batch=TurnId(batch), limit=2))
            assert [one.batch for one in older.batches] == listed[number + 1 : number + 3]
            assert [one.batch for one in newer.batches] == listed[max(0, number - 2) : number]
    for what, user in ((DeleteResource("user", "ann"), "ann"), (DeleteResource("tenant", OURS), None)):
        expected = latest_first(row for row in running if row.batch and user in (None, row.user))
        assert [one.turn for one in await store.turns_to_delete(OURS, what)] == expected != []
    assert await store.batch(key(next(row.turn for row in rows if row.batch is None))) is None
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
    queries, read = ResourceQueries(store, Queries(store, 60)), list[int]()
    branch_to = store.branch_to

    async def counted(tenant: Tenant, leaf: dict[str, Any]) -> Branch:
        read.append(1)
        return await branch_to(tenant, leaf)

    monkeypatch.setattr(store, "branch_to", counted)
    found, after = list[Branch](), None
    while not found or after:
        page = await queries.branches(OURS, ListBranches("session-1", after, 50))
        found, after = [*found, *page.branches], page.next
        assert len(read) <= len(page.branches) + 1
        read.clear()
    assert [(one.turn, one.turns) for one in found] == [(leaf, ["root", leaf]) for leaf in reversed(leaves)]


async def test_a_page_of_the_turns_of_a_batch_reads_only_those_that_fit_in_a_message(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pages have all of them, but none for an input without a turn."""
    monkeypatch.setattr("tailrace.persistence.rpc.PAGE_BYTES_MAX", 2000)
    batch, numbers = TurnId(new_id()), [number for number in range(20) if number != 7]
    await store.record([running_row(child_id(batch, number)) for number in numbers])
    queries, read, find = BatchQueries(store), list[int](), store.turn

    async def counted(key: TurnKey) -> TurnRecord | None:
        read.append(1)
        return await find(key)

    monkeypatch.setattr(store, "turn", counted)
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


async def test_an_old_session_that_is_used_again_is_not_deleted(store: Store) -> None:
    """Retention has found it just before."""
    old = msgspec.structs.replace(build_row(key("turn-1"), completed_turn("Light").turn), session="old")
    theirs = msgspec.structs.replace(old, tenant=THEIRS)
    await store.record([old, msgspec.structs.replace(old, turn="turn-2", session="unused"), theirs])
    before, first = NOON + timedelta(days=1), Seq(old.cursor + 1)
    assert await store.old_sessions(before, first, NOON) == [(OURS, "old"), (OURS, "unused"), (THEIRS, "old")]
    assert await store.old_sessions(moment(max(old.asked_at, old.ended_at or 0)), first, NOON) == []
    # The sequences of another log, which is younger than the turns, say nothing.
    assert await store.old_sessions(before, Seq(1), NOON) == []
    assert len(await store.old_sessions(before, Seq(1), before)) == 3
    late = build_row(key("turn-3"), completed_turn("Light").turn)
    await store.record([msgspec.structs.replace(late, session="old", cursor=first)])
    for session, turn, is_deleted in (("old", "turn-1", False), ("unused", "turn-2", True)):
        what = DeleteResource("session", session, (TurnId(turn),))
        assert await store.delete_old(OURS, what, before, first, NOON) == is_deleted
        assert (await store.turn(key(turn)) is None) == is_deleted
        assert (await store.session(OURS, session, NOON) is None) == is_deleted


async def test_a_blob_is_released_with_a_turn_and_kept_by_another_of_its_tenant(store: Store) -> None:
    """Blobs of two tenants are different blobs; a blob that is released twice is one row."""
    shared, own = ("a" * 64, "b" * 64)
    both = [shared, own]
    first = msgspec.structs.replace(running_row("turn-1"), blobs=msgspec.json.encode(both).decode())
    theirs = msgspec.structs.replace(first, tenant=THEIRS)
    second = msgspec.structs.replace(running_row("turn-2"), blobs=f'["{shared}"]')
    await store.record([first, theirs, second, first])
    await store.release_blobs(OURS, both)
    await store.delete(OURS, DeleteResource("session", "session-1", (TurnId("turn-1"),)))
    assert (await store.released_blobs(OURS), await store.released_blobs(OURS, after=shared)) == ([shared, own], [own])
    assert (await store.tenants_with_released_blobs(), await store.released_blobs(THEIRS)) == ([OURS], [])
    assert await store.referenced_blobs(OURS, [shared, own]) == [shared]
    await store.release_blobs(THEIRS, both)
    await store.keep_referenced(OURS, [shared, own])
    assert await store.released_blobs(OURS) == [own]
    await store.forget_released(OURS, [own])
    assert (await store.tenants_with_released_blobs(), await store.released_blobs(THEIRS)) == ([THEIRS], [shared, own])
    await store.keep_referenced(THEIRS, [shared, own])
    assert await store.tenants_with_released_blobs() == []
    for tenant, turns in ((OURS, ("turn-2",)), (THEIRS, ("turn-1",))):
        await store.delete(tenant, DeleteResource("session", "session-1", tuple(map(TurnId, turns))))
        await store.forget_released(tenant, [shared, own])
    assert await content_of(store) == []


@pytest.mark.parametrize(
    ("batch", "outcome", "is_released"),
    [("{}", "completed", True), ("{}", "running", False), (None, "completed", False)],
)
async def test_an_erasure_releases_the_inputs_of_batches_that_have_ended(
    store: Store, batch: str | None, outcome: str, is_released: bool
) -> None:
    """A running batch has inputs of other users to submit. The parent of other turns is no batch."""
    parent = msgspec.structs.replace(running_row("parent"), batch=batch, outcome=outcome, blobs='["inputs"]')
    child = running_row("child", parent="parent", user="ann", step=2)
    await store.record([parent, msgspec.structs.replace(child, blobs='["own"]')])
    await store.delete(OURS, DeleteResource("user", "ann", (TurnId("child"),)))
    assert await store.released_blobs(OURS) == (["inputs", "own"] if is_released else ["own"])
    assert await store.referenced_blobs(OURS, ["inputs", "own"]) == ([] if is_released else ["inputs"])


async def test_the_notes_of_turns_that_are_not_stored_are_read_in_pages(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.persistence.store.UNSTORED_MAX", 2)
    noted = [key(f"turn-{number}", tenant) for tenant in (OURS, THEIRS) for number in range(3)]
    for one in noted[::-1]:
        await store.put_unstored(one, "ann")
    found, after = list[TurnKey](), TurnKey(Tenant(""), TurnId(""))
    while page := await store.every_unstored(after):
        assert len(page) <= 2
        found, after = [*found, *page], page[-1]
    assert found == noted
    await store.forget_unstored(noted[:1])
    for user in ("ann", None):
        assert await store.list_unstored(OURS, user) == ["turn-1", "turn-2"]
        assert len(await store.list_unstored(THEIRS, user)) == 2


async def test_a_session_begins_with_its_first_turn_and_was_used_when_its_last_turn_ended(store: Store) -> None:
    """In whichever order they are recorded."""
    ended = build_row(key("turn-2"), completed_turn("Light", step=20).turn)
    await store.record([ended])
    await store.record([running_row("turn-1", step=5)])
    found = await session_of(store, "session-1")
    assert (found.created_at, micros(found.updated_at)) == (NOON + timedelta(seconds=5), ended.ended_at)


async def tenant_rows(store: Store, tenant: Tenant) -> dict[str, list[dict[str, Any]]]:
    """Returns all rows of a tenant, by table."""
    found: dict[str, list[dict[str, Any]]] = {}
    for table in KEYS:
        if table != "reached":
            statement = f"SELECT * FROM {table} WHERE tenant = :tenant ORDER BY {', '.join(KEYS[table])}"
            found[table] = await store._database.read(statement, {"tenant": tenant})
    return found


async def test_a_deletion_deletes_all_rows_of_its_turns_and_none_of_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of another tenant, which has turns with the same ids."""
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 7)
    paid, forgotten = await record_history(store), set[str]()
    left = {row.turn: row for row in paid}
    theirs = await tenant_rows(store, THEIRS)
    first = next(iter(left))
    deletions: list[tuple[Kind, str, set[str]]] = [
        ("turn", first, {first}),
        ("session", "session-0", {turn for turn, row in left.items() if row.session == "session-0"}),
        ("project", "rivers", {turn for turn, row in left.items() if row.project == "rivers"}),
        ("user", "ann", {turn for turn, row in left.items() if row.user == "ann"}),
        ("tenant", OURS, {*left}),
    ]
    for kind, name, named in deletions:
        expected = named & {*left}
        if kind in ("turn", "user"):
            # Also the turns that continue them, which come after them in `left`.
            for turn, row in left.items():
                if row.parent in expected:
                    expected.add(turn)
        what, purged = DeleteResource(kind, name), set[str]()
        while turns := await store.turns_to_delete(OURS, what):
            assert {one.turn for one in turns} <= expected
            assert len({one.turn for one in turns}) == len(turns)
            if running := [key(one.turn) for one in turns if one.is_running]:
                await store.fail_lost(running)
                continue
            part = tuple(one.turn for one in turns)
            if kind == "tenant":
                assert [*part] == latest_first(row for turn, row in left.items() if turn not in purged)[:7]
            await store.delete(OURS, msgspec.structs.replace(what, purged=part))
            purged |= {*part}
        await store.delete(OURS, what)
        assert purged == expected
        left = {turn: row for turn, row in left.items() if turn not in purged}
        ours = await tenant_rows(store, OURS)
        for table in ("turns", "usage", "labels", "searched"):
            assert {row["turn"] for row in ours[table]} == {*left}, (kind, table)
        # The inputs of an ended batch are erased with a turn of it.
        used = {row["turn"] for row in ours["blob_uses"]}
        assert used == {*left} or (kind == "user" and used < {*left})
        names = {row[name] for row in ours["sessions"] for name in ("session", "project", "user")}
        assert {row.session for row in left.values()} <= names
        assert kind == "turn" or name not in names
        assert await tenant_rows(store, THEIRS) == theirs
        forgotten |= {name} if kind != "tenant" else {"hills", "seas", "bob", "cat"}
        named_totals = {row["key"] for row in ours["totals"] if row["dimension"] in ("user", "project") and row["key"]}
        assert named_totals == {"rivers", "hills", "seas", "ann", "bob", "cat"} - forgotten
    assert {table for table, rows in ours.items() if rows} == {"totals", "blob_releases"}
    # The usage was paid for.
    for dimension in DIMENSIONS[:6]:
        rest = [row for row in ours["totals"] if row["dimension"] == dimension]
        assert {row["key"] for row in rest} == {""} or dimension in ("day", "model", "key")
        assert sum(row["turns"] for row in rest) == len(paid)
        for count in COUNTS:
            assert sum(row[count] for row in rest) == sum(getattr(row, count) for row in paid), (dimension, count)
        assert max(row["asked_at"] for row in rest) == max(row.asked_at for row in paid)


async def test_files_that_have_expired_are_in_no_list(store: Store) -> None:
    """Those of one purpose are listed alone. At the time at which a file expires, it has expired."""
    later, after_that = NOON + MICROSECOND, NOON + 2 * MICROSECOND
    files = {"a": (None, "x"), "b": (later, "y"), "c": (after_that, "x"), "d": (None, "y"), "e": (after_that, "x")}
    for file, (expires_at, purpose) in files.items():
        record = FileRecord(file=file, sha256=file, bytes=1, filename="n", media_type="t", purpose=purpose,
                            created_at=NOON, expires_at=expires_at)  # fmt: skip
        for tenant in (OURS, THEIRS):
            await store.put_file(tenant, record)
    for now, wanted in product((NOON, later, after_that), (None, "x", "y")):
        expected = [
            file for file, (ends, of) in files.items() if (ends is None or ends > now) and wanted in (None, of)
        ]  # fmt: skip
        for is_oldest_first in (True, False):
            found, ask = list[str](), ListFiles(purpose=wanted, is_oldest_first=is_oldest_first)
            while page := await store.files(OURS, ask, 2, now):
                assert len(page) <= 2
                found += [one.file for one in page]
                ask = msgspec.structs.replace(ask, after=found[-1])
            assert found == (expected if is_oldest_first else expected[::-1])
    for file, now, exists in (("b", NOON, True), ("b", later, False), ("a", after_that, True), ("x", NOON, False)):
        assert (await store.file(OURS, file, now) is not None) == exists
    await store.delete_files(OURS, ["a", "c"])
    assert (await store.every_file(OURS), await store.released_blobs(OURS)) == (["b", "d", "e"], ["a", "c"])
    assert (await store.every_file(THEIRS), await store.released_blobs(THEIRS)) == ([*files], [])
    assert await store.expired_files(later) == {OURS: ["b"], THEIRS: ["b"]}


async def test_a_user_whose_turns_are_deleted_in_several_rounds_leaves_no_session(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session in which another user has a turn stays, without the name and the title."""
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 1)
    rows = [running_row(f"turn-{n}", session=f"session-{n}", user="ann", step=n) for n in range(3)]
    await store.record([*rows, running_row("turn-3", session="session-0", user="bob", step=3)])
    await store.change_session(OURS, ChangeSession("session-0", "Ann on rivers"))
    # The last turn of a session of another user.
    bobs = [
        running_row("turn-4", session="session-9", user="bob"),
        running_row("turn-5", session="session-9", user="ann"),
    ]
    await store.record(bobs)
    await store.delete(OURS, DeleteResource("turn", "turn-4", (TurnId("turn-4"),)))
    ann = DeleteResource("user", "ann")
    while turns := await store.turns_to_delete(OURS, ann):
        await store.delete(OURS, msgspec.structs.replace(ann, purged=tuple(turn.turn for turn in turns)))
    left = await store.sessions(OURS, None, NEWEST, 9, NOON)
    assert [(one.session, one.user, one.title) for one in left] == [
        ("session-0", None, None),
        ("session-9", "bob", None),
    ]


async def test_an_erasure_in_rounds_reads_a_part_of_the_turns_and_deletes_follow_ups_before_their_parents(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of other users, which continue old and new turns of the user."""
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 10)
    ann, made, costs = DeleteResource("user", "ann"), 0, []
    for total in (40, 600):
        ended = {"outcome": "completed", "batch": "{}"}
        anns = [
            msgspec.structs.replace(running_row(f"ann-{n:03}", step=n, user="ann"), **ended) for n in range(made, total)
        ]
        # One continues its parent at once, the other when the user has many newer turns.
        bobs = [
            running_row(f"bob-{n:03}", step=n + later, user="bob", parent=f"ann-{n:03}")
            for n, later in ((made + 3, 2000), (total - 3, 1))
        ]
        await store.record([*anns, *bobs])
        made = total
        async with counting_reads(store) as read:
            await store.turns_to_delete(OURS, ann)
        costs.append(sum(read))
    small, large = costs
    # PostgreSQL reads a small table as a whole.
    assert large < 2 * small or store.system == "postgresql"
    deleted: list[TurnId] = []
    while turns := await store.turns_to_delete(OURS, ann):
        assert len(turns) <= 10
        purged = tuple(turn.turn for turn in turns[:7])
        await store.delete(OURS, msgspec.structs.replace(ann, purged=purged))
        deleted += purged
    bobs_parents = {turn: turn.replace("bob", "ann") for turn in deleted if turn.startswith("bob")}
    assert (len(deleted), len(bobs_parents)) == (604, 4)
    assert [turn for turn, parent in bobs_parents.items() if deleted.index(TurnId(parent)) < deleted.index(turn)] == []


async def test_an_erasure_lists_the_turns_of_a_conversation_once(store: Store) -> None:
    """Each is a turn of the user, and continues others of the user."""
    rows = [running_row(f"turn-{n}", step=n, user="ann", parent=f"turn-{n - 1}" if n else None) for n in range(5)]
    await store.record(rows)
    listed = await store.turns_to_delete(OURS, DeleteResource("user", "ann"))
    assert [one.turn for one in listed] == [f"turn-{n}" for n in range(4, -1, -1)]


async def test_a_turn_is_recorded_with_few_requests_to_postgresql(
    postgresql_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a round trip to the server. None is sent for blobs and joined projects if there are none."""
    sent: list[str] = []

    def counted(method: str) -> Callable[..., Any]:
        real = getattr(asyncpg.Connection, method)

        async def call(self: asyncpg.Connection, text: str, *given: Any, **named: Any) -> Any:
            sent.append(text)
            return await real(self, text, *given, **named)

        return call

    for method in ("execute", "executemany", "fetch"):
        monkeypatch.setattr(asyncpg.Connection, method, counted(method))
    await postgresql_store.record([running_row("turn-1")], Seq(1))
    assert len(sent) == 12, sent


async def test_many_files_are_deleted_in_few_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.persistence.store.DELETE_FILES_MAX", 4)
    files = [f"file-{number}" for number in range(10)]
    for file in files:
        record = FileRecord(file=file, sha256=file, bytes=1, filename="x", media_type="y", purpose="z",
                            created_at=NOON, expires_at=NOON)  # fmt: skip
        await store.put_file(OURS, record)
    assert await store.expired_files(NOON) == {OURS: files}
    before = REGISTRY.get_sample_value(TRANSACTIONS) or 0
    await store.delete_files(OURS, await store.every_file(OURS))
    assert (REGISTRY.get_sample_value(TRANSACTIONS) or 0) - before == 3
    assert await store.every_file(OURS) == []
    assert await store.released_blobs(OURS) == files


@pytest.mark.parametrize("kind", ["project", "user", "tenant"])
async def test_a_round_of_a_deletion_reads_a_part_of_the_sessions(file_store: Store, kind: Kind) -> None:
    """Those of its turns. Sessions that were empty before are deleted with the last turn."""
    database, what, made, costs = file_store._database, DeleteResource(kind, "ann"), 0, list[int]()
    assert isinstance(database, SQLite)
    steps: list[int] = []
    named = {"project" if kind == "project" else "user": "ann"}
    rows = [running_row(f"turn-{n:03}", step=n, session=f"session-{n}", **named) for n in range(400)]
    for total in (20, 400):
        await file_store.record(rows[made:total])
        made = total
        steps.clear()
        purged = tuple(TurnId(row.turn) for row in rows[total - 5 : total])
        await database._writer.set_progress_handler(lambda: steps.append(1), 1)
        deleted = await file_store.delete(OURS, msgspec.structs.replace(what, purged=purged))
        await database._writer.set_progress_handler(lambda: None, 1_000_000)
        assert (deleted.turns, deleted.sessions) == (5, 5)
        costs.append(len(steps))
    assert costs[1] < 1.5 * costs[0]
    await file_store.delete(OURS, DeleteResource("turn", "turn-000", (TurnId("turn-000"),)))
    purged = tuple(turn.turn for turn in await file_store.turns_to_delete(OURS, what))
    deleted = await file_store.delete(OURS, msgspec.structs.replace(what, purged=purged))
    assert (deleted.turns, deleted.sessions) == (389, 390)
    assert await content_of(file_store) == []


async def test_a_project_is_deleted_with_its_last_session(store: Store) -> None:
    """Sessions without turns are deleted; a new turn keeps its session and project."""
    await store.record(
        [running_row("turn-1", project="rivers"), running_row("turn-2", session="session-2", project="rivers")]
    )
    await store.delete(OURS, DeleteResource("project", "rivers", (TurnId("turn-1"),)))
    left = await store.project(OURS, "rivers", NOON)
    assert left is not None
    assert (left.sessions, await store.turns_to_delete(OURS, DeleteResource("project", "rivers"))) == (
        1,
        [TurnToDelete(TurnId("turn-2"), is_running=True)],
    )
    await store.delete(OURS, DeleteResource("project", "rivers", (TurnId("turn-2"),)))
    assert await store.project(OURS, "rivers", NOON) is None


async def test_follow_ups_are_listed_before_their_parents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion in pages can continue from the named turn."""
    parents = {"root": None, "left": "root", "right": "root", "leaf": "right", "alone": None}
    await store.record([running_row(turn, parent=parent) for turn, parent in parents.items()])
    turns = [doomed.turn for doomed in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))]
    assert (turns[0], sorted(turns[1:3]), turns[3:]) == ("leaf", ["left", "right"], ["root"])
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 3)
    assert [doomed.turn for doomed in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))] == turns[:3]


async def test_a_session_is_active_until_it_is_idle_for_long_enough(store: Store) -> None:
    await store.record([running_row("turn-1", step=10)])
    used = NOON + timedelta(seconds=10)
    for since, is_active in ((used - timedelta(microseconds=1), True), (used, False)):
        assert (await session_of(store, "session-1", since)).is_active == is_active
        assert await store.active_sessions(OURS, since) == int(is_active)
    await store.record([running_row("turn-2", step=20)])
    assert (await session_of(store, "session-1", used)).is_active


async def test_lists_and_statistics_of_sessions_read_as_much_for_many_turns_as_for_few(store: Store) -> None:
    """The totals of a session are those of its turns, also while its tenant is erased in rounds."""
    ended, made, costs = completed_turn("Light").turn, 0, []

    async def counts() -> list[tuple[int, int, int]]:
        page = await store.sessions(OURS, None, NEWEST, 9, NOON)
        return [(one.turns, one.message_count, one.total_tokens) for one in page]

    for total in (3, 200):
        await store.record([build_row(key(f"turn-{n:03}"), ended) for n in range(made, total)])
        made = total
        async with counting_reads(store) as read:
            assert await counts() == [(total, 2 * total, 11 * total)]
            assert [one.turns for one in await store.usage_since(OURS, NOON)] == [total]
        costs.append(sum(read))
    assert costs[1] < 2 * costs[0]
    for left in (198, 1):
        purged = tuple(TurnId(f"turn-{n:03}") for n in range(left, made))
        await store.delete(OURS, DeleteResource("tenant", OURS, purged))
        made = left
        assert await counts() == [(left, 2 * left, 11 * left)]
    await store.delete(OURS, DeleteResource("tenant", OURS, (TurnId("turn-000"),)))
    usage = await store.usage(OURS, "session", NOON.date(), NOON.date(), "", 9)
    assert (await counts(), [(one.key, one.turns) for one in usage]) == ([], [(None, 200)])


async def test_a_list_of_running_turns_reads_no_others(file_store: Store) -> None:
    """Of all sessions, and of one."""
    ended, made, costs = completed_turn("Light").turn, 0, []
    await file_store.record([running_row("running", step=9)])
    for total in (3, 200):
        await file_store.record([build_row(key(f"turn-{n:03}"), ended) for n in range(made, total)])
        made = total
        async with counting_reads(file_store) as read:
            found = [await file_store.list_running(OURS, session, OLDEST, 9) for session in (None, "session-1")]
        assert [[turn.turn for turn in page] for page in found] == [["running"], ["running"]]
        costs.append(len(read))
    assert costs[1] < 2 * costs[0]


async def test_a_list_of_the_batches_of_one_api_or_of_the_files_with_one_purpose_reads_no_others(store: Store) -> None:
    """A tenant may have many of another API, and with another purpose. Both orders."""
    many = f'{{"of":1,"parallel":1{SOURCES["anthropic"]}}}'
    few = f'{{"of":1,"parallel":1{SOURCES["openai"]}}}'
    made, costs = 0, []
    for total in (40, 2000):
        rows = [running_row(f"turn-{n:04}", step=n, session=f"s-{n % 9}") for n in range(made, total)]
        await store.record(
            [msgspec.structs.replace(row, batch=few if row.turn == "turn-0020" else many) for row in rows]
        )
        for n in range(made, total):
            purpose = "user_data" if n == 20 else "batch"
            record = FileRecord(file=f"file-{n:04}", sha256="a", bytes=1, filename="n", media_type="t", purpose=purpose,
                                created_at=NOON, expires_at=None)  # fmt: skip
            await store.put_file(OURS, record)
        made = total
        async with counting_reads(store) as read:
            batches = [
                *await store.batches(OURS, NEWEST, 9, "openai"),
                *await store.newer_batches(OURS, OLDEST, 9, "openai"),
            ]
            files = [
                *await store.files(OURS, ListFiles(purpose="user_data"), 9, NOON),
                *await store.files(OURS, ListFiles(purpose="user_data", is_oldest_first=True), 9, NOON),
            ]
        assert ([one.batch for one in batches], [one.file for one in files]) == (["turn-0020"] * 2, ["file-0020"] * 2)
        costs.append(sum(read))
    assert costs[1] < 2 * costs[0]


async def test_a_batch_of_an_api_that_is_unknown_here_is_only_in_the_list_of_all_batches(store: Store) -> None:
    """A newer version may have recorded it."""
    batch = '{"of":1,"parallel":1,"file":{"file":null,"endpoint":"/v1/newer"}}'
    await store.record([msgspec.structs.replace(running_row("turn-1"), batch=batch)])
    apis: tuple[Api | None, ...] = (None, "openai", "anthropic")
    assert [len(await store.batches(OURS, NEWEST, 9, of)) for of in apis] == [1, 0, 0]


async def test_a_session_and_a_project_have_their_own_totals_although_other_things_have_their_name(
    store: Store,
) -> None:
    """A user, a model and metadata with the same name, and a session and project of another tenant."""
    row = build_row(key("turn-1"), completed_turn("Light").turn)
    labels = {"model": "same", "key": "same", "user": "same", "metadata.same": "same"}
    names = dict.fromkeys(("session", "project", "user", "model", "asked_by"), "same")
    row = msgspec.structs.replace(row, labels=msgspec.json.encode(labels).decode(), **names)
    await store.record([row, msgspec.structs.replace(row, tenant=THEIRS)])
    found = await store.project(OURS, "same", NOON)
    assert found is not None
    assert ((await session_of(store, "same")).turns, found.turns) == (1, 1)


async def test_a_session_stays_in_its_first_project(store: Store) -> None:
    """Also when turns are written twice, or name another project."""
    rows = [running_row("turn-1"), running_row("turn-2", project="first"), running_row("turn-3", project="second")]
    for _ in range(2):
        await store.record(rows)
    assert (await session_of(store, "session-1")).project_id == "first"
    assert [one.id for one in await store.projects(OURS, NEWEST, 9, NOON)] == ["first"]


async def test_deleted_turns_stay_in_the_totals_of_their_tenant_and_project(store: Store) -> None:
    """Until the project is deleted as well, which leaves its usage without a project. No id is kept."""
    first = last = NOON.date()
    ended = completed_turn("Light").turn
    rows = [build_row(key(turn), ended) for turn in ("turn-1", "turn-2")]
    await store.record([msgspec.structs.replace(row, project="rivers", asked_by="key-1") for row in rows])
    groups = ("day", "model", "key", "project", "user")
    before = [await store.usage(OURS, by, first, last, "", 9) for by in groups]
    project = await store.project(OURS, "rivers", NOON)
    for gone in rows[:1], rows[:1], rows[1:]:
        await store.delete(OURS, DeleteResource("session", "session-1", (TurnId(gone[0].turn),)))
        assert [await store.usage(OURS, by, first, last, "", 9) for by in groups] == before
        left = await store.project(OURS, "rivers", NOON)
        assert project is not None
        assert left is not None
        assert (left.turns, left.cost_usd, left.usage) == (2, project.cost_usd, project.usage)
    assert [(one.key, one.turns) for one in await store.usage(OURS, "session", first, last, "", 9)] == [(None, 2)]
    await store.delete(OURS, DeleteResource("project", "rivers"))
    assert [(one.key, one.turns) for one in await store.usage(OURS, "project", first, last, "", 9)] == [(None, 2)]
    assert await store.usage(THEIRS, "day", first, last, "", 9) == []


COUNTS = (
    "messages", "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "cost_nusd",
)  # fmt: skip
DIMENSIONS = ("day", "session", "project", "model", "key", "user", "metadata.team")


async def totals_of(
    store: Store, tenant: Tenant, first: date, last: date
) -> dict[tuple[str, str | None], tuple[object, ...]]:
    """Returns the totals of some days, except those without turns."""
    return {
        (by, one.key): (one.turns, one.message_count, one.usage, round(one.cost_usd * 1e9), one.last_used)
        for by in DIMENSIONS
        for one in await store.usage(tenant, by, first, last, "", 99)
        if one.turns
    }


def sums(counted: Iterable[tuple[TurnRow, dict[str, str | None]]]) -> dict[tuple[str, str | None], tuple[object, ...]]:
    """Returns the totals of turns with their names, as `totals_of` does."""
    rows: dict[tuple[str, str | None], list[TurnRow]] = {}
    for row, names in counted:
        for name in names.items():
            rows.setdefault(name, []).append(row)
    return {
        name: (
            len(found),
            sum(row.messages for row in found),
            Usage(
                sum(row.input_tokens for row in found),
                sum(row.output_tokens for row in found),
                sum(row.cache_creation_input_tokens for row in found),
                sum(row.cache_read_input_tokens for row in found),
            ),
            sum(row.cost_nusd for row in found),
            moment(max(row.asked_at for row in found)),
        )
        for name, found in rows.items()
    }


@pytest.mark.rule("R90")
async def test_totals_are_the_sums_of_the_turns_after_any_changes(store: Store) -> None:
    """Turns begin, end, are written again, get a project late, and are deleted. Deleted ones have no session."""
    chance = random.Random(7)
    kept: dict[str, TurnRow] = {}
    deleted: list[tuple[TurnRow, dict[str, str | None]]] = []
    first, theirs = NOON.date(), running_row("turn-1", session="session-1", metadata={"team": "c"})
    await store.record([msgspec.structs.replace(theirs, tenant=THEIRS)])
    before = await totals_of(store, THEIRS, first, first)

    async def names_of(row: TurnRow) -> dict[str, str | None]:
        team = msgspec.json.decode(row.labels)["metadata.team"]
        names = {"model": row.model, "key": row.asked_by, "user": row.user, "metadata.team": team}
        return {
            **names,
            "day": str(moment(row.asked_at).date()),
            "session": row.session,
            "project": (await session_of(store, row.session)).project_id,
        }

    for step in range(150):
        turn = f"turn-{chance.randrange(30)}"
        if turn in kept and chance.random() < 0.3:
            gone = kept.pop(turn)
            names = await names_of(gone)
            deleted.append((gone, {name: names[name] for name in DIMENSIONS[:6]} | {"session": None}))
            await store.delete(OURS, DeleteResource("session", gone.session, (TurnId(turn),)))
            continue
        given: dict[str, Any] = {"metadata": {"team": chance.choice("ab")}, "user": chance.choice(["ann", None])}
        row = kept.get(turn) or msgspec.structs.replace(
            running_row(turn, session=f"session-{chance.randrange(6)}", **given),
            asked_at=micros(NOON + timedelta(days=chance.randrange(2), seconds=step)),
            asked_by=chance.choice(("k", None)),
        )
        kept[turn] = msgspec.structs.replace(
            row,
            cursor=row.cursor + step,
            project=chance.choice([None, None, "rivers", "hills"]),
            messages=step % 3,
            input_tokens=step,
            output_tokens=2 * step,
            cache_creation_input_tokens=3 * step,
            cache_read_input_tokens=4 * step,
            cost_nusd=5 * step,
        )
        others = [row for row in kept.values() if row.turn != turn]
        await store.record([kept[turn], *chance.sample(others, min(2, len(others)))])
        counted = [*deleted, *[(row, await names_of(row)) for row in kept.values()]]
        last = first + timedelta(days=1)
        for begin, end in ((first, first), (last, last), (first, last)):
            expected = sums(one for one in counted if begin <= moment(one[0].asked_at).date() <= end)
            found = await totals_of(store, OURS, begin, end)
            # The last use is also that of turns that have left a total.
            assert {name: total[:4] for name, total in found.items()} == {
                name: total[:4] for name, total in expected.items()
            }
            always = [name for name in expected if name[0] in ("day", "model", "key", "user")]
            assert [found[name][4] for name in always] == [expected[name][4] for name in always]
    assert len(deleted) > 5
    assert await totals_of(store, THEIRS, first, first) == before


async def test_usage_is_grouped_by_utc_day(store: Store) -> None:
    """A turn a microsecond before midnight belongs to the day that ends."""
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    times = {"turn-1": midnight - MICROSECOND, "turn-2": midnight, "turn-3": midnight + timedelta(days=1)}
    await store.record(
        [msgspec.structs.replace(running_row(turn), asked_at=micros(at), input_tokens=7) for turn, at in times.items()]
    )

    async def days(first: datetime, last: datetime, after: str = "") -> list[tuple[str | None, int]]:
        totals = await store.usage(OURS, "day", first.date(), (last - MICROSECOND).date(), after, 9)
        return [(one.key, one.total_tokens) for one in totals]

    assert await days(midnight - timedelta(days=1), midnight) == [("2026-01-01", 7)]
    assert await days(midnight, midnight + timedelta(days=1)) == [("2026-01-02", 7)]
    assert await days(midnight, midnight + timedelta(days=9), "2026-01-02\0") == [("2026-01-03", 7)]
    assert await store.usage(THEIRS, "day", NOON.date(), midnight.date(), "", 9) == []


async def test_a_database_of_the_first_version_has_totals_and_is_searchable_after_the_migration(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    ended = completed_turn("Light").turn
    # SQLite cuts both names of the metadata at NUL, to the same label.
    long = {"n" * 64: "v" * 512, "n" * 65: "v", "value": "v" * 513}
    metadata = {"k": "1", "k\0x": "2"} | long | {f"m{number}": "v" for number in range(20)}
    made = msgspec.structs.replace(build_row(key("turn-1"), ended), metadata=msgspec.json.encode(metadata).decode())
    day_after = {"turn": "turn-2", "asked_at": made.asked_at + 24 * 3600 * 10**6, "metadata": "{}", "cursor": 99}
    later = msgspec.structs.replace(made, **day_after, session="session-2")
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"{migrations()[0].sql}; PRAGMA user_version = 1;")
        for row in (made, later, msgspec.structs.replace(made, tenant=THEIRS, model="other")):
            for statement in (SESSION_1, TURN_1, USAGE_1):
                database.execute(statement, msgspec.structs.asdict(row))
        database.commit()
        # Versions in between have recorded projects, API keys and deleted turns.
        for step in migrations(after=1)[: 13 - 1]:
            database.executescript(f"{step.sql}; PRAGMA user_version = {step.number};")
        database.execute("UPDATE sessions SET project = 'rivers' WHERE session = 'session-2'")
        database.execute("UPDATE usage SET asked_by = 'k' WHERE turn = 'turn-2'")
        for project, by in ((None, None), (None, None), ("rivers", "k")):
            deleted = (OURS, made.asked_at, project, made.model, by, 2, 5, 3, 2, 1, 7)
            database.execute(f"INSERT INTO deleted_usage VALUES ({', '.join('?' * 11)})", deleted)
        database.commit()
    async with open_store(path) as store:
        expected = {
            "model": [(made.model, 5)], "day": [("2026-01-01", 4), ("2026-01-02", 1)],
            "session": [(None, 3), ("session-1", 1), ("session-2", 1)], "project": [(None, 3), ("rivers", 2)],
            "key": [(None, 3), ("k", 2)], "user": [(None, 5)], "metadata.k": [("1", 1)],
        }  # fmt: skip
        for by, totals in expected.items():
            found = await store.usage(OURS, by, NOON.date(), NOON.date() + timedelta(days=1), "", 9)
            assert [(one.key, one.turns) for one in found] == totals
            assert [(one.total_tokens, one.message_count) for one in found] == [(11 * n, 2 * n) for _, n in totals]
        (total,) = await store.usage(OURS, "model", NOON.date(), NOON.date(), "", 9)
        assert round(total.cost_usd * 1e9) == 3 * 7 + made.cost_nusd
        listed, _ = await store.turn_list.read_page(OURS, {"key": "k"}, None, NEWEST, 9)
        assert [one.turn for one in listed] == ["turn-2"]
        assert [(await store.numbered_sessions(OURS, project, 0, 9, NOON))[1] for project in (None, "rivers")] == [2, 1]
        theirs = await store.usage(THEIRS, "model", NOON.date(), NOON.date(), "", 9)
        assert [(one.key, one.turns) for one in theirs] == [("other", 1)]
        # As many fields as `labels_of` takes, with the same limits.
        labels = {"model": made.model, "metadata.k": "1", f"metadata.{'n' * 64}": "v" * 512}
        labels |= {f"metadata.m{number}": "v" for number in range(11)}
        rows = await store._database.read(
            "SELECT name, value FROM labels WHERE tenant = 'ours' AND turn = 'turn-1'", {}
        )
        # Newer versions of SQLite do not cut a name at a NUL character.
        assert {row["name"]: row["value"] for row in rows if "\0" not in row["name"]} == labels
        assert await store.read_recorded_upto() == 99
        monkeypatch.setattr("tailrace.persistence.store.UNSEARCHED_MAX", 1)
        assert [await store.store_older_words() for _ in range(4)] == [1, 1, 1, 0]
        listed, _ = await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, hash_words(OURS, ["light"]).split())
        assert [one.turn for one in listed] == ["turn-2", "turn-1"]


async def test_an_older_schema_of_postgresql_is_migrated_and_its_turns_are_searchable(
    postgresql: PostgreSQLServer,
) -> None:
    """The older schema has fewer tables."""
    url, oldest = await postgresql.new_database(), migrations("postgresql")[0]
    async with postgresql.connected(url) as administrator:
        await administrator.execute(oldest.sql + SET_VERSION.format(oldest.number))
        await administrator.execute(
            "INSERT INTO sessions (tenant, session, created_at, updated_at) VALUES ('ours', 'session-1', 1, 1); "
            "INSERT INTO turns (tenant, turn, session, model, outcome, input, content, text, attempts, metadata, "
            "asked_at, cursor) VALUES ('ours', 'turn-1', 'session-1', 'm', 'completed', '[]', "
            """'[{"type":"text","text":"Light"}]', 'Light', 1, '{}', 1, 1); """
            "INSERT INTO usage (tenant, session, turn, input_tokens, output_tokens, cache_creation_input_tokens, "
            "cache_read_input_tokens, is_estimated, cost_nusd) "
            "SELECT tenant, session, turn, 0, 0, 0, 0, 0, 0 FROM turns"
        )
    async with open_store(url) as store:
        assert [await store.store_older_words() for _ in range(2)] == [1, 0]
        found, _ = await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, hash_text("light").split())
        assert [one.turn for one in found] == ["turn-1"]


async def test_a_search_finds_no_turn_by_the_words_of_another_tenant(store: Store) -> None:
    """Both turns have the same id. The hashes of words differ by tenant, unless two are equal by chance."""
    ours, theirs = running_row("turn-1"), msgspec.structs.replace(running_row("turn-1"), tenant=THEIRS)
    await store.record([ours, msgspec.structs.replace(theirs, words=hash_text("rare"))])
    found, _ = await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, hash_text("rare").split())
    assert found == []


async def test_words_that_an_older_version_writes_during_an_upgrade_are_stored_again(store: Store) -> None:
    """Also those that it writes after the migration, over the words of this version."""
    made = build_row(key("turn-1"), completed_turn("Tailrace™").turn)
    words = hash_words(OURS, ["tailracetm"]).split()
    for row in (made, msgspec.structs.replace(made, words=hash_words(OURS, ["older"]))):
        await store.record([row])
    assert await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, words) == ([], None)
    assert [await store.store_older_words() for _ in range(2)] == [1, 0]
    found, _ = await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, words)
    assert [one.turn for one in found] == ["turn-1"]


def test_metadata_with_a_nul_character_is_no_label() -> None:
    """SQLite cuts JSON text there, so different values would be counted as one."""
    metadata = {"k": "a\0b", "l\0": "c", "m": "d"}
    turn = msgspec.structs.replace(record_from_fold(key("turn-1"), completed_turn("Light").turn), metadata=metadata)
    assert labels_of(turn, None) == {"metadata.m": "d", "model": turn.model}


async def test_turns_of_another_tenant_are_not_found(store: Store) -> None:
    """All statements name the tenant, so knowing an id is not enough."""
    await store.record([build_row(key("turn-1"), completed_turn("Light").turn)])
    assert await store.turn(key("turn-1", THEIRS)) is None
    assert await store.session(THEIRS, "session-1", NOON) is None
    assert await store.sessions(THEIRS, None, NEWEST, 9, NOON) == []
    assert await store.session_turns(THEIRS, "session-1", OLDEST, 9) == []
    assert await store.last_turn(THEIRS, "session-1") is None
    assert await store.branch(key("turn-1", THEIRS)) == []
    assert await store.leaves(THEIRS, "session-1", NEWEST, 9) == []
    assert await store.projects(THEIRS, NEWEST, 9, NOON) == []
    assert await store.usage_since(THEIRS, NOON) == []
    assert await store.busy_sessions(THEIRS) == []
    named: list[tuple[Kind, str]] = [("turn", "turn-1"), ("session", "session-1"), ("tenant", "theirs")]
    for kind, name in named:
        assert await store.turns_to_delete(THEIRS, DeleteResource(kind, name, (TurnId("turn-1"),))) == []
        await store.delete(THEIRS, DeleteResource(kind, name, (TurnId("turn-1"),)))
    await store.change_session(THEIRS, ChangeSession("session-1", "theirs", "theirs", "theirs"))
    assert (await session_of(store, "session-1")).title is None
    assert await store.turn(key("turn-1")) is not None


NUMBERED = {"count_projects", "count_sessions", "projects_from", "sessions_from"}


async def test_each_statement_uses_an_index(file_store: Store, path: Path) -> None:
    """Each step of the plan uses more of an index than the tenant, or reads an earlier step's rows."""
    # A page's number says how many rows are before it: those are read, in the order of an index.
    in_order = re.compile(r"SEARCH (projects|sessions) USING .*INDEX \w+ \(tenant=\?\)")
    wrong: list[tuple[str, str]] = []
    with closing(sqlite3.connect(path)) as database:
        # Then the plan of a deletion has the search for the rows that refer to those that it deletes.
        database.execute("PRAGMA foreign_keys = ON")
        for name, statement in STATEMENTS.items():
            parameters = dict.fromkeys(re.findall(r":(\w+)", statement), 1)
            plan = [step[3] for step in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            # A Bloom filter is made by a scan of its table.
            kinds = ("SCAN", "SEARCH", "BLOOM")
            steps = [step for step in plan if step.startswith(kinds) and step not in FOUND]
            assert steps or statement.lstrip().startswith("INSERT"), name
            is_by_order = name in NUMBERED
            wrong += [(name, s) for s in steps if not (BY_INDEX.match(s) or (is_by_order and in_order.match(s)))]
    assert wrong == []


async def test_each_index_has_fixed_statistics(file_store: Store, path: Path) -> None:
    """A number for the table, and one for each column of the index. Else the last test fails with SQLite 3.53."""
    with closing(sqlite3.connect(path)) as database:
        statistics = {index: stat.split() for index, stat in database.execute("SELECT idx, stat FROM sqlite_stat1")}
        tables = database.execute("SELECT name, wr FROM pragma_table_list WHERE type = 'table'").fetchall()
        columns: dict[str, int] = {}
        for table, has_no_rowid in tables:
            for _, index, _, kind, _ in database.execute(f"PRAGMA index_list({table})"):
                count = len(database.execute(f"PRAGMA index_info({index})").fetchall())
                # A table without rowids is the index of its primary key.
                columns[table if has_no_rowid and kind == "pk" else index] = count
    assert {index: len(stat) - 1 for index, stat in statistics.items()} == columns


# So many rows that an index is cheaper than reading a whole table.
FILL = """
INSERT INTO sessions (tenant, session, created_at, updated_at, project, "user")
SELECT 'ours', 's' || n, n, n, 'p' || n % 50, 'u' || n % 50 FROM generate_series(1, 2000) AS n;
INSERT INTO projects SELECT 'ours', 'p' || n, 'name', NULL, n FROM generate_series(1, 2000) AS n;
INSERT INTO turns (tenant, turn, session, parent, model, outcome, input, content, text, attempts, metadata, asked_at,
    cursor, batch)
SELECT 'ours', 't' || n, 's' || n / 10 + 1, 't' || n - 1, 'm', 'completed', '', '', '', 1, '', n, n,
    CASE WHEN n % 10 = 0 THEN '{}' END
FROM generate_series(1, 19000) AS n;
INSERT INTO usage SELECT tenant, session, turn, 1, 1, 1, 1, 0, 1, 1, 'm', asked_at, 'k' FROM turns;
INSERT INTO labels SELECT tenant, turn, name, 'v' || asked_at / 20, asked_at
FROM turns CROSS JOIN (VALUES ('user'), ('metadata.a'), ('model')) AS made (name);
INSERT INTO searched SELECT asked_at * 1024, tenant, turn, 'w' || asked_at || ' w' || asked_at % 900 || ' w' FROM turns;
INSERT INTO unstored SELECT 'ours', turn, 'u' || asked_at FROM turns;
INSERT INTO totals SELECT 'ours', 'user', 'u' || n, n % 300, 1, 1, 1, 1, 1, 1, 1, 1 FROM generate_series(1, 19000) AS n;
INSERT INTO blob_uses SELECT tenant, 'b' || asked_at, turn FROM turns;
INSERT INTO files SELECT 'ours', 'f' || n, 'b', 1, 'f', 'm', 'p', 1, n FROM generate_series(1, 9000) AS n;
INSERT INTO session_counts SELECT 'theirs', 'p' || n, 1 FROM generate_series(1, 9000) AS n;
ANALYZE;
"""
VALUES = {
    "tenant": "ours", "session": "s7", "turn": "t61", "parent": "t60", "project": "p7", "user": "u7", "name": "user",
    "dimension": "user", "key": "u7", "value": "v7", "file": "f7", "sha256": "b61", "listed": '[["ours", "s7", "t61"]]',
    "labels": "{}", "blobs": "[]", "others": '{"model": "v7"}', "last_name": "u8", "of": "openai",
    "since": 1990, "limit": 1000, "words": "w61 w", "user_hash": "u7", "before_number": 9**18,
}  # fmt: skip


async def test_each_statement_uses_an_index_of_postgresql(postgresql_store: Store) -> None:
    """Each scan of a table has a condition on an index, with a column after the tenant unless it is `NUMBERED`."""
    database = postgresql_store._database
    assert isinstance(database, PostgreSQL)
    wrong: list[object] = []
    async with database._pool.acquire() as connection:
        await connection.execute(FILL)
        # With these, it reads all of a table that is as small as here.
        for kind in ("seqscan", "bitmapscan", "hashjoin", "mergejoin"):
            await connection.execute(f"SET enable_{kind} = off")
        for name, statement in database.statements.items():
            # An index of words gives only bitmaps.
            await connection.execute(f"SET enable_bitmapscan = {'on' if 'found' in name else 'off'}")
            found = await scans_of(connection, statement)
            assert found or statement.startswith("INSERT"), name
            wrong += [(name, scan) for scan in found if not is_by_index(name, scan)]
    assert wrong == []


@pytest.mark.parametrize("name", ["user_turn_ids", "found_turns"])
async def test_the_planner_of_postgresql_chooses_the_index_itself(postgresql_store: Store, name: str) -> None:
    """For statements that limit its choice. Without that, it would read all turns."""
    database = postgresql_store._database
    assert isinstance(database, PostgreSQL)
    async with database._pool.acquire() as connection:
        await connection.execute(FILL)
        found = await scans_of(connection, database.statements[name])
    assert [scan for scan in found if not is_by_index(name, scan)] == []


async def scans_of(connection: Any, statement: str) -> list[dict[str, Any]]:
    """Returns the steps of a statement's plan that read a table."""
    text, names = to_positional(statement)
    values = [VALUES.get(one, 1 if f"${number}::bigint" in text else "") for number, one in enumerate(names, 1)]
    plan = await connection.fetchval(f"EXPLAIN (FORMAT json) {text}", *values)
    return list(scans(msgspec.json.decode(plan)[0]["Plan"]))


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
    await store.record([build_row(key("turn-1"), completed_turn("Light").turn)])
    words = hash_words(OURS, ["light"]).split()
    statements = store._sql
    monkeypatch.setattr("tailrace.persistence.turn_list.SEARCH_S_MAX", 60.0)
    monkeypatch.setattr(store.turn_list, "_sql", {**statements, "found_turns": ENDLESS[store.system]})
    searching = asyncio.create_task(store.turn_list.read_page(OURS, {}, None, NEWEST, 9, words))
    async with asyncio.timeout(30):
        await asyncio.sleep(0.1)
        assert await store.turn(key("turn-1")) is not None
        assert not searching.done()
        searching.cancel()
        await asyncio.wait({searching})
        monkeypatch.setattr("tailrace.persistence.turn_list.SEARCH_S_MAX", 0.1)
        with pytest.raises(StoreBusy, match="search for fewer"):
            await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, words)
    monkeypatch.setattr(store.turn_list, "_sql", statements)
    found, _ = await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, words)
    assert [one.turn for one in found] == ["turn-1"]


async def test_a_search_that_is_cancelled_before_it_begins_is_interrupted(file_store: Store) -> None:
    """It runs in a thread of its own, which may not have begun."""
    database = file_store._database
    for steps in range(1, 5):
        searching = asyncio.create_task(database.search(ENDLESS["sqlite"], {}))
        for _ in range(steps):
            await asyncio.sleep(0)
        searching.cancel()
        await asyncio.wait({searching}, timeout=5)
        assert searching.cancelled()
    assert await database.search("SELECT 1 AS found", {}) == [{"found": 1}]


# Operations, and how many of one tenant may end before a later one of another tenant. SQLite runs several reads at
# once.
WORK: dict[str, tuple[Callable[[Store, Tenant], Awaitable[object]], int]] = {
    "session": (lambda store, tenant: store.session(tenant, "s1", NOON), 20),
    "new_session": (lambda store, tenant: store.new_session(tenant, CreateSession(new_id()), NOON), 7),
    "release_blobs": (lambda store, tenant: store.release_blobs(tenant, ["a"]), 7),
    "forget_released": (lambda store, tenant: store.forget_released(tenant, ["a"]), 7),
    "keep_referenced": (lambda store, tenant: store.keep_referenced(tenant, ["a"]), 7),
    "forget_unstored": (lambda store, tenant: store.forget_unstored([key("turn-2", tenant)]), 7),
    "delete": (lambda store, tenant: store.delete(tenant, DeleteResource("turn", "turn-2")), 7),
    "delete_files": (lambda store, tenant: store.delete_files(tenant, ["file-1"]), 7),
}


@pytest.mark.parametrize("name", WORK)
async def test_a_tenant_with_much_work_makes_neither_other_tenants_nor_the_recorder_wait_for_all_of_it(
    store: Store, name: str
) -> None:
    work, most = WORK[name]
    order: list[str] = []

    async def do(who: str, awaitable: Awaitable[object]) -> None:
        await awaitable
        order.append(who)

    later = [do(THEIRS, work(store, THEIRS))]
    if name != "session":  # the recorder does not wait for those who read
        later.append(do("recorder", store.record([running_row("turn-1")])))
    await asyncio.gather(*[do(OURS, work(store, OURS)) for _ in range(40)], *later)
    assert max(map(order.index, {*order} - {OURS})) < most


async def test_the_recorder_waits_for_one_write_of_a_tenant_at_most(store: Store) -> None:
    """Queries of the history wait for the recorder."""
    order, recorder = list[str](), store.without_queue()

    async def create(tenant: Tenant, session: str) -> None:
        await store.new_session(tenant, CreateSession(session), NOON)
        order.append("tenant")

    async def record(turn: str) -> None:
        """Does what is written of a turn with `store: false`, until it is erased."""
        await recorder.put_unstored(key(turn), None)
        await recorder.record([running_row(turn)])
        await recorder.delete(OURS, DeleteResource("session", "1", (TurnId(turn),)))
        await recorder.release_blobs(OURS, ["a"])
        await recorder.forget_unstored([key(turn)])
        order.append("recorder")

    tenants = [OURS, *(Tenant(f"tenant-{number}") for number in range(19))]
    waiting = [create(tenant, f"{number}") for number in range(5) for tenant in tenants]
    await asyncio.gather(*waiting, *(record(f"turn-{number}") for number in range(10)))
    last = max(place for place, one in enumerate(order) if one == "recorder")
    # The ten turns, and one write of a tenant before each of the five rounds of transactions.
    assert last < 10 + 7


async def test_a_tenant_with_many_searches_is_refused_and_other_tenants_are_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search also ends if it waits for too long."""
    statements = store._sql
    monkeypatch.setattr("tailrace.persistence.turn_list.SEARCH_S_MAX", 0.5)
    monkeypatch.setattr("tailrace.persistence.turn_list.SEARCH_WAIT_S_MAX", 0.75)
    monkeypatch.setattr(store.turn_list, "_sql", {**statements, "found_turns": ENDLESS[store.system]})

    def search(tenant: Tenant) -> asyncio.Task[Any]:
        return asyncio.create_task(
            store.turn_list.read_page(tenant, {}, None, NEWEST, 9, hash_words(tenant, ["light"]).split())
        )

    searches = [search(OURS) for _ in range(SEARCHES_WAITING_MAX + 1)]
    await until(lambda: store.turn_list._searches.waiting(OURS) == SEARCHES_WAITING_MAX)
    with pytest.raises(Refused, match="other searches of this tenant are waiting") as refused:
        await search(OURS)
    assert (refused.value.code, refused.value.retry_after_s) == ("rate_limited", 0.5)
    theirs = search(THEIRS)
    async with asyncio.timeout(10):
        found = await asyncio.gather(*searches, theirs, return_exceptions=True)
    assert {type(one) for one in found} == {StoreBusy}
    monkeypatch.setattr(store.turn_list, "_sql", statements)
    assert await search(OURS) == ([], None)


async def test_a_search_reads_as_much_in_a_large_database_as_in_a_small_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For words, labels and outcomes, rare and frequent. The pages together have all turns that match."""
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
            rows.append(msgspec.structs.replace(row, labels=encoded, words=hash_text(words), outcome=ended))
        await store.record(rows)
        made = total
        costs.append([])
        for named, text, outcome in CONDITIONS:
            async with counting_reads(store) as read:
                await store.turn_list.read_page(OURS, named, None, NEWEST, 20, hash_text(text).split(), outcome)
            costs[-1].append(sum(read))
    for number, (named, text, outcome) in enumerate(CONDITIONS):
        found: list[str] = []
        before: PageCursor | None = NEWEST
        while before is not None:
            page, end = await store.turn_list.read_page(
                OURS, named, None, before, 200, hash_text(text).split(), outcome
            )
            found += [one.turn for one in page]
            before = PageCursor(micros(page[-1].asked_at), TurnId(page[-1].turn)) if len(page) == 200 else end
        assert found == expected[number], (named, text, outcome)
    # The first page has them, because failed turns have an index.
    failed, end = await store.turn_list.read_page(OURS, {}, None, NEWEST, 9, (), "failed")
    assert ([one.turn for one in failed], end) == (["t170", "t5"], None)
    small, large = costs
    assert [(more, less) for more, less in zip(large, small, strict=True) if more > 2 * less] == []


def hash_text(text: str) -> str:
    return hash_words(OURS, [text])


@asynccontextmanager
async def counting_reads(store: Store) -> AsyncIterator[list[int]]:
    """Yields a list: an item for each step of SQLite's virtual machine, or the rows that PostgreSQL's plans read."""
    read: list[int] = []
    database = store._database
    if isinstance(database, SQLite):
        await database._reader.set_progress_handler(lambda: read.append(1), 1)
        yield read
        await database._reader.set_progress_handler(lambda: None, 1_000_000)
        return
    assert isinstance(database, PostgreSQL)
    real = database.read

    async def explain(statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        (plan,) = await real(f"EXPLAIN (ANALYZE, FORMAT json) {statement}", values)
        read.extend(rows_of(msgspec.json.decode(plan["QUERY PLAN"])[0]["Plan"]))
        return await real(statement, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "read", explain)
        yield read


def rows_of(step: dict[str, Any]) -> Iterator[int]:
    """The rows that each step of a plan has read. Not those of an index of words: it has no order."""
    if step["Node Type"] != "Bitmap Index Scan":
        each = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
        yield round(each * step["Actual Loops"])
    for part in step.get("Plans", []):
        yield from rows_of(part)


def scans(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a plan of PostgreSQL that read a table."""
    if "Relation Name" in step and step["Node Type"] != "ModifyTable":
        yield step
    for part in step.get("Plans", []):
        yield from scans(part)


def is_by_index(name: str, scan: dict[str, Any]) -> bool:
    few = scan["Relation Name"] in ("reached", "identity", "blob_releases", "unsearched")
    if few or scan.get("Index Name") in ("turns_running", "searched_older"):
        return True
    condition = scan.get("Index Cond", "") or scan.get("Recheck Cond", "")
    if "tailrace_words" in condition or "number >=" in condition:
        return True
    across_tenants = scan.get("Index Name") in ("sessions_by_age", "files_expiring", "unstored_pkey")
    return " AND " in condition or (bool(condition) and (name in NUMBERED or across_tenants))


async def test_both_databases_have_the_same_tables(file_store: Store, postgresql_store: Store) -> None:
    """The columns in the same order, which of them may be NULL, the primary keys, and the indexes."""
    for table, primary_key in KEYS.items():
        columns = await file_store._database.read(f"SELECT * FROM pragma_table_info('{table}')", {})
        indexes = await file_store._database.read(f"SELECT * FROM pragma_index_list('{table}')", {})
        named = {row["name"]: row["partial"] for row in indexes if row["origin"] == "c"}
        found = await postgresql_store._database.read(
            "SELECT column_name::text AS name, data_type::text AS type, is_nullable::text AS nullable"
            " FROM information_schema.columns WHERE table_name = :table ORDER BY ordinal_position",
            {"table": table},
        )
        types = {"INTEGER": "bigint", "TEXT": "text"}
        assert [(row["name"], row["type"], row["nullable"]) for row in found] == [
            (row["name"], types[row["type"]], "NO" if row["notnull"] else "YES") for row in columns
        ]
        keys = [row["name"] for row in sorted(columns, key=lambda row: row["pk"]) if row["pk"]]
        assert keys in ([], list(primary_key))
        theirs = await postgresql_store._database.read(
            "SELECT indexname::text AS name, indexdef AS made FROM pg_indexes WHERE tablename = :table",
            {"table": table},
        )
        made = {row["name"]: row["made"].partition("USING btree ")[2] for row in theirs if "gin" not in row["made"]}
        assert made.pop(f"{table}_pkey", "").replace('"', "") == (f"({', '.join(keys)})" if keys else "")
        assert {name: int(" WHERE " in text) for name, text in made.items()} == named
        for name, text in made.items():
            info = await file_store._database.read(f"SELECT name FROM pragma_index_info('{name}')", {})
            # SQLite has no name for an expression, of which there is one.
            expected = f"({', '.join(row['name'] or 'tailrace_batch_api(batch)' for row in info)})"
            assert text.partition(" WHERE ")[0].replace('"', "") == expected


@pytest.mark.rule("R93")
async def test_two_processes_write_one_after_the_other_and_count_each_turn_once(postgresql: PostgreSQLServer) -> None:
    """They write the same totals: without the lock of writers, they would deadlock or lose counts."""
    url = await postgresql.new_database()
    async with open_store(url) as one, open_store(url) as other:
        rows = [build_row(key(turn), completed_turn("Light").turn) for turn in ("turn-1", "turn-2")]
        async with one._database.transaction():
            with pytest.raises(StoreBusy, match="lock timeout"):
                await other.record(rows)
        for store in (one, other):
            await store.record(rows)
        for by in ("day", "session", "model"):
            (total,) = await one.usage(OURS, by, NOON.date(), NOON.date(), "", 9)
            assert (by, total.turns) == (by, 2)


@pytest.mark.rule("R93")
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_a_transaction_that_has_waited_sees_the_one_before(postgresql: PostgreSQLServer, isolation: str) -> None:
    """Whatever the default of the role or the database is: otherwise each wait would be an error."""
    url = await postgresql.new_database()
    async with postgresql.connected(url) as administrator:
        name = url.rpartition("/")[2]
        await administrator.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
        async with open_store(url, busy_timeout_s=30) as one, open_store(url, busy_timeout_s=30) as other:
            async with one._database.transaction() as transaction:
                waiting = asyncio.create_task(other.record([running_row("turn-1")], Seq(7)))
                is_waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = $1"
                await until(lambda: administrator.fetchval(is_waiting, name))
                await transaction.execute("UPDATE reached SET seq = 5", {})
            await waiting
            assert await one.read_recorded_upto() == 7


async def test_two_processes_that_start_together_migrate_a_database_once(postgresql: PostgreSQLServer) -> None:
    """Both have seen that it is empty."""
    url = await postgresql.new_database()
    stores = [await Store.open(url, busy_timeout_s=1) for _ in range(2)]
    try:
        for store in stores:
            await store.migrate()
        assert len({await store.read_id() for store in stores}) == 1
    finally:
        for store in stores:
            await store.close()


async def test_a_schema_has_a_history_of_its_own(postgresql: PostgreSQLServer) -> None:
    """Also if its tables are in another schema of the search_path, and the schema has a table of another program."""
    url = await postgresql.new_database()
    async with postgresql.connected(url) as administrator:
        await administrator.execute("CREATE SCHEMA second; CREATE TABLE second.notes ()")
    async with open_store(url) as public, open_store(f"{url}?search_path=second%2Cpublic") as second:
        await public.record([running_row("turn-1")])
        assert await second.turn(key("turn-1")) is None
    async with open_store(f"{url}?search_path=second%2Cpublic") as second:
        assert not second.needs_replay


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
async def test_a_commit_is_on_the_disk_and_any_other_default_stays(
    postgresql: PostgreSQLServer, default: str, used: str
) -> None:
    url = await postgresql.new_database()
    async with postgresql.connected(url) as administrator:
        await administrator.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = '{default}'")
    async with open_store(url) as store:
        (found,) = await store._database.read("SELECT current_setting('synchronous_commit') AS value", {})
    assert found["value"] == used


@pytest.mark.rule("R93")
async def test_a_lock_is_held_by_one_process(postgresql: PostgreSQLServer) -> None:
    """Until its block ends, or its process. Others wait for it, for longer than for the lock of a transaction."""
    url = await postgresql.new_database()
    async with open_store(url) as one, open_store(url) as other:
        async with one.lock("a"), other.lock("b"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1), other.lock("a"):
                    pass
        async with other.lock("a"):
            pass


@asynccontextmanager
async def proxy_that_hides_ends(port: int) -> AsyncIterator[int]:
    """Yields a port that forwards to `port`. What the server sends last arrives, but not the end of the connection."""
    writers: list[asyncio.StreamWriter] = []

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, server = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, server))
        await asyncio.gather(copy(reader, server), copy(back, writer), return_exceptions=True)

    listening = await asyncio.start_server(forward, "127.0.0.1", 0)
    yield listening.sockets[0].getsockname()[1]
    listening.close()
    for writer in writers:
        writer.close()


async def test_a_server_without_transaction_numbers_loses_no_turn(postgresql: PostgreSQLServer) -> None:
    """It has the SQLSTATE of a row that is too large for an index. Only such a row is left out."""
    url = await postgresql.new_database()
    async with open_store(url) as store:
        long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6000))
        with pytest.raises(StoreRefused):
            await store.record([msgspec.structs.replace(running_row("turn-1"), user=long)])
        async with postgresql.connected(url) as administrator:
            await administrator.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
                "'database is not accepting commands to avoid wraparound data loss' USING ERRCODE = '54000'; END $$; "
                "CREATE TRIGGER refuse BEFORE INSERT ON turns FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            with pytest.raises(StoreUnwritable, match=r"to avoid wraparound data loss \(54000\)"):
                await store.record([running_row("turn-1")])
            await administrator.execute("DROP TRIGGER refuse ON turns")
        await store.record([running_row("turn-1")])


async def test_a_database_that_accepts_no_connections_is_busy(postgresql: PostgreSQLServer) -> None:
    url = await postgresql.new_database()
    async with postgresql.connected("postgres") as administrator:
        await administrator.execute(f"ALTER DATABASE {url.rpartition('/')[2]} ALLOW_CONNECTIONS false")
    with pytest.raises(StoreBusy, match="is not currently accepting connections"):
        await Store.open(url, busy_timeout_s=0.05)


END_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
)


async def test_a_connection_that_the_server_has_ended_is_replaced(postgresql: PostgreSQLServer) -> None:
    """The first use of it is StoreBusy, also if only the server's last message has arrived. The next one works."""
    url = await postgresql.new_database()
    async with (
        proxy_that_hides_ends(postgresql.port) as port,
        postgresql.connected(url) as administrator,
        open_store(url.replace(str(postgresql.port), str(port))) as store,
    ):
        await store.turn(key("turn-1"))
        await administrator.execute(END_OTHERS, url.rpartition("/")[2])

        async def is_refused() -> bool:
            try:
                await store.turn(key("turn-1"))
            except StoreBusy:
                return True
            return False

        # The message arrives at some time after the statement.
        await until(is_refused)
        assert await store.turn(key("turn-1")) is None


async def test_the_error_of_a_transaction_that_the_server_has_ended_names_the_cause(
    postgresql: PostgreSQLServer,
) -> None:
    """Not that its rollback found no connection."""
    url = await postgresql.new_database()
    async with open_store(url) as store:

        async def wait_in_transaction() -> None:
            async with store._database.transaction() as transaction:
                await transaction.read("SELECT pg_sleep(60)", {})

        waiting = asyncio.create_task(wait_in_transaction())
        async with postgresql.connected(url) as administrator:
            is_waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = $1"
            await until(lambda: administrator.fetchval(is_waiting, url.rpartition("/")[2]))
            await administrator.execute(END_OTHERS, url.rpartition("/")[2])
        with pytest.raises(StoreBusy, match="terminating connection due to administrator command"):
            await waiting


async def test_a_host_that_does_not_answer_does_not_keep_the_next_one_waiting(
    postgresql: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the loss of the primary's machine: the time limit is for each host of the URL."""
    monkeypatch.setattr("tailrace.persistence.postgresql.CONNECT_TIMEOUT_S", 2.0)
    url, host = await postgresql.new_database(), f"127.0.0.1:{postgresql.port}"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        both = url.replace(host, f"127.0.0.1:{silent.getsockname()[1]},{host}")
        async with open_store(both) as store, store.lock("a"):
            assert await store.turn(key("turn-1")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_connection_notices_that_the_machine_of_the_server_is_gone(
    postgresql: PostgreSQLServer, postgresql_store: Store
) -> None:
    """By probes of the kernel: a query that waits for its answer sends nothing."""
    lines = [line.split() for line in (await asyncio.to_thread(Path("/proc/net/tcp").read_text)).splitlines()]
    ours = [line for line in lines if line[2] == f"0100007F:{postgresql.port:04X}" and line[3] == "01"]
    # The timer 02 is that of the probes. https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
    assert {line[5][:2] for line in ours} == {"02"}


@pytest.mark.rule("R93")
async def test_tasks_of_a_process_that_wait_for_a_lock_have_no_connection(
    postgresql_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the deletions of one tenant would take all connections of the server."""
    opened: list[str] = []

    async def connect(url: str, **options: Any) -> asyncpg.Connection:
        opened.append(url)
        return await real(url, **options)

    async def hold() -> None:
        async with postgresql_store.lock("a"):
            pass

    real = asyncpg.connect
    monkeypatch.setattr(asyncpg, "connect", connect)
    async with postgresql_store.lock("a"):
        waiting = [asyncio.create_task(hold()) for _ in range(5)]
        await asyncio.sleep(0)
        assert len(opened) == 1
    await asyncio.gather(*waiting)
    assert len(opened) == 6


async def test_both_databases_answer_the_same_after_any_changes(file_store: Store, postgresql_store: Store) -> None:
    """Turns, sessions, projects, files and batches are written and deleted.

    Every query returns the same, in order. Only the turns of a session or project to be deleted have no order.
    """
    stores = [file_store, postgresql_store]
    chance, by_id = random.Random(34), attrgetter("turn")
    cursors = chance.sample(range(1000), 1000)

    async def call_both(method: str, *given: object, **named: object) -> Any:
        """Returns what both stores answer."""
        answers = [await attrgetter(method)(store)(*given, **named) for store in stores]
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
        return msgspec.structs.replace(
            made,
            session=name("session"),
            user=user,
            text=text(),
            stop_sequence=text(),
            labels=msgspec.json.encode(labels | {"user": user}).decode(),
            words=hash_words(OURS, [chance.choice(("a b", "b c", "c"))]) if chance.random() < 0.9 else "",
            parent=f"turn-{number - 1}" if chance.random() < 0.5 else None,
            project=name("project") if chance.random() < 0.5 else None,
            blobs=f'["{name("blob")}"]',
            batch=chance.choice((None, *(f'{{"of":1,"parallel":1{source}}}' for source in SOURCES.values()))),
            cursor=cursors.pop(),
        )

    for number in range(120):
        rows = [row(chance.randrange(50)) for _ in range(3)]
        await call_both("record", rows, Seq(number))
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
        file = FileRecord(
            file=name("file"), sha256="a", bytes=number, filename="x", media_type="y", purpose=name("purpose"),
            created_at=NOON, expires_at=chance.choice((None, NOON + timedelta(seconds=number))),
        )  # fmt: skip
        await call_both("put_file", OURS, file)
        await call_both("new_session", OURS, CreateSession(name("session"), project_id=name("project")), NOON)
        await call_both("change_session", OURS, ChangeSession(name("session"), text(), None, "system"))
        await call_both("put_unstored", key(f"turn-{number}"), chance.choice((None, text())))
        await call_both("forget_unstored", [key(f"turn-{number - 2}")])
        await call_both("delete_files", OURS, [name("file")])
    await call_both("record", [row(number) for number in range(50, 100)], Seq(999))
    await call_both("fail_expired", Seq(300))
    for table in KEYS:
        contents = [await read_digest(store._database.read, table) for store in stores]
        assert contents[0] == contents[1]
        assert contents[0].rows or table == "unsearched"
    for by in ("day", "session", "project", "model", "key", "user", "metadata.team"):
        start = ""
        while page := await call_both("usage", OURS, by, NOON.date(), NOON.date(), start, 2):
            start = f"{page[-1].key or ''}\0"
    before, middle = PageCursor(micros(NOON + timedelta(seconds=900)), "turn-2"), "session2"
    sessions = await call_both("sessions", OURS, None, NEWEST, 99, NOON)
    project = next(one.project_id for one in sessions if one.project_id)
    queries: list[tuple[Any, ...]] = [
        ("sessions", OURS, None, before, 5, NOON),
        ("sessions", OURS, project, NEWEST, 5, NOON),
        ("sessions", OURS, None, NEWEST, 5, NOON, "user1"),
        ("numbered_sessions", OURS, None, 2, 5, NOON),
        ("numbered_sessions", OURS, project, 0, 5, NOON),
        ("numbered_sessions", OURS, project, 0, 5, NOON, "user1"),
        ("projects", OURS, NEWEST, 5, NOON),
        ("numbered_projects", OURS, 1, 5, NOON),
        ("turn_list.read_page", OURS, {}, None, before, 9),
        ("turn_list.read_page", OURS, {"model": MODEL, "user": "user1"}, NOON, NEWEST, 9),
        ("turn_list.read_page", OURS, {}, None, NEWEST, 9, (), "failed"),
        ("turn_list.read_page", OURS, {}, None, before, 9, hash_words(OURS, ["b"]).split()),
        (
            "turn_list.read_page",
            OURS,
            {"model": MODEL, "user": "user1"},
            NOON,
            NEWEST,
            9,
            hash_words(OURS, ["B", "c"]).split(),
        ),
        ("list_unstored", OURS, None),
        ("every_unstored", key("turn-118")),
        ("session_turns", OURS, middle, OLDEST, 9),
        ("list_running", OURS, None, OLDEST, 9),
        ("turns_since", OURS, middle, Seq(400)),
        ("leaves", OURS, middle, NEWEST, 9),
        ("branch", key("turn-77")),
        ("batches", OURS, NEWEST, 9, "openai"),
        ("newer_batches", OURS, OLDEST, 9, "anthropic"),
        ("files", OURS, ListFiles(), 9, NOON),
        ("files", OURS, ListFiles(is_oldest_first=True), 9, NOON),
        ("expired_files", NOON + timedelta(seconds=200)),
        ("old_sessions", NOON + timedelta(days=1), Seq(1000), NOON),
        ("released_blobs", OURS),
        ("usage_since", OURS, NOON - timedelta(days=1)),
        ("busy_sessions", OURS),
        ("read_recorded_upto",),
    ]
    empty = [query for query in queries if not await call_both(*query)]
    assert not empty, empty
    assert await call_both("session_turns", OURS, middle, NEWEST, 9, is_newest_first=True)


@pytest.mark.rule("R94")
async def test_a_database_is_copied_to_postgresql_and_back(path: Path, store: Store, postgresql_store: Store) -> None:
    """Every text, NUL and its escape as well, in the same order; a second copy into the same database is refused."""
    strange = "a\0b\x01c\x010"
    rows = [
        running_row(f"turn-{number}", session=f"Session-{number % 3}", project="rivers", step=number // 9)
        for number in range(600)
    ]
    rows[7] = msgspec.structs.replace(rows[7], text=strange, stop_sequence="\0", user="Ä")
    await store.record(rows, Seq(9))
    other = postgresql_store
    copied = await copy_database(store._database, other._database)
    assert {table.table: table.rows for table in copied}["turns"] == 600
    async with open_store(path.with_name("back.db")) as back:
        assert await copy_database(other._database, back._database) == copied
        assert await content_of(back) == await content_of(store)
        assert len({await one.read_id() for one in (store, other, back)}) == 3
        found = await turn_of(back, key("turn-7"))
        assert (found.text, found.stop_sequence) == (strange, "\0")
        with pytest.raises(StoreRefused, match="has rows in sessions: name an empty one"):
            await copy_database(store._database, back._database)


@pytest.mark.rule("R94")
async def test_a_source_that_is_slow_to_read_is_copied_to_postgresql(
    file_store: Store, postgresql: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends other transactions that are idle for as long."""
    monkeypatch.setattr("tailrace.persistence.postgresql.FROZEN_S_MAX", 1)
    await file_store.record([running_row("turn-1")])
    read = file_store._database.read
    late_s = iter([1.2])

    async def read_late(*given: Any) -> Any:
        await asyncio.sleep(next(late_s, 0) if "FROM turns" in given[0] else 0)
        return await read(*given)

    monkeypatch.setattr(file_store._database, "read", read_late)
    async with open_store(await postgresql.new_database()) as target:
        copied = await copy_database(file_store._database, target._database)
    assert {table.table: table.rows for table in copied}["turns"] == 1


@pytest.mark.rule("R94")
async def test_a_database_that_is_written_while_it_is_copied_is_refused(
    path: Path, file_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has no rows then."""
    await file_store.record([running_row("turn-1")])
    add = TableHasher.add

    def read_and_change(self: TableHasher, rows: list[dict[str, object]]) -> None:
        add(self, rows)
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE sessions SET title = coalesce(title, '') || 'x'")
            database.commit()

    monkeypatch.setattr(TableHasher, "add", read_and_change)
    async with open_store(path.with_name("target.db")) as target:
        with pytest.raises(StoreRefused, match="sessions has changed while it was copied: stop persistence first"):
            await copy_database(file_store._database, target._database)
        monkeypatch.undo()
        assert await content_of(target) == []


async def test_a_new_database_is_migrated_once(path: Path) -> None:
    """A second start changes nothing; the version is that of the last migration."""
    for is_new in (True, False):
        store = await Store.open(path, busy_timeout_s=0.05)
        try:
            assert store.needs_replay == is_new
            await store.migrate()
            await store.migrate()
        finally:
            await store.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (migrations()[-1].number,)


async def test_a_database_of_a_newer_version_is_refused(path: Path, file_store: Store) -> None:
    """The message says what to do, and the file does not change."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreTooNew, match=r"has schema version 999.*start the newer version again"):
        await Store.open(path, busy_timeout_s=0.05)


async def test_the_file_and_its_journal_are_private(path: Path, file_store: Store) -> None:
    await file_store.record([running_row("turn-1")])
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["tailrace.db", "tailrace.db-shm", "tailrace.db-wal"]
    assert [file.stat().st_mode & 0o077 for file in [path.parent, *files]] == [0, 0, 0, 0]


@pytest.mark.parametrize("left", [0, 1 / 2])
@pytest.mark.parametrize("writes", ["a checkpoint", "a commit"])
async def test_a_file_that_was_truncated_while_open_is_corrupt(
    path: Path, file_store: Store, writes: str, left: float
) -> None:
    """Also when the next write makes it as long as before: the journal may hold its last page."""
    await file_store.erase_journal()
    await file_store.delete(OURS, DeleteResource("session", "session-0"))
    os.truncate(path, round(size_of(path) * left))
    with pytest.raises(StoreCorrupt, match="was truncated while it was open"):
        await (file_store.erase_journal() if writes == "a checkpoint" else file_store.record([running_row("turn-1")]))


async def test_a_file_that_an_operator_vacuums_while_it_is_open_is_not_damaged(path: Path, file_store: Store) -> None:
    long = msgspec.structs.replace(running_row("turn-1"), text="x" * 1_000_000)
    await file_store.record([long])
    await file_store.delete(OURS, DeleteResource("session", "session-1", (TurnId("turn-1"),)))
    await file_store.erase_journal()
    before = size_of(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM")
    for number in range(2):
        await file_store.record([running_row(f"turn-{number}")])
        file_store._database.note_deletion()
        await file_store.erase_journal()
        file_store.raise_if_damaged()
    assert size_of(path) < before / 2


async def test_a_directory_that_is_a_file_is_unwritable(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", b"a file")
    with pytest.raises(StoreUnwritable):
        await Store.open(folder / "tailrace.db", busy_timeout_s=0.05)


async def test_a_database_that_cannot_be_opened_leaves_nothing_open(path: Path) -> None:
    """Whichever of its connections is the first for which the process has no file descriptor."""
    async with open_store(path):
        pass
    threads, descriptors = threading.active_count(), open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    failed = 0
    for limit in range(free, free + 20):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            store = await Store.open(path, busy_timeout_s=0.05)
        except StoreUnwritable:
            failed += 1
        else:
            await store.close()
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: threading.active_count() <= threads)
        assert open_descriptors() == descriptors
    # Descriptors of the file, and those of three connections.
    assert failed > 3


def open_descriptors() -> set[str]:
    return {one.name for one in Path("/dev/fd").iterdir() if one.exists()}


async def test_a_damaged_database_is_renamed_and_kept(path: Path) -> None:
    for _ in range(2):
        async with open_store(path):
            pass
        write(Path(f"{path}-wal"), b"")
        move_aside(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "tailrace.db.damaged-1",
        "tailrace.db.damaged-1-wal",
        "tailrace.db.damaged-2",
        "tailrace.db.damaged-2-wal",
    ]
    assert move_aside(path) is None


async def test_every_commit_is_synced_to_the_disk(file_store: Store) -> None:
    """WAL's usual synchronous=NORMAL may lose acknowledged commits in a power cut."""
    async with file_store._database.transaction() as writer:
        assert await writer.read("PRAGMA synchronous", {}) == [{"synchronous": 2}]
        assert await writer.read("PRAGMA journal_mode", {}) == [{"journal_mode": "wal"}]


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
