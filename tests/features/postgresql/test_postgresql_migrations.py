"""Migrations of PostgreSQL: the same tables as in SQLite, from each version, by one process."""

import pytest

from tailrace.features.persistence import DATABASES
from tailrace.features.postgresql.database import MIGRATIONS, SET_VERSION
from tailrace.features.search.persistence import store_older_words
from tailrace.features.search.reader import SearchReader
from tailrace.persistence.database import TABLES as KEYS
from tailrace.persistence.migrations import migrations
from tailrace.persistence.paging import NEWEST
from tailrace.persistence.store import Store
from tailrace.persistence.turn_list import TurnPageQuery
from tests.harness import old_owners
from tests.harness.open_store import open_store
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.stored_turns import OURS, hash_text

# The last schema without owners.
OWNERS_FROM = 27


async def test_an_older_schema_of_postgresql_is_migrated_and_its_turns_are_searchable(
    postgresql: PostgreSQLServer,
) -> None:
    """The older schema has fewer tables."""
    url, oldest = await postgresql.new_database(), migrations(own=MIGRATIONS)[0]
    async with postgresql.connect(url) as administrator:
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
        assert [await store_older_words(store) for _ in range(2)] == [1, 0]
        found, _ = await SearchReader(store).read_page(
            TurnPageQuery(OURS, {}, None, NEWEST, 9), hash_text("light").split()
        )
        assert [one.turn for one in found] == ["turn-1"]


@pytest.mark.rule("R146")
async def test_older_sessions_and_files_have_the_owner_that_is_proven(postgresql: PostgreSQLServer) -> None:
    url = await postgresql.new_database()
    async with postgresql.connect(url) as administrator:
        for step in migrations(own=MIGRATIONS):
            if step.number <= OWNERS_FROM:
                await administrator.execute(step.sql)
        await administrator.execute(SET_VERSION.format(OWNERS_FROM))
        for statement in old_owners.statements():
            await administrator.execute(statement)
    async with open_store(url) as store:
        await old_owners.require_owners(store)


async def test_both_databases_have_the_same_tables(file_store: Store, postgresql_store: Store) -> None:
    """The columns in the same order, which of them may be NULL, the primary keys, and the indexes."""
    for table, primary_key in KEYS.items():
        columns = await file_store.database.read(f"SELECT * FROM pragma_table_info('{table}')", {})
        indexes = await file_store.database.read(f"SELECT * FROM pragma_index_list('{table}')", {})
        named = {row["name"]: row["partial"] for row in indexes if row["origin"] == "c"}
        found = await postgresql_store.database.read(
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
        theirs = await postgresql_store.database.read(
            "SELECT indexname::text AS name, indexdef AS made FROM pg_indexes WHERE tablename = :table",
            {"table": table},
        )
        made = {row["name"]: row["made"].partition("USING btree ")[2] for row in theirs if "gin" not in row["made"]}
        assert made.pop(f"{table}_pkey", "").replace('"', "") == (f"({', '.join(keys)})" if keys else "")
        assert {name: int(" WHERE " in text) for name, text in made.items()} == named
        for name, text in made.items():
            info = await file_store.database.read(f"SELECT name FROM pragma_index_info('{name}')", {})
            # SQLite has no name for an expression, of which there is one.
            expected = f"({', '.join(row['name'] or 'tailrace_batch_api(batch)' for row in info)})"
            assert text.partition(" WHERE ")[0].replace('"', "") == expected


async def test_two_processes_that_start_together_migrate_a_database_once(postgresql: PostgreSQLServer) -> None:
    """Both have seen that it is empty."""
    url = await postgresql.new_database()
    stores = [Store(await DATABASES.open(url, busy_timeout_s=1)) for _ in range(2)]
    try:
        for store in stores:
            await store.migrate()
        assert len({await store.read_id() for store in stores}) == 1
    finally:
        for store in stores:
            await store.close()
