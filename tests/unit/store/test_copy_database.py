"""Copies between SQLite and PostgreSQL."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.deploy.cli.copy_database import TableHasher, copy_database
from tailrace.persistence.store import Store
from tailrace.proto.errors import StoreRefused
from tailrace.proto.ids import Seq
from tests.harness.open_store import open_store
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.stored_turns import content_of, key, running_row, turn_of


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
    copied = await copy_database(store.database, other.database)
    assert {table.table: table.rows for table in copied}["turns"] == 600
    async with open_store(path.with_name("back.db")) as back:
        assert await copy_database(other.database, back.database) == copied
        assert await content_of(back) == await content_of(store)
        assert len({await one.read_id() for one in (store, other, back)}) == 3
        found = await turn_of(back, key("turn-7"))
        assert (found.text, found.stop_sequence) == (strange, "\0")
        with pytest.raises(StoreRefused, match="has rows in sessions: name an empty one"):
            await copy_database(store.database, back.database)


@pytest.mark.rule("R94")
async def test_a_source_that_is_slow_to_read_is_copied_to_postgresql(
    file_store: Store, postgresql: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends other transactions that are idle for as long."""
    limits = {"idle_in_transaction_session_timeout": "1s"}
    monkeypatch.setattr("tailrace.features.postgresql.database.SESSION_SETTINGS", limits)
    await file_store.record([running_row("turn-1")])
    read = file_store.database.read
    late_s = iter([1.2])

    async def read_late(*given: Any) -> Any:
        await asyncio.sleep(next(late_s, 0) if "FROM turns" in given[0] else 0)
        return await read(*given)

    monkeypatch.setattr(file_store.database, "read", read_late)
    async with open_store(await postgresql.new_database()) as target:
        copied = await copy_database(file_store.database, target.database)
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
            await copy_database(file_store.database, target.database)
        monkeypatch.undo()
        assert await content_of(target) == []
