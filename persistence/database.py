"""The interface of the database, and the choice between a SQLite file and the databases of drivers.

A value of a statement is an integer, a text or None. A statement names its values as `:name`, for all databases.
"""

import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tailrace.persistence import sqlite
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.feature_parts import join_distinct

# The tables and their primary keys, in an order in which rows can be inserted. Triggers fill the tables of `DERIVED`.
TABLES: Mapping[str, tuple[str, ...]] = {
    "sessions": ("tenant", "session"),
    "projects": ("tenant", "project"),
    "turns": ("tenant", "turn"),
    "usage": ("tenant", "session", "turn"),
    "labels": ("tenant", "turn", "name"),
    "totals": ("tenant", "dimension", "key", "day"),
    "older_costs": ("tenant",),
    "blob_uses": ("tenant", "sha256", "turn"),
    "blob_releases": ("tenant", "sha256"),
    "searched": ("number",),
    "unsearched": ("tenant", "turn"),
    "unstored": ("tenant", "turn"),
    "files": ("tenant", "file"),
    "parked_turns": ("tenant", "session"),
    "call_decisions": ("tenant", "session", "turn", "call"),
    "notices": ("tenant", "notice"),
    "reservations": ("tenant", "subject", "turn"),
    "budget_keys": ("tenant", "owner", "key"),
    "reached": ("seq",),
    "session_counts": ("tenant", "project"),
    "named_totals": ("tenant", "dimension", "day"),
}
DERIVED = ("session_counts", "named_totals")

# A URL whose scheme has these first letters of a driver's scheme is a mistyped one.
SCHEME_BEGIN = 5


class Transaction(Protocol):
    """A transaction that writes. All methods raise StoreError."""

    async def execute(self, statement: str, values: Mapping[str, Any]) -> int:
        """Runs a statement, and returns the number of rows that it wrote. Raises StoreError."""

    async def executemany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Runs a statement with the values of each row. Raises StoreError."""

    async def execute_all(self, steps: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        """Runs several statements in order, each with the values of each of its rows. Raises StoreError."""

    async def read(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the rows of a query, which sees what the transaction has written. Raises StoreError."""


class Database(Protocol):
    """An open database. All methods raise StoreError. An error of the driver is a bug, such as a wrong statement."""

    system: str
    """Its kind, as traces name it."""
    own_queries: str
    """The text of the parts that replace SQLite's in queries.sql, see `sql.py`."""
    version: int
    """The version of its schema, which is the number of its last migration; 0 for an empty database."""
    reads_max: int
    """How many calls of `read` it runs at once. Further calls wait in the order of their arrival."""

    async def close(self) -> None:
        """Closes the database. Raises StoreError."""

    async def migrate(self) -> None:
        """Runs the missing migrations, each in a transaction of its own. Raises StoreError."""

    def transaction(self, *, is_slow: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """Runs the block in a transaction, committed to the disk at its end or rolled back on an error.

        Only one runs at a time, over all processes: what it has read does not change until its end. Without `is_slow`,
        a server may end it after some time without a statement. Raises StoreError.
        """

    async def read(self, statement: str, values: Mapping[str, Any], *, is_page: bool = False) -> list[dict[str, Any]]:
        """Returns the rows of a query. Raises StoreError.

        `is_page`: of a query that returns turns, only the first rows, as many as RowBudget allows.
        """

    async def search(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Like `read` with `is_page`, for a query that may take long: no other read waits for it, and a cancellation
        ends it.

        Callers run one at a time. Raises StoreError.
        """

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """Holds the lock `name` while the block runs: no other process that uses the database holds the same lock.

        Waits without a limit. If the lock is lost, cancels the block and raises StoreBusy. In one process, callers with
        the same name run one at a time.
        """

    async def erase_journal(self) -> None:
        """Removes deleted values from the database's journal, as far as that is possible now. Raises StoreError."""

    def note_deletion(self) -> None:
        """Notes that the transaction deletes texts of users: `erase_journal` then has work."""

    async def raise_if_too_new(self) -> None:
        """Raises StoreTooNew if a newer version has migrated the database since it was opened."""

    def raise_if_damaged(self) -> None:
        """Raises StoreCorrupt if the database is damaged and must be rebuilt."""


class Driver(NamedTuple):
    """A kind of database that a URL names."""

    schemes: Sequence[str]
    form: str
    """A URL with the names of its parts, for messages."""
    open: Callable[[str, float], Awaitable[Database]]
    """Opens the database of a URL, with `busy_timeout_s`. Raises as `Databases.open` does."""
    display: Callable[[str], str]
    """Returns a URL without its password and its options."""


class Databases:
    """The databases that can be opened: SQLite files, and those of drivers."""

    def __init__(self, drivers: Sequence[Driver] = ()) -> None:
        self._forms = [driver.form for driver in drivers]
        each = ((scheme, driver) for driver in drivers for scheme in driver.schemes)
        self._drivers = join_distinct(each, "URL scheme")
        begins = "|".join(re.escape(scheme[:SCHEME_BEGIN]) for scheme in self._drivers) or "(?!)"
        # URLs, also mistyped ones: `other://host`, and with a driver's scheme `known:/host`, `"known:host`,
        # `known//host`. `a:b.db` and `known/a.db` are files.
        self._url = re.compile(rf"""([a-z][a-z0-9+.-]+):(/+)|[\s"']*(?:{begins})[a-z]*(?:\s*[:;]|//)""", re.IGNORECASE)

    async def open(self, where: Path | str, *, busy_timeout_s: float) -> Database:
        """Opens a SQLite file, or the database of a URL. Call `migrate` before any other method.

        Raises StoreTooNew if a newer version of Tailrace has migrated it, and SettingsInvalid if it can never be
        opened.
        """
        driver = self._driver(where)
        if driver is not None:
            return await driver.open(str(where), busy_timeout_s)
        return await sqlite.SQLite.open(Path(where), busy_timeout_s=busy_timeout_s)

    def is_url(self, where: Path | str) -> bool:
        """Returns whether `where` is a URL of a driver. Raises SettingsInvalid for another or a mistyped URL."""
        return self._driver(where) is not None

    def display(self, where: Path | str) -> str:
        """Returns the name of a database for messages: without the password and the options of a URL."""
        driver = self._driver(where)
        return str(where) if driver is None else driver.display(str(where))

    def global_name(self, where: Path | str) -> str:
        """Returns a name by which processes on several hosts compare their databases.

        For a URL, the name is its `display`; for a file, the host and the full path.
        """
        return self.display(where) if self.is_url(where) else f"{socket.gethostname()}:{Path(where).resolve()}"

    def _driver(self, where: Path | str) -> Driver | None:
        """Returns the driver of a URL, or None for a file. Raises SettingsInvalid for another or a mistyped URL, which
        would be taken for the name of a new SQLite file.
        """
        found = None if isinstance(where, Path) else self._url.match(where)
        if found is None:
            return None
        driver = self._drivers.get(found[1] or "")
        if driver is None or not found[2].startswith("//"):
            expected = " or ".join([*self._forms, "the path of a file, with ./ before a name that contains a colon"])
            raise SettingsInvalid(f"TAILRACE_DATABASE: {found[0]} is not supported; expected {expected}")
        return driver


def move_aside(where: Path | str) -> str:
    """Renames a closed file that is damaged; returns a clause that names its new path."""
    aside = sqlite.move_aside(Path(where))
    return "the file does not exist any more" if aside is None else f"it was renamed to {aside}"
