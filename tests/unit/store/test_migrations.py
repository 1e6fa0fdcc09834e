"""The schema: migrations from older versions, and newer versions."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tailrace.features.persistence import DATABASES
from tailrace.features.search.persistence import store_older_words
from tailrace.features.search.reader import SearchReader
from tailrace.features.usage.persistence import UsageTable
from tailrace.persistence.migrations import migrations
from tailrace.persistence.paging import NEWEST
from tailrace.persistence.rows import build_row
from tailrace.persistence.store import Store
from tailrace.persistence.turn_list import TurnPageQuery
from tailrace.proto.errors import StoreTooNew
from tests.harness import old_owners
from tests.harness.open_store import open_store
from tests.harness.stored_turns import OURS, THEIRS, hash_text, key
from tests.harness.turn_builder import NOON, completed_turn

# The last schema without owners.
OWNERS_FROM = 27
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
            "key": [(None, 3), ("k", 2)], "user": [(None, 5)], "metadata.k": [(None, 4), ("1", 1)],
        }  # fmt: skip
        for by, totals in expected.items():
            found = (await UsageTable(store).usage(OURS, by, NOON.date(), NOON.date() + timedelta(days=1), "", 9))[0]
            assert [(one.key, one.turns) for one in found] == totals
            assert [(one.total_tokens, one.message_count) for one in found] == [(11 * n, 2 * n) for _, n in totals]
        (total,) = (await UsageTable(store).usage(OURS, "model", NOON.date(), NOON.date(), "", 9))[0]
        assert round(total.cost_usd * 1e9) == 3 * 7 + made.cost_nusd
        listed, _ = await store.turn_list.read_page(TurnPageQuery(OURS, {"key": "k"}, None, NEWEST, 9))
        assert [one.turn for one in listed] == ["turn-2"]
        assert [
            (await store.numbered_sessions(OURS, project, 0, 9, NOON, owner=None))[1] for project in (None, "rivers")
        ] == [2, 1]
        theirs = (await UsageTable(store).usage(THEIRS, "model", NOON.date(), NOON.date(), "", 9))[0]
        assert [(one.key, one.turns) for one in theirs] == [("other", 1)]
        # As many fields as `labels_of` takes, with the same limits.
        labels = {"model": made.model, "metadata.k": "1", f"metadata.{'n' * 64}": "v" * 512}
        labels |= {f"metadata.m{number}": "v" for number in range(11)}
        rows = await store.database.read("SELECT name, value FROM labels WHERE tenant = 'ours' AND turn = 'turn-1'", {})
        # Newer versions of SQLite do not cut a name at a NUL character.
        assert {row["name"]: row["value"] for row in rows if "\0" not in row["name"]} == labels
        assert await store.read_recorded_upto() == 99
        monkeypatch.setattr("tailrace.features.search.persistence.UNSEARCHED_MAX", 1)
        assert [await store_older_words(store) for _ in range(4)] == [1, 1, 1, 0]
        listed, _ = await SearchReader(store).read_page(
            TurnPageQuery(OURS, {}, None, NEWEST, 9), hash_text("light").split()
        )
        assert [one.turn for one in listed] == ["turn-2", "turn-1"]


async def test_a_new_database_is_migrated_once(path: Path) -> None:
    """A second start changes nothing; the version is that of the last migration."""
    for is_new in (True, False):
        store = Store(await DATABASES.open(path, busy_timeout_s=0.05))
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
        await DATABASES.open(path, busy_timeout_s=0.05)


@pytest.mark.rule("R146")
async def test_older_sessions_and_files_have_the_owner_that_is_proven(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        for step in migrations()[:OWNERS_FROM]:
            database.executescript(f"{step.sql}; PRAGMA user_version = {step.number};")
        for statement in old_owners.statements():
            database.execute(statement)
        database.commit()
    async with open_store(path) as store:
        await old_owners.require_owners(store)
