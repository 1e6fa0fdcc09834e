"""Each statement uses an index of PostgreSQL, and replaces one of SQLite if it is PostgreSQL's own."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from tailrace.features.persistence import TABLES
from tailrace.features.postgresql.database import PostgreSQL, to_positional
from tailrace.persistence.sql import CORE, parts, statements
from tests.harness.open_store import open_store
from tests.harness.postgresql import PostgreSQLServer
from tests.unit.store.test_query_plans import FOR_EACH_TENANT, NUMBERED

TEXTS = [one.queries for one in TABLES]
POSTGRESQL = statements(TEXTS, PostgreSQL.own_queries)
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
INSERT INTO parked_turns SELECT 'ours', 's' || n, 't' || n * 10 - 1, n, n, n % 2, CASE WHEN n % 100 = 0 THEN n END, '{}'
FROM generate_series(1, 1900) AS n;
INSERT INTO call_decisions SELECT tenant, session, turn, 'c', '{}', 'k', asked_at FROM turns;
INSERT INTO unstored SELECT 'ours', turn, 'u' || asked_at FROM turns;
INSERT INTO totals SELECT 'ours', 'user', 'u' || n, n % 300, 1, 1, 1, 1, 1, 1, 1, 1 FROM generate_series(1, 19000) AS n;
INSERT INTO blob_uses SELECT tenant, 'b' || asked_at, turn FROM turns;
INSERT INTO files SELECT 'ours', 'f' || n, 'b', 1, 'f', 'm', 'p', 1, n FROM generate_series(1, 9000) AS n;
INSERT INTO notices SELECT 'ours', 'n' || n, '{}', n, n, 0, CASE WHEN n % 100 = 0 THEN n END
FROM generate_series(1, 9000) AS n;
INSERT INTO reservations SELECT 'ours', 's' || n, 't' || n, CASE WHEN n % 10 = 0 THEN 't' || n END, 1, n, n,
    CASE WHEN n % 100 > 0 THEN n END, 1 FROM generate_series(1, 9000) AS n;
INSERT INTO budget_keys SELECT 'ours', 'o' || n, 'k' || n FROM generate_series(1, 9000) AS n;
INSERT INTO session_counts SELECT 'theirs', 'p' || n, 1 FROM generate_series(1, 9000) AS n;
ANALYZE;
"""
VALUES = {
    "tenant": "ours", "session": "s7", "turn": "t61", "parent": "t60", "project": "p7", "user": "u7", "name": "user",
    "dimension": "user", "key": "u7", "value": "v7", "file": "f7", "sha256": "b61", "listed": '[["ours", "s7", "t61"]]',
    "labels": "{}", "blobs": "[]", "others": '{"model": "v7"}', "last_name": "u8", "of": "openai",
    "since": 1990, "limit": 1000, "words": "w61 w", "user_hash": "u7", "before_number": 9**18,
    "held": '[["s61", 1, 1, 1]]', "owners": "[]", "subject": "s61", "owner": "o7",
}  # fmt: skip


@pytest_asyncio.fixture
async def filled_connection(postgresql: PostgreSQLServer) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database with many rows."""
    url = await postgresql.new_database()
    async with open_store(url), postgresql.connect(url) as connection:
        await connection.execute(FILL)
        yield connection


def test_each_text_of_postgresql_replaces_one_part_of_sqlite() -> None:
    """A part with another name would replace nothing, and one with a name of two features both."""
    found = Counter(key for text in (CORE, *TEXTS) for key, _ in parts(text))
    assert {key: found[key] for key, _ in parts(PostgreSQL.own_queries) if found[key] != 1} == {}


async def test_each_statement_uses_an_index_of_postgresql(filled_connection: asyncpg.Connection) -> None:
    """Each scan of a table has a condition on an index, with a column after the tenant unless it is `NUMBERED`."""
    wrong: list[object] = []
    # With these, it reads all of a table that is as small as here.
    for kind in ("seqscan", "bitmapscan", "hashjoin", "mergejoin"):
        await filled_connection.execute(f"SET enable_{kind} = off")
    for name, statement in POSTGRESQL.items():
        # An index of words gives only bitmaps.
        await filled_connection.execute(f"SET enable_bitmapscan = {'on' if 'found' in name else 'off'}")
        found = await scans_of(filled_connection, statement)
        assert found or statement.startswith("INSERT"), name
        wrong += [(name, scan) for scan in found if not is_by_index(name, scan)]
    assert wrong == []


@pytest.mark.parametrize("name", ["user_turn_ids", "found_turns", "sessions", "owner_sessions", "sessions_from"])
async def test_the_planner_of_postgresql_chooses_the_index_itself(
    filled_connection: asyncpg.Connection, name: str
) -> None:
    """For statements that limit its choice, and for the first turn of each session. It could read all turns."""
    found = await scans_of(filled_connection, POSTGRESQL[name])
    assert [scan for scan in found if not is_by_index(name, scan)] == []


async def scans_of(connection: asyncpg.Connection, statement: str) -> list[dict[str, Any]]:
    """Returns the steps of a statement's plan that read a table."""
    text, names = to_positional(statement)
    values = [VALUES.get(one, 1 if f"${number}::bigint" in text else "") for number, one in enumerate(names, 1)]
    plan = await connection.fetchval(f"EXPLAIN (FORMAT json) {text}", *values)
    return list(scans(msgspec.json.decode(plan)[0]["Plan"]))


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
    across_tenants = scan.get("Index Name") in (
        *("sessions_by_age", "files_expiring", "unstored_pkey", "parked_decided", "notices_waiting"),
        "reservations_by_end",
    )
    return " AND " in condition or (bool(condition) and (name in NUMBERED | FOR_EACH_TENANT or across_tenants))
