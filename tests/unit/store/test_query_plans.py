"""Each statement uses an index, in both databases."""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from tailrace.features.persistence import TABLES
from tailrace.persistence.postgresql import to_positional
from tailrace.persistence.sql import statements
from tailrace.persistence.store import Store
from tests.harness.open_store import open_store
from tests.harness.postgresql import PostgreSQLServer

# Or over the index of those that are running, of which there are few, over what is mostly empty, or has one row.
BY_INDEX = re.compile(
    r"SEARCH \w+ USING (COVERING )?(INDEX \w+|PRIMARY KEY) \(tenant=\? AND |"
    r"SEARCH sessions USING (COVERING )?INDEX sessions_by_age \(updated_at<\?\)$|"
    r"SEARCH files USING COVERING INDEX files_expiring \(expires_at<\?\)$|"
    r"SEARCH parked_turns USING INDEX parked_decided \(\(tenant,session\)>\(\?,\?\)\)$|"
    r"SEARCH unstored USING PRIMARY KEY \(\(tenant,turn\)>\(\?,\?\)\)$|"
    r"SEARCH searched USING (COVERING INDEX \w+|INTEGER PRIMARY KEY) \(rowid[>=]|"
    r"SCAN search VIRTUAL TABLE INDEX \d+:M1><$|"
    r"SCAN (turns USING INDEX turns_running|searched USING INDEX searched_older)$|"
    r"SCAN (blob_releases|reached|identity|unsearched)$"
)
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
# They read one row for each tenant.
ONE_ROW = re.compile(r"SEARCH (older_costs|totals) USING (COVERING )?(INDEX \w+|PRIMARY KEY) \(tenant[=>]\?\)$")
FOR_EACH_TENANT = {"older_cost", "tenants_with_usage"}
POSTGRESQL = statements("postgresql", [one.queries for one in TABLES])
NUMBERED = {"count_projects", "count_sessions", "projects_from", "sessions_from"}


async def test_each_statement_uses_an_index(file_store: Store, path: Path) -> None:
    """Each step of the plan uses more of an index than the tenant, or reads an earlier step's rows."""
    # A page's number says how many rows are before it: those are read, in the order of an index.
    in_order = re.compile(r"SEARCH (projects|sessions) USING .*INDEX \w+ \(tenant=\?\)")
    wrong: list[tuple[str, str]] = []
    with closing(sqlite3.connect(path)) as database:
        # Then the plan of a deletion has the search for the rows that refer to those that it deletes.
        database.execute("PRAGMA foreign_keys = ON")
        for name, statement in file_store.sql.items():
            parameters = dict.fromkeys(re.findall(r":(\w+)", statement), 1)
            plan = [step[3] for step in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            # A Bloom filter is made by a scan of its table.
            kinds = ("SCAN", "SEARCH", "BLOOM")
            steps = [step for step in plan if step.startswith(kinds) and step not in FOUND]
            assert steps or statement.lstrip().startswith("INSERT"), name
            is_by_order = name in NUMBERED
            steps = [step for step in steps if not (name in FOR_EACH_TENANT and ONE_ROW.match(step))]
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
INSERT INTO parked_turns SELECT 'ours', 's' || n, 't' || n * 10 - 1, n, n, n % 2, CASE WHEN n % 100 = 0 THEN n END, '{}'
FROM generate_series(1, 1900) AS n;
INSERT INTO call_decisions SELECT tenant, session, turn, 'c', '{}', 'k', asked_at FROM turns;
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


@pytest_asyncio.fixture
async def filled_connection(postgresql: PostgreSQLServer) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database with many rows."""
    url = await postgresql.new_database()
    async with open_store(url), postgresql.connect(url) as connection:
        await connection.execute(FILL)
        yield connection


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


@pytest.mark.parametrize("name", ["user_turn_ids", "found_turns"])
async def test_the_planner_of_postgresql_chooses_the_index_itself(
    filled_connection: asyncpg.Connection, name: str
) -> None:
    """For statements that limit its choice. Without that, it would read all turns."""
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
    across_tenants = scan.get("Index Name") in ("sessions_by_age", "files_expiring", "unstored_pkey", "parked_decided")
    return " AND " in condition or (bool(condition) and (name in NUMBERED | FOR_EACH_TENANT or across_tenants))
