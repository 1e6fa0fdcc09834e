"""Deletion of turns, sessions, projects, users, tenants, files and blobs, in rounds."""

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from tailrace.features.files.persistence import FileTable
from tailrace.features.projects.persistence import ProjectTable
from tailrace.features.retention.persistence import Age, OldSessions
from tailrace.features.unstored.table import UnstoredTable
from tailrace.persistence.database import TABLES as KEYS
from tailrace.persistence.paging import NEWEST
from tailrace.persistence.rows import build_row, moment
from tailrace.persistence.store import Store
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.resources import ChangeSession, DeleteResource, Kind, TurnToDelete
from tests.harness.open_store import open_store
from tests.harness.stored_turns import (
    COUNTS,
    DIMENSIONS,
    OURS,
    THEIRS,
    content_of,
    counting_reads,
    file_record,
    key,
    latest_first,
    record_history,
    running_row,
    with_batch,
)
from tests.harness.turn_builder import NOON, completed_turn

TRANSACTIONS = "tailrace_persistence_transaction_seconds_count"


async def test_an_old_session_that_is_used_again_is_not_deleted(store: Store) -> None:
    """Retention has found it just before."""
    old = msgspec.structs.replace(build_row(key("turn-1"), completed_turn("Light").turn), session="old")
    theirs = msgspec.structs.replace(old, tenant=THEIRS)
    await store.record([old, msgspec.structs.replace(old, turn="turn-2", session="unused"), theirs])
    before, first, sessions = NOON + timedelta(days=1), Seq(old.cursor + 1), OldSessions(store)
    age = Age(before, first, NOON)
    assert await sessions.list(age) == [(OURS, "old"), (OURS, "unused"), (THEIRS, "old")]
    assert await sessions.list(age._replace(before=moment(max(old.asked_at, old.ended_at or 0)))) == []
    # The sequences of another log, which is younger than the turns, say nothing.
    assert await sessions.list(age._replace(first=Seq(1))) == []
    assert len(await sessions.list(Age(before, Seq(1), before))) == 3
    late = build_row(key("turn-3"), completed_turn("Light").turn)
    await store.record([msgspec.structs.replace(late, session="old", cursor=first)])
    for session, turn, is_deleted in (("old", "turn-1", False), ("unused", "turn-2", True)):
        what = DeleteResource("session", session, (TurnId(turn),))
        assert await sessions.delete(OURS, what, age) == is_deleted
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
    parent = msgspec.structs.replace(running_row("parent"), outcome=outcome, blobs='["inputs"]')
    child = running_row("child", parent="parent", user="ann", step=2)
    await store.record([with_batch(parent, batch), msgspec.structs.replace(child, blobs='["own"]')])
    await store.delete(OURS, DeleteResource("user", "ann", (TurnId("child"),)))
    assert await store.released_blobs(OURS) == (["inputs", "own"] if is_released else ["own"])
    assert await store.referenced_blobs(OURS, ["inputs", "own"]) == ([] if is_released else ["inputs"])


async def test_the_notes_of_turns_that_are_not_stored_are_read_in_pages(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.features.unstored.table.UNSTORED_MAX", 2)
    noted = [key(f"turn-{number}", tenant) for tenant in (OURS, THEIRS) for number in range(3)]
    for one in noted[::-1]:
        await UnstoredTable(store).put(one, "ann")
    found, after = list[TurnKey](), TurnKey(Tenant(""), TurnId(""))
    while page := await UnstoredTable(store).every(after):
        assert len(page) <= 2
        found, after = [*found, *page], page[-1]
    assert found == noted
    await UnstoredTable(store).forget(noted[:1])
    for user in ("ann", None):
        assert await UnstoredTable(store).list_of_user(OURS, user) == ["turn-1", "turn-2"]
        assert len(await UnstoredTable(store).list_of_user(THEIRS, user)) == 2


async def tenant_rows(store: Store, tenant: Tenant) -> dict[str, list[dict[str, Any]]]:
    """Returns all rows of a tenant, by table."""
    found: dict[str, list[dict[str, Any]]] = {}
    for table in KEYS:
        if table != "reached":
            statement = f"SELECT * FROM {table} WHERE tenant = :tenant ORDER BY {', '.join(KEYS[table])}"
            found[table] = await store.database.read(statement, {"tenant": tenant})
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
        begun = [running_row(f"ann-{n:03}", step=n, user="ann") for n in range(made, total)]
        anns = [with_batch(msgspec.structs.replace(row, outcome="completed"), "{}") for row in begun]
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


async def test_many_files_are_deleted_in_few_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.features.files.persistence.DELETE_FILES_MAX", 4)
    table, files = FileTable(store), [f"file-{number}" for number in range(10)]
    for file in files:
        await table.put_file(OURS, file_record(file, expires_at=NOON))
    assert await table.expired_files(NOON) == {OURS: files}
    before = REGISTRY.get_sample_value(TRANSACTIONS) or 0
    await table.delete_files(OURS, await table.every_file(OURS))
    assert (REGISTRY.get_sample_value(TRANSACTIONS) or 0) - before == 3
    assert await table.every_file(OURS) == []
    assert await store.released_blobs(OURS) == files


@pytest.mark.parametrize("kind", ["project", "user", "tenant"])
async def test_a_round_of_a_deletion_reads_a_part_of_the_sessions(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Those of its turns. Sessions that were empty before are deleted with the last turn."""
    what, made, costs, steps = DeleteResource(kind, "ann"), 0, list[int](), list[int]()
    connect = sqlite3.connect

    def connect_and_count(*given: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*given, **named)
        connection.set_progress_handler(lambda: steps.append(1), 1)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_and_count)
    named = {"project" if kind == "project" else "user": "ann"}
    rows = [running_row(f"turn-{n:03}", step=n, session=f"session-{n}", **named) for n in range(400)]
    async with open_store(path) as store:
        for total in (20, 400):
            await store.record(rows[made:total])
            made = total
            purged = tuple(TurnId(row.turn) for row in rows[total - 5 : total])
            steps.clear()
            deleted = await store.delete(OURS, msgspec.structs.replace(what, purged=purged))
            costs.append(len(steps))
            assert (deleted.turns, deleted.sessions) == (5, 5)
        assert costs[1] < 1.5 * costs[0]
        await store.delete(OURS, DeleteResource("turn", "turn-000", (TurnId("turn-000"),)))
        purged = tuple(turn.turn for turn in await store.turns_to_delete(OURS, what))
        deleted = await store.delete(OURS, msgspec.structs.replace(what, purged=purged))
        assert (deleted.turns, deleted.sessions) == (389, 390)
        assert await content_of(store) == []


async def test_a_project_is_deleted_with_its_last_session(store: Store) -> None:
    """Sessions without turns are deleted; a new turn keeps its session and project."""
    await store.record(
        [running_row("turn-1", project="rivers"), running_row("turn-2", session="session-2", project="rivers")]
    )
    await store.delete(OURS, DeleteResource("project", "rivers", (TurnId("turn-1"),)))
    left = await ProjectTable(store).project(OURS, "rivers", NOON)
    assert left is not None
    assert (left.sessions, await store.turns_to_delete(OURS, DeleteResource("project", "rivers"))) == (
        1,
        [TurnToDelete(TurnId("turn-2"), is_running=True)],
    )
    await store.delete(OURS, DeleteResource("project", "rivers", (TurnId("turn-2"),)))
    assert await ProjectTable(store).project(OURS, "rivers", NOON) is None


async def test_follow_ups_are_listed_before_their_parents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion in pages can continue from the named turn."""
    parents = {"root": None, "left": "root", "right": "root", "leaf": "right", "alone": None}
    await store.record([running_row(turn, parent=parent) for turn, parent in parents.items()])
    turns = [one.turn for one in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))]
    assert (turns[0], sorted(turns[1:3]), turns[3:]) == ("leaf", ["left", "right"], ["root"])
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 3)
    assert [one.turn for one in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))] == turns[:3]
