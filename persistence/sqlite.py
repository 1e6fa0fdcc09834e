"""The database as a SQLite file: connections for writing, reading and searching, and the mapping of SQLite's errors.

`synchronous=FULL`: an entry that the recorder acknowledges is never delivered again, and the log keeps it for a day
only. So a commit must be on the disk when it returns; WAL's usual NORMAL may lose the last commits in a power cut. One
transaction a batch means one fsync a batch. Reads continue during a write, also during a write of another program.

`secure_delete=ON`: SQLite overwrites deleted values with zeros, but not values that it moves to another page.
`erase_journal` removes deleted values from the journal, too.
"""

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from itertools import count, takewhile
from math import inf
from pathlib import Path
from typing import Any, Self

import aiosqlite

from tailrace.persistence import metrics
from tailrace.persistence.migrations import migrations, require_known_version
from tailrace.persistence.rpc import RowBudget
from tailrace.proto.errors import (
    SettingsInvalid,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreRefused,
    StoreUnwritable,
)
from tailrace.proto.ownership import hash_subject

# SQLite's primary result codes and our classes. An error that is not listed (SQLITE_ERROR: a wrong statement or table)
# is a bug and ends the process. By code: Python does not know the names of newer extended codes.
ERRORS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_BUSY: StoreBusy,
    sqlite3.SQLITE_LOCKED: StoreBusy,
    sqlite3.SQLITE_PROTOCOL: StoreBusy,
    sqlite3.SQLITE_FULL: StoreUnwritable,
    sqlite3.SQLITE_IOERR: StoreUnwritable,
    sqlite3.SQLITE_READONLY: StoreUnwritable,
    sqlite3.SQLITE_CANTOPEN: StoreUnwritable,
    sqlite3.SQLITE_PERM: StoreUnwritable,
    sqlite3.SQLITE_NOMEM: StoreUnwritable,
    sqlite3.SQLITE_CONSTRAINT: StoreRefused,
    sqlite3.SQLITE_MISMATCH: StoreRefused,
    sqlite3.SQLITE_TOOBIG: StoreRefused,
    sqlite3.SQLITE_CORRUPT: StoreCorrupt,
    sqlite3.SQLITE_NOTADB: StoreCorrupt,
}
# The disk has no space: for the file, or, at a start, for the memory that its connections share.
NO_SPACE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
# The message of SQLITE_ERROR for a `sum` that does not fit in 64 bits. https://sqlite.org/lang_aggfunc.html#sumunc
SUM_TOO_LARGE = "integer overflow"
PRIMARY_CODE = 0xFF

# The time between two interruptions of a search.
INTERRUPT_S = 0.05


class SQLiteTransaction:
    """A transaction of the connection for writing."""

    def __init__(self, writer: aiosqlite.Connection) -> None:
        self._writer = writer

    async def execute(self, statement: str, values: Mapping[str, Any]) -> int:
        """See Transaction.execute."""
        return (await self._writer.execute(statement, values)).rowcount

    async def executemany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """See Transaction.executemany."""
        await self._writer.executemany(statement, rows)

    async def execute_all(self, steps: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        """See Transaction.execute_all. aiosqlite would go to its thread and back for each statement, at a higher cost.

        A private method of aiosqlite is the only way to run a function in that thread.
        """

        def run(connection: sqlite3.Connection) -> None:
            for statement, rows in steps:
                connection.executemany(statement, rows)

        await self._writer._execute(run, self._writer._conn)  # type: ignore[no-untyped-call]  # noqa: SLF001

    async def read(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See Transaction.read."""
        cursor = await self._writer.execute(statement, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]


class SQLite:
    """An open database file, used by one process."""

    system = "sqlite"
    own_queries = ""
    reads_max = 1  # on one connection

    def __init__(
        self,
        path: Path,
        file: int,
        writer: aiosqlite.Connection,
        reader: aiosqlite.Connection,
        searcher: aiosqlite.Connection,
        version: int,
        opened: AsyncExitStack,
    ) -> None:
        self._path = path
        # A descriptor of the file, whose path may later lead to another file, or to none.
        self._file = file
        self._writer = writer
        self._reader = reader
        # For queries that may take long.
        self._searcher = searcher
        self.version = version
        # Closes the connections, then the file.
        self._opened = opened
        self._writing = asyncio.Lock()
        self._damage: StoreCorrupt | None = None
        # Also after a start: the process may have been killed between a deletion and its checkpoint.
        self._has_deleted = True
        self._bytes_seen = os.fstat(file).st_size

    @classmethod
    async def open(cls, path: Path, *, busy_timeout_s: float) -> Self:
        """Opens the file, and creates an empty one if there is none. Call `migrate` before any other method.

        Raises StoreTooNew if a newer version of Tailrace has migrated it, and SettingsInvalid for a directory.
        """
        if path.is_dir():  # noqa: ASYNC240  # at the start
            raise SettingsInvalid(f"TAILRACE_DATABASE: {str(path)!r} is a directory; set it to a file")
        with _map_errors(path):
            async with AsyncExitStack() as opened:
                file = _create(path)
                # Closed last: closing any descriptor of a file releases all locks that the process has on it, also
                # SQLite's.
                opened.callback(os.close, file)
                # A file that cannot be opened fails here: aiosqlite would leave a thread that calls a closed loop.
                sqlite3.connect(path).close()

                async def connect() -> aiosqlite.Connection:
                    connection = aiosqlite.connect(path, timeout=busy_timeout_s, isolation_level=None)
                    return await opened.enter_async_context(connection)

                writer = await connect()
                await writer.execute("PRAGMA journal_mode = WAL")
                await writer.execute("PRAGMA synchronous = FULL")
                await writer.execute("PRAGMA foreign_keys = ON")
                await writer.execute("PRAGMA secure_delete = ON")
                ((version,),) = await writer.execute_fetchall("PRAGMA user_version")
                require_known_version(str(path), version)
                reader, searcher = await connect(), await connect()
                reader.row_factory = searcher.row_factory = sqlite3.Row
                return cls(path, file, writer, reader, searcher, version, opened.pop_all())

    async def close(self) -> None:
        """Closes the connections and the file. Raises StoreError."""
        with _map_errors():
            await self._opened.aclose()

    async def migrate(self) -> None:
        """See Database.migrate. Raises StoreError."""
        # Of 0028_owners.sql: SQLite has no function for hashes.
        await self._writer.create_function("subject_hash", 1, hash_subject, deterministic=True)
        for step in migrations(after=self.version):
            with _map_errors(self._path):
                try:
                    await self._writer.executescript(
                        f"BEGIN IMMEDIATE; {step.sql}; PRAGMA user_version = {step.number}; COMMIT;"
                    )
                finally:
                    await self._writer.rollback()
            self.version = step.number

    @asynccontextmanager
    async def transaction(self, *, is_slow: bool = False) -> AsyncIterator[SQLiteTransaction]:  # noqa: ARG002
        """Yields the only write transaction. Commits after the block; rolls back after an error or a cancellation.

        Raises a StoreError, also if the file was replaced or is damaged.
        """
        # A task that writes on the shared connection would write in another task's transaction.
        async with self._writing:
            with _map_errors():
                self._check_file()
                try:
                    begun_at = time.monotonic()
                    await self._writer.execute("BEGIN IMMEDIATE")
                    yield SQLiteTransaction(self._writer)
                    await self._writer.execute("COMMIT")
                    metrics.TRANSACTION_S.observe(time.monotonic() - begun_at)
                except BaseException:
                    # Does nothing after a commit. A cancelled task must not leave a transaction open.
                    await self._writer.rollback()
                    raise
                self._check_file()

    async def erase_journal(self) -> None:
        """Empties the journal (the WAL file) if something was deleted since the last time.

        Does nothing while another program, such as a backup, or another query reads the database: call it again. Raises
        StoreError.
        """
        if not self._has_deleted:
            return
        async with self._writing:
            with _map_errors():
                self._check_file()
                ((wait_ms,),) = await self._writer.execute_fetchall("PRAGMA busy_timeout")
                await self._writer.execute_fetchall("PRAGMA busy_timeout = 0")
                try:
                    ((is_busy, *_),) = await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    await self._writer.execute_fetchall(f"PRAGMA busy_timeout = {wait_ms}")
                self._has_deleted = bool(is_busy)

    def note_deletion(self) -> None:
        """See Database.note_deletion."""
        self._has_deleted = True

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:  # noqa: ARG002
        """Does nothing: only one process uses the file."""
        yield

    async def read(self, statement: str, values: Mapping[str, Any], *, is_page: bool = False) -> list[dict[str, Any]]:
        """See Database.read. Raises StoreError; after StoreCorrupt, `raise_if_damaged` raises it again."""
        try:
            with _map_errors():
                return await _read(self._reader, statement, values, is_page=is_page)
        except StoreCorrupt as error:
            self._damage = error
            raise

    async def search(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the rows of a long query, on its own connection; a cancellation interrupts it.

        One search runs at a time: an interruption ends all queries of the connection. Raises StoreError.
        """
        searching = asyncio.ensure_future(_read(self._searcher, statement, values, is_page=True))
        try:
            await asyncio.wait({searching})
        finally:
            # After a cancellation, the connection's thread goes on until it is interrupted. An interruption before the
            # thread begins does nothing, so it is repeated.
            while not searching.done():
                await self._searcher.interrupt()
                await asyncio.wait({searching}, timeout=INTERRUPT_S)
            searching.exception()
        with _map_errors():
            return await searching

    async def raise_if_too_new(self) -> None:
        """See Database.raise_if_too_new."""
        ((version,),) = (row.values() for row in await self.read("PRAGMA user_version", {}))
        require_known_version(str(self._path), version)

    def raise_if_damaged(self) -> None:
        """Raises StoreCorrupt if the file is not whole, or if a read has found a damaged page."""
        if self._damage is not None:
            raise StoreCorrupt(str(self._damage)) from self._damage
        with suppress(OSError):
            self._check_file()

    def _check_file(self) -> None:
        """Raises StoreCorrupt if the file was deleted, replaced or truncated, and OSError while its directory is away.

        SQLite notices nothing of this: it continues to write to a deleted file, and serves a truncated one from its
        caches and the journal. A file that has shrunk is not always damaged: after an operator's VACUUM it has all
        pages that its header counts. A checkpoint may make a truncated file as long as it was, although most of its
        pages are missing: call this before each checkpoint, too.
        """
        ours = os.fstat(self._file)
        if ours.st_nlink and not self._path.parent.exists():
            # The directory was moved, or its disk was unmounted: it may come back with the file.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path.parent))
        try:
            found = self._path.stat()
        except FileNotFoundError:
            found = None
        if found is None or not os.path.samestat(ours, found):
            raise StoreCorrupt(f"the database {self._path} was deleted or replaced while it was open")
        if ours.st_size < self._bytes_seen and ours.st_size < _size_in_header(self._file):
            raise StoreCorrupt(f"the database {self._path} was truncated while it was open")
        self._bytes_seen = ours.st_size


async def _read(
    connection: aiosqlite.Connection, statement: str, values: Mapping[str, Any], *, is_page: bool
) -> list[dict[str, Any]]:
    """See Database.read. SQLite reads a row when it is fetched."""

    def run(own: sqlite3.Connection) -> list[dict[str, Any]]:
        rows, budget = list[dict[str, Any]](), RowBudget()
        with closing(own.execute(statement, values)) as found:
            for row in found:
                rows.append(dict(row))
                if is_page and budget.ends_with(row):
                    break
        return rows

    # As in SQLiteTransaction.execute_all.
    rows: list[dict[str, Any]] = await connection._execute(run, connection._conn)  # type: ignore[no-untyped-call]  # noqa: SLF001
    return rows


def back_up(path: Path, copy: Path) -> int:
    """Copies a database, with the pages that only its journal has, to a new private file. Returns its schema version.

    Other programs may read and write the database meanwhile. Raises StoreError, also if the copy is damaged.
    """
    with _map_errors():
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        target = sqlite3.connect(copy)
        with closing(source), closing(target):
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
            if target.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                raise StoreCorrupt(f"the database {path} is damaged: see docs/RUNBOOK.md, The database fails")
            ((version,),) = target.execute("PRAGMA user_version")
    return int(version)


def move_aside(path: Path) -> Path | None:
    """Renames a damaged database and its journal to the first free `.damaged-N`; returns that path.

    None if there was only a journal. No process may have the database open. The new one is made from the log; older
    turns can be recovered by hand from the renamed file.
    """
    aside = _aside(path, len(find_moved_aside(path)) + 1)
    for suffix in ("-wal", "-shm", ""):
        if (part := Path(f"{path}{suffix}")).exists():
            part.rename(f"{aside}{suffix}")
    return aside if aside.exists() else None


def find_moved_aside(path: Path) -> list[Path]:
    """Returns the files to which `move_aside` has renamed a database, oldest first."""
    return list(takewhile(Path.exists, (_aside(path, n) for n in count(1))))


def _aside(path: Path, number: int) -> Path:
    return Path(f"{path}.damaged-{number}")


def require_known_schema(path: Path) -> None:
    """Raises StoreTooNew if a newer version of Tailrace has migrated the database. Changes nothing.

    Raises another StoreError if the file cannot be read. A missing file is not an error.
    """
    if not path.exists():
        return
    with _map_errors(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        ((version,),) = database.execute("PRAGMA user_version")
    require_known_version(str(path), version)


def _size_in_header(file: int) -> float:
    """Returns the size in bytes that the header of a database file says; infinity without a header.

    https://sqlite.org/fileformat.html#the_database_header
    """
    header = os.pread(file, 32, 0)
    if not header.startswith(b"SQLite format 3\0") or len(header) < 32:
        return inf
    page_bytes = int.from_bytes(header[16:18])
    return (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(header[28:32])


def _create(path: Path) -> int:
    """Creates the file if there is none. Returns a descriptor of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Conversations are private: readable by the owner only. SQLite gives the journal the same mode. Opened for writing,
    # so that a read-only disk fails here: SQLite would open the file, and could never write.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def _map_errors(path: Path | None = None) -> Iterator[None]:
    """Maps errors of SQLite, sqlite3, aiosqlite and the file system to StoreError, whose message names `path`."""
    database = "the database" if path is None else f"the database {path}"
    try:
        yield
    except sqlite3.Error as error:
        name, code = getattr(error, "sqlite_errorname", ""), getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        kind = StoreRefused if str(error) == SUM_TOO_LARGE else ERRORS.get(code & PRIMARY_CODE)
        if kind is None:
            raise
        todo = ": make space on its disk" if code in NO_SPACE else ""
        raise kind(f"{database}: {error} ({name}){todo}") from error
    except (OverflowError, UnicodeEncodeError) as error:
        # sqlite3 cannot bind the value. The message does not contain it: it may be a part of a conversation.
        raise StoreRefused(f"the database cannot hold a value ({type(error).__name__})") from error
    except ValueError as error:
        # aiosqlite's error for a closed connection: a query that arrived while the process stops.
        raise StoreBusy(f"the database: {error}") from error
    except OSError as error:
        where = f" {error.filename} cannot be opened or written" if error.filename else ""
        raise StoreUnwritable(f"the database{where}: {os.strerror(error.errno or 0)}") from error
