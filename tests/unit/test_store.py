"""The store with a real SQLite file: rows, queries, migrations, damaged files."""

import os
import random
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from tailrace.persistence.database import move_aside
from tailrace.persistence.migrations import migrations
from tailrace.persistence.paging import NEWEST, OLDEST, PageCursor
from tailrace.persistence.rows import MICROSECOND, TurnRow, build_row, labels_of, micros
from tailrace.persistence.sql import STATEMENTS, load
from tailrace.persistence.store import Store
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.errors import StoreCorrupt, StoreRefused, StoreTooNew, StoreUnwritable
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId
from tailrace.proto.records import SessionRecord, record_from_fold
from tailrace.proto.resources import DeleteResource, Kind, TurnToDelete
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import NANO_USD_PER_USD, Usage
from tests.harness.turn_builder import NOON, Handwritten, completed_turn

OURS, THEIRS = Tenant("ours"), Tenant("theirs")
TABLES = ("sessions", "turns", "usage", "labels", "session_counts", "projects", "blob_uses", "blob_releases")
# Or over the index of those that are running, of which there are few, over what is mostly empty, or has one row.
BY_INDEX = re.compile(
    r"SEARCH \w+ USING (COVERING )?(INDEX \w+|PRIMARY KEY) \(tenant=\? AND |"
    r"SEARCH sessions USING (COVERING )?INDEX sessions_by_age \(updated_at<\?\)$|"
    r"SEARCH files USING COVERING INDEX files_expiring \(expires_at<\?\)$|"
    r"SCAN (turns USING INDEX turns_running|blob_releases|reached)$"
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
# None are steps over a table: what was found already, a parameter's list, and the one row of a VALUES.
FOUND = (
    "SCAN branch",
    "SCAN page",
    "SCAN CONSTANT ROW",
    *(f"{step} days" for step in ("SCAN", "SEARCH")),
    "SCAN keys",
    *(f"SCAN {name} VIRTUAL TABLE INDEX 1:" for name in ("json_each", "field", "moved", "other", "written")),
    "SCAN 1 CONSTANT ROW",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tailrace.db"


@pytest_asyncio.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = await opened(path)
    yield store
    await store.close()


async def opened(path: Path) -> Store:
    store = await Store.open(path, busy_timeout_s=0.05)
    await store.migrate()
    return store


def key(turn: str, tenant: Tenant = OURS) -> TurnKey:
    return TurnKey(tenant, TurnId(turn))


def running_row(
    turn: str, *, session: str = "session-1", parent: str | None = None, step: int = 1, **given: object
) -> TurnRow:
    """The row of a turn that is running; `step` is also the second at which it was asked."""
    log = Handwritten(step)
    log.ask(session=SessionId(session), parent=parent, **given)
    return build_row(key(turn), log.turn)


async def session_of(store: Store, session: str, since: datetime = NOON) -> SessionRecord:
    found = await store.session(OURS, session, since)
    assert found is not None
    return found


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def content_of(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return [one for table in TABLES for one in database.execute(f"SELECT * FROM {table}")]


@pytest.mark.rule("R27")
async def test_writing_a_turn_twice_changes_nothing(store: Store, path: Path) -> None:
    """After a kill between commit and acknowledgement it is written again."""
    rows = [build_row(key("turn-1"), completed_turn("Light").turn), running_row("turn-2")]
    await store.record(rows)
    before = content_of(path)
    await store.record(rows)
    assert content_of(path) == before


@pytest.mark.rule("R27")
async def test_an_older_fold_never_overwrites_a_newer_one(store: Store, path: Path) -> None:
    """Entries are delivered in any order; text, usage and session stay those of the newest fold."""
    log = completed_turn("Light")
    beginning = Handwritten()
    beginning.stored = log.stored[:1]
    await store.record([build_row(key("turn-1"), log.turn)])
    before = content_of(path)
    await store.record([build_row(key("turn-1"), beginning.turn)])
    assert content_of(path) == before


async def test_an_end_updates_the_row_of_a_running_turn(store: Store) -> None:
    log = completed_turn("Light")
    await store.record([running_row("turn-1")])
    await store.record([build_row(key("turn-1"), log.turn)])
    assert await store.turn(key("turn-1")) == record_from_fold(key("turn-1"), log.turn)


@pytest.mark.rule("R27")
async def test_a_running_turn_that_has_left_the_log_is_failed(store: Store) -> None:
    """Of any tenant; ended turns, and turns that the log may still have, do not change."""
    ended, theirs = completed_turn("Light").turn, key("turn-1", THEIRS)
    late = Handwritten(5)
    late.stored = [msgspec.structs.replace(stored, seq=Seq(50)) for stored in completed_turn("Light").stored[:1]]
    rows = [running_row("turn-1"), build_row(key("turn-2"), ended), build_row(key("turn-3"), late.turn)]
    await store.record([*rows, msgspec.structs.replace(rows[0], tenant=THEIRS)])
    first = Seq(ended.chain.last + 1)
    assert await store.fail_expired(first, LOST_FAILURE) == 2
    for lost in (key("turn-1"), theirs):
        told = await store.turn(lost)
        assert told is not None
        assert (told.outcome, told.error, told.ended_at) == ("failed", LOST_FAILURE, None)
    kept = [await store.turn(key(turn)) for turn in ("turn-2", "turn-3")]
    assert [told.outcome for told in kept if told] == ["completed", "running"]
    assert await store.busy_sessions(OURS) == ["session-1"]
    assert await store.fail_expired(first, LOST_FAILURE) == 0


@pytest.mark.parametrize("wrong", [{"outcome": "sleeping"}, {"cost_nusd": 2**63}, {"text": "\ud800"}])
async def test_a_batch_is_written_completely_or_not_at_all(store: Store, path: Path, wrong: dict[str, object]) -> None:
    """A row that SQLite rejects rolls back its batch."""
    refused = TurnRow(**{**msgspec.structs.asdict(running_row("turn-2")), **wrong})
    with pytest.raises(StoreRefused):
        await store.record([running_row("turn-1"), refused])
    assert content_of(path) == []
    await store.record([running_row("turn-1")])
    assert await store.turn(key("turn-1")) is not None


async def test_a_session_is_the_sum_of_its_turns(store: Store) -> None:
    """Totals are computed from the turns, over all branches."""
    turns = [completed_turn("Light", step=step).turn for step in (1, 2)]
    await store.record([build_row(key("turn-1"), turns[0]), build_row(key("turn-2"), turns[1])])
    found = await store.session(OURS, "session-1", NOON)
    assert found is not None
    ended = turns[1].ended_at
    assert (found.turns, found.usage, found.created_at, found.updated_at) == (
        2,
        Usage(input_tokens=20, output_tokens=2),
        turns[0].asked_at,
        ended,
    )
    assert found.cost_usd == sum(turn.end.cost_nano_usd for turn in turns if turn.end) / NANO_USD_PER_USD > 0


async def test_sessions_are_listed_newest_first_in_pages(store: Store) -> None:
    await store.record([running_row(f"turn-{n}", session=f"session-{n}", step=n) for n in (2, 5, 1, 4, 3)])
    first = await store.sessions(OURS, None, NEWEST, 3, NOON)
    rest = await store.sessions(OURS, None, PageCursor(micros(first[-1].updated_at), first[-1].session), 3, NOON)
    assert [one.session for one in first + rest] == [f"session-{n}" for n in (5, 4, 3, 2, 1)]


async def test_turns_of_a_session_are_listed_oldest_first_in_pages(store: Store) -> None:
    """Turns of the same microsecond are ordered by their id."""
    await store.record(
        [running_row(f"turn-{name}", step=step) for name, step in [("c", 1), ("b", 1), ("a", 2), ("d", 2)]]
    )
    first = await store.session_turns(OURS, SessionId("session-1"), OLDEST, 3)
    rest = await store.session_turns(
        OURS, SessionId("session-1"), PageCursor(micros(first[-1].asked_at), first[-1].turn), 3
    )
    assert [one.turn for one in first + rest] == ["turn-b", "turn-c", "turn-a", "turn-d"]
    before = PageCursor(micros(rest[0].asked_at), rest[0].turn)
    earlier = await store.session_turns(OURS, SessionId("session-1"), before, 2, is_newest_first=True)
    assert [one.turn for one in earlier] == ["turn-a", "turn-c"]
    assert await store.last_turn(OURS, "session-1") == "turn-d"


async def test_a_branch_is_a_turn_and_its_ancestors(store: Store) -> None:
    parents = {"root": None, "left": "root", "right": "root", "leaf": "right"}
    await store.record([running_row(turn, parent=parent) for turn, parent in parents.items()])
    assert [one.turn for one in await store.branch(key("leaf"))] == ["root", "right", "leaf"]
    assert await store.branch(key("nobody")) == []


async def test_a_query_of_a_circle_of_parents_ends(store: Store) -> None:
    await store.record([running_row("turn-1", parent="turn-2"), running_row("turn-2", parent="turn-1")])
    assert len(await store.branch(key("turn-1"))) > 1


async def test_deleting_a_turn_deletes_its_row_its_usage_and_an_empty_session(store: Store, path: Path) -> None:
    """A session that still has a turn stays."""
    await store.record([running_row("turn-1"), running_row("turn-2"), running_row("turn-3", session="session-2")])
    await store.delete(OURS, DeleteResource("session", "session-1", (TurnId("turn-1"),)))
    assert await store.turn(key("turn-1")) is None
    assert (await session_of(store, "session-1")).turns == 1
    await store.delete(OURS, DeleteResource("session", "session-1", (TurnId("turn-2"),)))
    assert await store.session(OURS, "session-1", NOON) is None
    await store.delete(OURS, DeleteResource("turn", "turn-3", (TurnId("turn-3"),)))
    assert (await session_of(store, "session-2")).turns == 0
    await store.delete(THEIRS, DeleteResource("session", "session-2"))
    await store.delete(OURS, DeleteResource("session", "session-2"))
    assert content_of(path) == []


async def test_a_blob_is_released_with_a_turn_and_kept_by_another_of_its_tenant(store: Store, path: Path) -> None:
    """Blobs of two tenants are different blobs; a blob that is released twice is one row."""
    shared, own = ("a" * 64, "b" * 64)
    both = msgspec.json.encode([shared, own]).decode()
    first = msgspec.structs.replace(running_row("turn-1"), blobs=both)
    theirs = msgspec.structs.replace(first, tenant=THEIRS)
    second = msgspec.structs.replace(running_row("turn-2"), blobs=f'["{shared}"]')
    await store.record([first, theirs, second, first])
    await store.release_blobs(OURS, both)
    await store.delete(OURS, DeleteResource("session", "session-1", (TurnId("turn-1"),)))
    assert (await store.released_blobs(OURS), await store.released_blobs(OURS, after=shared)) == ([shared, own], [own])
    assert (await store.tenants_with_released_blobs(), await store.released_blobs(THEIRS)) == ([OURS], [])
    assert await store.referenced_blobs(OURS, [shared, own]) == [shared]
    await store.forget_released(OURS, [shared])
    assert await store.released_blobs(OURS) == [own]
    await store.forget_released(OURS, [own])
    assert await store.tenants_with_released_blobs() == []
    for tenant, turns in ((OURS, ("turn-2",)), (THEIRS, ("turn-1",))):
        await store.delete(tenant, DeleteResource("session", "session-1", tuple(map(TurnId, turns))))
        await store.forget_released(tenant, [shared, own])
    assert content_of(path) == []


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
    told = [doomed.turn for doomed in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))]
    assert (told[0], sorted(told[1:3]), told[3:]) == ("leaf", ["left", "right"], ["root"])
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 3)
    assert [doomed.turn for doomed in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))] == told[:3]


async def test_a_session_is_active_until_it_is_idle_for_long_enough(store: Store) -> None:
    await store.record([running_row("turn-1", step=10)])
    used = NOON + timedelta(seconds=10)
    for since, is_active in ((used - timedelta(microseconds=1), True), (used, False)):
        found = await store.session(OURS, "session-1", since)
        assert found is not None
        assert found.is_active == is_active
        assert await store.active_sessions(OURS, since) == int(is_active)
    await store.record([running_row("turn-2", step=20)])
    assert (await session_of(store, "session-1", used)).is_active


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


@pytest.mark.rule("R90")
async def test_totals_are_the_sums_of_the_turns_after_any_changes(store: Store, path: Path) -> None:
    """Turns begin, end, are written again, get a project late, and are deleted."""
    chance = random.Random(7)
    kept: dict[str, TurnRow] = {}
    for step in range(120):
        turn = f"turn-{chance.randrange(30)}"
        if turn in kept and chance.random() < 0.3:
            gone = kept.pop(turn)
            await store.delete(OURS, DeleteResource("session", gone.session, (TurnId(turn),)))
            continue
        log, given = Handwritten(1), {"metadata": {"team": chance.choice("ab")}, "user": chance.choice(["ann", None])}
        log.ask(session=SessionId(f"session-{chance.randrange(4)}"), **given)
        row = kept.get(turn) or build_row(key(turn), log.turn)
        spent = {"cursor": row.cursor + step, "input_tokens": step, "cost_nusd": step}
        named = {"project": chance.choice([None, "rivers"])}
        kept[turn] = msgspec.structs.replace(row, **spent, **named)
        await store.record([kept[turn]])
        await session_of(store, row.session)
    dimensions = ("day", "session", "project", "model", "key", "user", "metadata.team")
    for by in dimensions:
        found = await store.usage(OURS, by, NOON.date(), NOON.date(), "", 99)
        expected: dict[str | None, list[int]] = {}
        for row in kept.values():
            project = (await session_of(store, row.session)).project_id
            names = {
                "day": str(NOON.date()), "session": row.session, "project": project,
                **msgspec.json.decode(row.labels, type=dict[str, str]),
            }  # fmt: skip
            count = expected.setdefault(names.get(by), [0, 0])
            count[0] += 1
            count[1] += row.input_tokens
        told = {one.key: [one.turns, one.usage.input_tokens] for one in found}
        if by in ("session", "metadata.team"):
            assert {name: count for name, count in told.items() if name is not None} == expected, by
        else:
            assert all(told[name][0] >= count[0] for name, count in expected.items()), by
    deleted = sum(one.turns for one in await store.usage(OURS, "session", NOON.date(), NOON.date(), "", 1))
    (day,) = await store.usage(OURS, "day", NOON.date(), NOON.date(), "", 9)
    assert (deleted > 5, day.turns) == (True, deleted + len(kept))


async def test_usage_is_grouped_by_utc_day(store: Store) -> None:
    """A turn a microsecond before midnight belongs to the day that ends."""
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    times = {"turn-1": midnight - MICROSECOND, "turn-2": midnight, "turn-3": midnight + timedelta(days=1)}
    await store.record(
        [msgspec.structs.replace(running_row(turn), asked_at=micros(at), input_tokens=7) for turn, at in times.items()]
    )

    async def days(first: datetime, last: datetime, after: str = "") -> list[tuple[str | None, int]]:
        told = await store.usage(OURS, "day", first.date(), (last - MICROSECOND).date(), after, 9)
        return [(one.key, one.total_tokens) for one in told]

    assert await days(midnight - timedelta(days=1), midnight) == [("2026-01-01", 7)]
    assert await days(midnight, midnight + timedelta(days=1)) == [("2026-01-02", 7)]
    assert await days(midnight, midnight + timedelta(days=9), "2026-01-02\0") == [("2026-01-03", 7)]
    assert await store.usage(THEIRS, "day", NOON.date(), midnight.date(), "", 9) == []


async def test_a_database_of_the_first_version_has_totals_after_the_migration(path: Path) -> None:
    path.parent.mkdir()
    made = build_row(key("turn-1"), completed_turn("Light").turn)
    # SQLite cuts both names of the metadata at NUL, to the same label.
    row = msgspec.structs.asdict(made) | {"metadata": r'{"k":"1","k\u0000x":"2"}'}
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"{migrations()[0].sql}; PRAGMA user_version = 1;")
        for statement in (SESSION_1, TURN_1, USAGE_1):
            database.execute(statement, row)
        database.commit()
    store = await opened(path)
    (told,) = await store.usage(OURS, "model", NOON.date(), NOON.date(), "", 9)
    assert (told.key, told.turns, told.message_count, told.total_tokens) == (made.model, 1, 2, 11)
    assert (await session_of(store, "session-1")).message_count == made.messages
    await store.close()


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
    assert await store.active_usage(THEIRS, NOON) == []
    assert await store.busy_sessions(THEIRS) == []
    named: list[tuple[Kind, str]] = [("turn", "turn-1"), ("session", "session-1"), ("tenant", "theirs")]
    for kind, name in named:
        assert await store.turns_to_delete(THEIRS, DeleteResource(kind, name, (TurnId("turn-1"),))) == []
        await store.delete(THEIRS, DeleteResource(kind, name, (TurnId("turn-1"),)))
    await store.rename_session(THEIRS, "session-1", "theirs")
    assert (await session_of(store, "session-1")).title is None
    assert await store.turn(key("turn-1")) is not None


NUMBERED = {"count_projects", "count_sessions", "projects_from", "sessions_from"}


@pytest.mark.parametrize("name", sorted(STATEMENTS))
async def test_each_statement_uses_an_index(store: Store, path: Path, name: str) -> None:
    """Each step of the plan uses more of an index than the tenant, or reads an earlier step's rows."""
    parameters = dict.fromkeys(re.findall(r":(\w+)", STATEMENTS[name]), 1)
    with closing(sqlite3.connect(path)) as database:
        plan = [step[3] for step in database.execute(f"EXPLAIN QUERY PLAN {STATEMENTS[name]}", parameters)]
    steps = [step for step in plan if step.startswith(("SCAN", "SEARCH")) and step not in FOUND]
    assert steps or STATEMENTS[name].lstrip().startswith("INSERT")
    # A page's number says how many rows are before it: those are read, in the order of an index.
    in_order = (
        re.compile(r"SEARCH (projects|sessions) USING .*INDEX \w+ \(tenant=\?\)") if name in NUMBERED else BY_INDEX
    )
    assert [step for step in steps if not (BY_INDEX.match(step) or in_order.match(step))] == []


async def test_a_new_database_is_migrated_once(path: Path) -> None:
    """A second start changes nothing; the version is that of the last migration."""
    store = await Store.open(path, busy_timeout_s=0.05)
    assert store.needs_replay
    await store.migrate()
    await store.migrate()
    await store.close()
    again = await Store.open(path, busy_timeout_s=0.05)
    assert not again.needs_replay
    await again.migrate()
    await again.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (migrations()[-1].number,)


async def test_a_database_of_a_newer_version_is_refused(path: Path, store: Store) -> None:
    """The message says what to do, and the file does not change."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreTooNew, match=r"has schema version 999.*start the newer version again"):
        await Store.open(path, busy_timeout_s=0.05)


async def test_the_file_and_its_journal_are_private(path: Path, store: Store) -> None:
    await store.record([running_row("turn-1")])
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["tailrace.db", "tailrace.db-shm", "tailrace.db-wal"]
    assert [file.stat().st_mode & 0o077 for file in [path.parent, *files]] == [0, 0, 0, 0]


async def test_a_file_that_is_not_a_database_is_corrupt(tmp_path: Path) -> None:
    """Unlike a full or locked database, it must be replaced."""
    path = write(tmp_path / "tailrace.db", b"not a database" * 1000)
    with pytest.raises(StoreCorrupt, match="SQLITE_NOTADB"):
        await Store.open(path, busy_timeout_s=0.05)


async def test_a_file_that_was_deleted_while_open_is_corrupt(path: Path, store: Store) -> None:
    """SQLite would continue to write to it, and those turns would be acknowledged and lost."""
    move_aside(path)
    with pytest.raises(StoreCorrupt, match="deleted or replaced"):
        await store.record([running_row("turn-1")])


@pytest.mark.parametrize("writes", ["a checkpoint", "a commit"])
async def test_a_file_that_was_truncated_while_open_is_corrupt(path: Path, store: Store, writes: str) -> None:
    """Also when the next write makes it as long as before: the journal may hold its last page."""
    await store.erase_journal()
    await store.delete(OURS, DeleteResource("session", "session-0"))
    os.truncate(path, 0)
    with pytest.raises(StoreCorrupt, match="was truncated while it was open"):
        await (store.erase_journal() if writes == "a checkpoint" else store.record([running_row("turn-1")]))


async def test_a_directory_that_is_a_file_is_unwritable(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", b"a file")
    with pytest.raises(StoreUnwritable):
        await Store.open(folder / "tailrace.db", busy_timeout_s=0.05)


async def test_a_damaged_database_is_renamed_and_kept(path: Path) -> None:
    for _ in range(2):
        await (await opened(path)).close()
        write(Path(f"{path}-wal"), b"")
        move_aside(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "tailrace.db.damaged-1",
        "tailrace.db.damaged-1-wal",
        "tailrace.db.damaged-2",
        "tailrace.db.damaged-2-wal",
    ]
    assert move_aside(path) is None


async def test_every_commit_is_synced_to_the_disk(store: Store) -> None:
    """WAL's usual synchronous=NORMAL may lose acknowledged commits in a power cut."""
    assert list(await store._writer.execute_fetchall("PRAGMA synchronous")) == [(2,)]
    assert list(await store._writer.execute_fetchall("PRAGMA journal_mode")) == [("wal",)]


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
