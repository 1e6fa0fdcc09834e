"""The only door to SQLite: one file, a connection that writes, and one that reads. It knows no turn.

`synchronous=FULL`: what the recorder acknowledges is never delivered again, and the log itself is kept for a day only.
So a commit has to be on the disk when it returns; WAL's usual NORMAL may lose the last ones in a power cut. One
transaction a batch makes it one fsync a batch. Reads go on while a batch is written, and while another program writes.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiosqlite

from tailrace.persistence.migrations import TOLD_AGAIN, migrations
from tailrace.proto.errors import StoreBusy, StoreCorrupt, StoreError, StoreRefused, StoreTooNew, StoreUnwritable

# SQLite's names, and what they mean to us; the longer ones (SQLITE_IOERR_WRITE) go by their first two words. What is
# not here (SQLITE_ERROR: a statement or table that is wrong for every row) is a mistake of ours, and ends the process.
ERRORS: dict[str, type[StoreError]] = {
    "SQLITE_BUSY": StoreBusy,
    "SQLITE_LOCKED": StoreBusy,
    "SQLITE_PROTOCOL": StoreBusy,
    "SQLITE_FULL": StoreUnwritable,
    "SQLITE_IOERR": StoreUnwritable,
    "SQLITE_READONLY": StoreUnwritable,
    "SQLITE_CANTOPEN": StoreUnwritable,
    "SQLITE_PERM": StoreUnwritable,
    "SQLITE_NOMEM": StoreUnwritable,
    "SQLITE_CONSTRAINT": StoreRefused,
    "SQLITE_MISMATCH": StoreRefused,
    "SQLITE_TOOBIG": StoreRefused,
    "SQLITE_CORRUPT": StoreCorrupt,
    "SQLITE_NOTADB": StoreCorrupt,
}


class Opened(NamedTuple):
    """Which file was opened: a path can come to name another one, or none."""

    device: int
    inode: int


class Database:
    """An open file. Every call raises StoreError, and nothing of SQLite's."""

    def __init__(
        self, path: Path, opened: Opened, writer: aiosqlite.Connection, reader: aiosqlite.Connection, version: int
    ) -> None:
        self._path = path
        self._opened = opened
        self._writer = writer
        self._reader = reader
        self._version = version
        self._writing = asyncio.Lock()
        self._damage: StoreCorrupt | None = None

    @classmethod
    async def open(cls, path: Path, *, busy_timeout_s: float) -> Self:
        """Opens the file, and makes an empty one when there is none. Call `migrate` before anything else.

        Raises StoreTooNew when a newer version has written it.
        """
        with _errors():
            opened = _place(path)
            # What cannot be opened fails here: aiosqlite would leave a thread that answers to a loop closed by then.
            sqlite3.connect(path).close()
            writer = await aiosqlite.connect(path, timeout=busy_timeout_s, isolation_level=None)
            try:
                await writer.execute("PRAGMA journal_mode = WAL")
                await writer.execute("PRAGMA synchronous = FULL")
                await writer.execute("PRAGMA foreign_keys = ON")
                ((version,),) = await writer.execute_fetchall("PRAGMA user_version")
                _check_version(path, version)
                reader = await aiosqlite.connect(path, timeout=busy_timeout_s, isolation_level=None)
            except BaseException:
                await writer.close()
                raise
            reader.row_factory = sqlite3.Row
        return cls(path, opened, writer, reader, version)

    @property
    def is_new(self) -> bool:
        """There was no database, or an empty one."""
        return self._version == 0

    @property
    def is_behind(self) -> bool:
        """What the log has is missing, or a part of it: nothing was recorded here, or by a version that took less."""
        return self._version < TOLD_AGAIN

    async def close(self) -> None:
        with _errors():
            await self._reader.close()
            await self._writer.close()

    async def migrate(self) -> None:
        """Makes the tables what this version needs, one transaction a step."""
        for step in migrations()[self._version :]:
            with _errors():
                try:
                    await self._writer.executescript(
                        f"BEGIN IMMEDIATE; {step.sql}; PRAGMA user_version = {step.number}; COMMIT;"
                    )
                finally:
                    await self._writer.rollback()
            self._version = step.number

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """What is done in the block is done whole or not at all; after it, it is on the disk, in the file of that name.

        One at a time: who writes on the connection of another's transaction is a part of it.
        """
        async with self._writing:
            with _errors():
                try:
                    await self._writer.execute("BEGIN IMMEDIATE")
                    yield self._writer
                    await self._writer.execute("COMMIT")
                finally:
                    # Nothing to roll back after a commit. Who was cancelled half-way must not leave one open.
                    await self._writer.rollback()
                if _place_of(self._path) != self._opened:
                    # SQLite goes on writing to a file that was deleted or replaced; what it writes is gone with it.
                    raise StoreCorrupt(f"the database {self._path} was deleted or replaced while it was open")

    async def read(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        try:
            with _errors():
                return [dict(row) for row in await self._reader.execute_fetchall(statement, parameters)]
        except StoreCorrupt as error:
            self._damage = error
            raise

    def require_whole(self) -> None:
        """Raises StoreCorrupt once any read has found a damaged page: who writes may never come by it."""
        if self._damage is not None:
            raise StoreCorrupt(str(self._damage)) from self._damage


def set_aside(path: Path) -> Path | None:
    """Renames a damaged database, with its journal, to the first free `.damaged-N`; None when only that is left of it.

    Nothing may have it open. A person can still read from it what a new one, made from the log, does not have.
    """
    aside = next(free for n in count(1) if not (free := Path(f"{path}.damaged-{n}")).exists())
    for suffix in ("-wal", "-shm", ""):
        if (part := Path(f"{path}{suffix}")).exists():
            part.rename(f"{aside}{suffix}")
    return aside if aside.exists() else None


def _check_version(path: Path, version: int) -> None:
    newest = migrations()[-1].number
    if version > newest:
        raise StoreTooNew(
            f"the database {path} is of version {version}, and this program knows {newest} at most: "
            "start the newer version again, or give this one another file"
        )


def _place(path: Path) -> Opened:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What people said is in it: its owner's only. SQLite gives the journal the same mode.
    path.touch(mode=0o600, exist_ok=True)
    found = _place_of(path)
    if found is None:
        raise StoreCorrupt(f"the database {path} is gone")
    return found


def _place_of(path: Path) -> Opened | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Opened(found.st_dev, found.st_ino)


@contextmanager
def _errors() -> Iterator[None]:
    """SQLite's errors become ours here, and nowhere else."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        kind = ERRORS.get("_".join(name.split("_")[:2]))
        if kind is None:
            raise
        raise kind(f"the database: {error} ({name})") from error
    except (OverflowError, UnicodeEncodeError) as error:
        # sqlite3's words for a value that it cannot hand over. They name no value: it may be what somebody said.
        raise StoreRefused(f"the database cannot hold a value ({type(error).__name__})") from error
    except ValueError as error:
        # aiosqlite's word for a connection that is closed: a question that came while the process stops.
        raise StoreBusy(f"the database: {error}") from error
    except OSError as error:
        raise StoreUnwritable(f"the database: {os.strerror(error.errno or 0)}") from error
