"""Copy of a whole database into an empty one, also from SQLite to PostgreSQL and back (PROTOCOL R94)."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from tailrace.persistence.database import DERIVED, TABLES, Database
from tailrace.persistence.migrations import NEWEST
from tailrace.proto.errors import StoreRefused

PAGE_ROWS = 500

Read = Callable[[str, Mapping[str, Any]], Awaitable[list[dict[str, Any]]]]


class TableDigest(NamedTuple):
    """A table, its number of rows, and the SHA-256 of its rows in the order of the primary key."""

    table: str
    rows: int
    digest: str


async def copy_database(source: Database, target: Database) -> list[TableDigest]:
    """Copies all rows in one transaction. Returns the digest of each table, which is the same in both databases.

    Raises StoreRefused if the target is not empty, if the copy differs from the source, or if the source was changed
    meanwhile. No row of the target changes then.
    """
    if source.version != NEWEST:
        raise StoreRefused(
            f"the database to copy has schema version {source.version}, and this version of Tailrace has {NEWEST}: "
            "start persistence with it once, and stop it"
        )
    await target.migrate()
    # The transaction waits while the source is read.
    async with target.transaction(is_slow=True) as writer:
        for table in TABLES:
            if table != "reached" and await writer.read(f"SELECT 1 AS found FROM {table} LIMIT 1", {}):  # noqa: S608  # a table of ours
                raise StoreRefused(f"the database to copy to has rows in {table}: name an empty one")
        await writer.execute("DELETE FROM reached", {})
        copied: list[TableDigest] = []
        for table in TABLES:
            hasher = TableHasher(table)
            async for page in _pages(source.read, table):
                hasher.add(page)
                if table not in DERIVED:
                    await writer.executemany(_insert(table, page[0]), page)
            copied.append(hasher.digest())
        for expected in copied:
            stored = await read_digest(writer.read, expected.table)
            if stored != expected:
                raise StoreRefused(
                    f"the copy of {expected.table} differs: {expected.rows} rows were read, {stored.rows} are stored"
                )
            if await read_digest(source.read, expected.table) != expected:
                raise StoreRefused(f"{expected.table} has changed while it was copied: stop persistence first")
    return copied


async def read_digest(read: Read, table: str) -> TableDigest:
    """Reads a whole table and returns its digest. Raises StoreError."""
    hasher = TableHasher(table)
    async for page in _pages(read, table):
        hasher.add(page)
    return hasher.digest()


class TableHasher:
    """Computes the TableDigest of a table whose rows are added in order."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._rows = 0
        self._digest = hashlib.sha256()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Adds the next rows of the table, in the order of its primary key."""
        self._rows += len(rows)
        for row in rows:
            self._digest.update(msgspec.json.encode(sorted(row.items())) + b"\n")

    def digest(self) -> TableDigest:
        """Returns the digest of the rows that were added."""
        return TableDigest(self._table, self._rows, self._digest.hexdigest())


async def _pages(read: Read, table: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Yields the rows of a table in the order of its primary key, in pages."""
    names = TABLES[table]
    order = ", ".join(names)
    after = f"WHERE ({order}) > ({', '.join(f':{name}' for name in names)})"
    last: dict[str, Any] | None = None
    while True:
        where = after if last is not None else ""
        statement = f"SELECT * FROM {table} {where} ORDER BY {order} LIMIT :limit"  # noqa: S608  # columns of ours
        page = await read(statement, {"limit": PAGE_ROWS} | (last or {}))
        if page:
            yield page
        if len(page) < PAGE_ROWS:
            return
        last = {name: page[-1][name] for name in names}


def _insert(table: str, row: Mapping[str, Any]) -> str:
    """Returns a statement that inserts a row with the columns of `row`. The type of a value follows from its name."""
    columns = ", ".join(f'"{name}"' for name in row)
    return f"INSERT INTO {table} ({columns}) VALUES ({', '.join(f':{name}' for name in row)})"  # noqa: S608  # columns of ours
