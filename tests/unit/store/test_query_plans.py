"""Each statement uses an index of SQLite."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from tailrace.persistence.store import Store

# Or over the index of those that are running, of which there are few, over what is mostly empty, or has one row.
BY_INDEX = re.compile(
    r"SEARCH \w+ USING (COVERING )?(INDEX \w+|PRIMARY KEY) \(tenant=\? AND |"
    r"SEARCH sessions USING (COVERING )?INDEX sessions_by_age \(updated_at<\?\)$|"
    r"SEARCH notices USING INDEX notices_waiting \(next_at[>< ?]|"
    r"SEARCH notices USING INDEX notices_by_expiry \(ANY\(tenant\) AND expires_at>\?\)$|"
    r"SEARCH files USING COVERING INDEX files_expiring \(expires_at<\?\)$|"
    r"SEARCH parked_turns USING INDEX parked_decided \(\(tenant,session\)>\(\?,\?\)\)$|"
    r"SEARCH reservations USING (COVERING )?INDEX reservations_by_end \(ended_at[=<]\?|"
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
FOR_EACH_TENANT = {"older_cost", "tenants_with_usage", "usage_by_tenant", "usage_of_all"}
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
