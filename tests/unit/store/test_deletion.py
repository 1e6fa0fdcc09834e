"""Deletion of turns, sessions, projects, users, tenants and blobs, in rounds."""

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.persistence.database import TABLES as KEYS
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.resources import DeleteResource, Kind
from tests.harness.open_store import open_store
from tests.harness.stored_turns import (
    COUNTS,
    DIMENSIONS,
    OURS,
    THEIRS,
    content_of,
    key,
    latest_first,
    record_history,
    running_row,
)


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


async def test_follow_ups_are_listed_before_their_parents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion in pages can continue from the named turn."""
    parents = {"root": None, "left": "root", "right": "root", "leaf": "right", "alone": None}
    await store.record([running_row(turn, parent=parent) for turn, parent in parents.items()])
    turns = [one.turn for one in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))]
    assert (turns[0], sorted(turns[1:3]), turns[3:]) == ("leaf", ["left", "right"], ["root"])
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 3)
    assert [one.turn for one in await store.turns_to_delete(OURS, DeleteResource("turn", "root"))] == turns[:3]
