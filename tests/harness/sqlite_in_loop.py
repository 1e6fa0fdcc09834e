"""SQLiteInLoop: the database in memory, without threads, for event loops on virtual time."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tailrace.persistence.migrations import migrations
from tailrace.proto.ownership import hash_subject


class _Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def execute(self, statement: str, values: Mapping[str, Any]) -> int:
        return self._connection.execute(statement, values).rowcount

    async def executemany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self._connection.executemany(statement, rows)

    async def execute_all(self, steps: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        for statement, rows in steps:
            self._connection.executemany(statement, rows)

    async def read(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection.execute(statement, values)]


class SQLiteInLoop:
    """A Database. All instances with the same connection are the same database, for several processes."""

    system = "sqlite"
    own_queries = ""
    reads_max = 1

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._writing = asyncio.Lock()
        ((self.version,),) = connection.execute("PRAGMA user_version").fetchall()

    async def close(self) -> None:
        """The connection stays open."""

    async def migrate(self) -> None:
        """The database is migrated."""

    @asynccontextmanager
    async def transaction(self, *, is_slow: bool = False) -> AsyncIterator[_Transaction]:  # noqa: ARG002
        async with self._writing:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield _Transaction(self._connection)
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    async def read(self, statement: str, values: Mapping[str, Any], *, is_page: bool = False) -> list[dict[str, Any]]:  # noqa: ARG002
        # Tasks of one loop share the connection: a read would see a transaction that is not committed.
        async with self._writing:
            return [dict(row) for row in self._connection.execute(statement, values)]

    async def search(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return await self.read(statement, values)

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:  # noqa: ARG002
        yield

    async def erase_journal(self) -> None:
        """There is no journal."""

    def note_deletion(self) -> None:
        """There is no journal."""

    async def raise_if_too_new(self) -> None:
        """It has the newest version."""

    def raise_if_damaged(self) -> None:
        """It is never damaged."""


def new_template() -> sqlite3.Connection:
    """Returns a migrated empty database, to be copied."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.create_function("subject_hash", 1, hash_subject, deterministic=True)
    for step in migrations(after=0):
        connection.executescript(f"BEGIN; {step.sql}; PRAGMA user_version = {step.number}; COMMIT;")
    return connection


def copy_of(template: sqlite3.Connection) -> sqlite3.Connection:
    """Returns a copy of a database."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    template.backup(connection)
    connection.row_factory = sqlite3.Row
    return connection
