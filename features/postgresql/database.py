"""The database on a PostgreSQL server: a pool of connections, and the mapping of PostgreSQL's errors.

Several processes may use one database. Each transaction that writes first takes an advisory lock, which the end of the
transaction releases. So there is one writer at a time, as in SQLite.

PostgreSQL's texts cannot contain the character NUL. It is stored as the two characters "\\x01" and "0", and "\\x01" is
stored as "\\x01" and "1". This keeps the order of texts.
"""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Any, Self
from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from tailrace.features.postgresql.url import display
from tailrace.persistence import metrics
from tailrace.persistence.migrations import NEWEST, migrations, require_known_version
from tailrace.persistence.rpc import RowBudget
from tailrace.persistence.sql import read_queries
from tailrace.proto.errors import SettingsInvalid, StoreBusy, StoreError, StoreRefused, StoreUnwritable
from tailrace.proto.runtime.tcp_options import keep_alive

# The oldest version that the tests run with.
SERVER_VERSION_MIN = 15
CONNECTIONS_MAX = 8
# The rows of turns that the server sends at once.
ROWS_AT_ONCE = 8
CONNECT_TIMEOUT_S = 10.0  # in all, over the hosts of a URL
# No statement of ours takes this long. Without a limit, a query would wait forever for a server that is gone.
STATEMENT_TIMEOUT_S = 60.0
# The server ends a transaction whose process is frozen or unreachable, so that other processes can write.
FROZEN_S_MAX = 15
# Settings of each connection besides `lock_timeout`. With tcp_keepalives_…, the server closes the connection of an
# unreachable machine, and so releases its locks, after about 15 seconds. A holder of a lock that still runs notices
# this earlier: every LOCK_CHECK_S it sends a query, and waits LOCK_CHECK_S for the answer.
SESSION_SETTINGS = {
    "idle_in_transaction_session_timeout": f"{FROZEN_S_MAX}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
}
# The same on our side, for a server whose machine has lost its power or its address. Some systems lack some options.
KEEPALIVE_HERE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 15_000}
LOCK_CHECK_S = 4.0
LOCK_TRY_S = 0.5
GET_SESSION = "SELECT pg_backend_pid()"
TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended($1::text, 0))"
MIGRATIONS = f"{__package__}.migrations"
MIGRATION_TIMEOUT_S = 24 * 3600.0
# Any number that other programs in the same database do not use.
WRITER_LOCK = 0x7461696C72616365
VERSION_TABLE = "tailrace_version"
GET_VERSION = f"SELECT max(version) FROM {VERSION_TABLE}"  # noqa: S608  # a table of ours
SET_VERSION = f"""
CREATE TABLE IF NOT EXISTS {VERSION_TABLE} (version BIGINT NOT NULL);
DELETE FROM {VERSION_TABLE};
INSERT INTO {VERSION_TABLE} VALUES ({{}});
"""  # noqa: S608  # a table of ours

PARAMETER = re.compile(r"(?<!:):([a-z]\w*)(::json)?")
CREATED_TABLE = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)
UNKNOWN_SETTING = re.compile(r'parameter "(\w+)"')
UNSUPPORTED_BY_POOLER = re.compile(r"unsupported startup parameter: (\w+)")
ESCAPE = re.compile(r"\\(?:u000([01])|.)")
# The names of integer values and columns; `to_positional` adds those with some endings. All others are texts.
INTEGERS = {
    "amount", "attempts", "bytes", "cost_is_unknown", "cost_nusd", "cursor", "day", "depth_max", "first", "fits",
    "is_estimated", "kept_until", "known", "last", "limit", "messages", "now", "number", "offset", "seq", "sign",
    "since", "text_chars", "turns", "unused_since",
}  # fmt: skip

# Prefixes of SQLSTATE codes, and our classes. The first prefix that matches counts. An error that is not listed (for
# example of a wrong statement or table) is a bug and ends the process.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
ERRORS: dict[str, type[StoreError]] = {
    "08": StoreBusy,  # connection lost
    "25006": StoreBusy,  # read-only: a standby, during a failover
    "25P03": StoreBusy,  # idle in a transaction for too long
    "40": StoreBusy,  # deadlock, rollback
    "53300": StoreBusy,  # too many connections
    "55": StoreBusy,  # lock timeout, or the database accepts no connections
    "57": StoreBusy,  # shutdown, restart, cancelled
    "22": StoreRefused,  # value out of range
    "23": StoreRefused,  # constraint
    "54": StoreRefused,  # too large for an index
    "28": StoreUnwritable,  # password
    "3D": StoreUnwritable,  # no such database
    "42501": StoreUnwritable,  # rights
    "53": StoreUnwritable,  # disk full, out of memory
    "58": StoreUnwritable,  # I/O error
    "XX": StoreUnwritable,  # damaged
}

# In transaction pooling, prepared statements are lost, or those of other clients are found.
POOLER_ERRORS = (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError)

# Errors after which a transaction is rolled back; its connection may be lost.
ROLLED_BACK_FOR = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class PostgreSQLTransaction:
    """A transaction of one connection."""

    def __init__(self, connection: PoolConnectionProxy) -> None:
        self._connection = connection

    async def execute(self, statement: str, values: Mapping[str, Any]) -> int:
        """Runs a statement with named parameters; returns the number of rows that it changed."""
        text, names = to_positional(statement)
        status = await self._connection.execute(text, *(values[name] for name in names))
        return int(status.rpartition(" ")[2])

    async def executemany(self, statement: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """See Transaction.executemany."""
        text, names = to_positional(statement)
        # asyncpg would send a request also without rows.
        if values := [[row[name] for name in names] for row in rows]:
            await self._connection.executemany(text, values)

    async def execute_all(self, steps: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        """See Transaction.execute_all."""
        for statement, rows in steps:
            await self.executemany(statement, rows)

    async def read(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See Transaction.read."""
        return await _read(self._connection, statement, values)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that ends when the server's machine cannot be reached any more."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        sock = transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            keep_alive(sock, KEEPALIVE_HERE)


async def _connect(url: str, *, lock_timeout_ms: int, **options: Any) -> asyncpg.Connection:
    """Connects to the first host of `url` that can be used, and sets SESSION_SETTINGS.

    Raises what asyncpg raises.
    """
    connection = await _connect_first(url, **options)
    settings = {"lock_timeout": f"{lock_timeout_ms}ms", **SESSION_SETTINGS}
    each = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    try:
        # Not as parameters of the connection's start: PgBouncer would refuse or drop them. An acknowledged entry is
        # never delivered again: its commit must be on the disk. A stricter synchronous_commit stays.
        await connection.execute(
            f"SELECT {each};"  # settings of ours
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _connect_first(url: str, **options: Any) -> asyncpg.Connection:
    """Connects to the first host of `url` that can be used. Raises what asyncpg.connect raises.

    asyncpg has one time limit for all hosts. A host that does not answer would use all of it.
    """
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    each = [parts._replace(netloc=f"{credentials}{at}{host}").geturl() for host in hosts.split(",")]
    options |= {"connection_class": _Connection, "timeout": CONNECT_TIMEOUT_S / len(each)}
    if len(each) > 1 and "target_session_attrs" not in parts.query:
        # A standby would answer queries without the newest turns.
        options["target_session_attrs"] = "read-write"
    errors: list[Exception] = []
    for one in each:
        try:
            return await asyncpg.connect(one, **options)
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
            errors.append(error)
    # The error of a host that does not answer says more than that of a standby.
    raise next((error for error in errors if isinstance(error, OSError)), errors[-1])


class PostgreSQL:
    """A pool of connections to a database."""

    system = "postgresql"
    own_queries = read_queries(__package__)
    reads_max = CONNECTIONS_MAX - 2  # a transaction and a search use the other two

    def __init__(self, pool: asyncpg.Pool, url: str, options: Mapping[str, Any], version: int) -> None:
        self._pool = pool
        self._url = url
        self._options = options
        self.version = version
        self._writing = asyncio.Lock()

    @classmethod
    async def open(cls, url: str, *, busy_timeout_s: float) -> Self:
        """Connects, and checks the server and the tables. Changes nothing.

        Raises SettingsInvalid for a server that can never be used, StoreTooNew, and StoreUnwritable or StoreBusy if the
        server cannot be reached or its tables are not complete.
        """
        options: dict[str, Any] = {
            "command_timeout": STATEMENT_TIMEOUT_S,
            "server_settings": {"application_name": "tailrace"},
            "lock_timeout_ms": max(1, round(busy_timeout_s * 1000)),
        }
        try:
            pool = asyncpg.create_pool(
                url,
                min_size=0,
                max_size=CONNECTIONS_MAX,
                connect=_connect,
                init=_prepare,
                reset=_skip_reset,
                **options,
            )
            with _map_errors(url):
                await pool
                try:
                    async with pool.acquire() as connection:
                        version = await _check(connection, pool, display(url))
                except BaseException:
                    await pool.close()
                    raise
        except asyncpg.UndefinedObjectError as error:
            # asyncpg sends an option that it does not know to the server, as one of its settings.
            option = UNKNOWN_SETTING.search(str(error))
            if option is None:
                raise
            raise SettingsInvalid(
                f"TAILRACE_DATABASE: the option {option[1]} of the URL is unknown: docs/POSTGRESQL.md lists the options"
            ) from None
        except POOLER_ERRORS:
            raise _not_a_session(display(url)) from None
        except StoreBusy as error:
            if option := UNSUPPORTED_BY_POOLER.search(str(error)):
                raise SettingsInvalid(
                    f"TAILRACE_DATABASE: the connection pooler at {display(url)} refuses the option {option[1]} of the "
                    f"URL: remove it, and set it by ALTER ROLE … SET {option[1]} = …"
                ) from None
            if not isinstance(error.__cause__, asyncpg.ClientConfigurationError):
                raise
            raise _url_invalid(url, error.__cause__) from None
        except ValueError as error:
            raise _url_invalid(url, error) from None
        return cls(pool, url, options, version)

    async def close(self) -> None:
        """Closes the connections; after CONNECT_TIMEOUT_S, without waiting for the server. Raises nothing."""
        try:
            await asyncio.wait_for(self._pool.close(), CONNECT_TIMEOUT_S)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    async def migrate(self) -> None:
        """See Database.migrate. Raises StoreError."""
        for step in migrations(self.version, MIGRATIONS):
            async with self._transaction() as connection:
                # Another process may have run this migration while this process waited for the lock.
                self.version = await _version(connection)
                if self.version < step.number:
                    await connection.execute(step.sql, timeout=MIGRATION_TIMEOUT_S)
                    await connection.execute(SET_VERSION.format(step.number))
            self.version = max(self.version, step.number)

    @asynccontextmanager
    async def transaction(self, *, is_slow: bool = False) -> AsyncIterator[PostgreSQLTransaction]:
        """See Database.transaction. Raises StoreError."""
        async with self._transaction() as connection:
            if is_slow:
                await connection.execute("SELECT set_config('idle_in_transaction_session_timeout', '0', true)")
            yield PostgreSQLTransaction(connection)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[PoolConnectionProxy]:
        # A task that waits here holds no connection.
        async with self._writing:
            with _map_errors(self._url):
                async with self._pool.acquire() as connection:
                    # The default isolation of a role may take its snapshot before the lock.
                    async with connection.transaction(isolation="read_committed"):
                        await connection.execute(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
                        begun_at = time.monotonic()
                        yield connection
                    metrics.TRANSACTION_S.observe(time.monotonic() - begun_at)

    async def read(self, statement: str, values: Mapping[str, Any], *, is_page: bool = False) -> list[dict[str, Any]]:
        """See Database.read. Raises StoreError."""
        with _map_errors(self._url):
            if not is_page:
                return await _read(self._pool, statement, values)
            text, names = to_positional(statement)
            rows, budget = list[dict[str, Any]](), RowBudget()
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                async for row in connection.cursor(text, *(values[name] for name in names), prefetch=ROWS_AT_ONCE):
                    rows.append(dict(row))
                    if budget.ends_with(row):
                        break
            return rows

    async def search(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See Database.search. Raises StoreError."""
        # Queries run in parallel, and asyncpg ends a cancelled query.
        return await self.read(statement, values, is_page=True)

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """Holds the named lock of the database during the block, over all processes. Waits without a limit.

        Raises StoreBusy when the server does not answer any more.
        """
        with _map_errors(self._url):
            # The end of this connection releases the lock, also when the process is killed. It is not of the pool,
            # because other tasks may hold all connections of the pool.
            connection = await _connect(self._url, **self._options)
        try:
            with _map_errors(self._url):
                # Waits without a limit, as with SQLite: `lock_timeout` would end a statement that waits.
                while not await connection.fetchval(TRY_LOCK, name):  # noqa: ASYNC110  # of the server
                    await asyncio.sleep(LOCK_TRY_S)
            async with self._watch_connection(connection):
                yield
        finally:
            connection.terminate()

    @asynccontextmanager
    async def _watch_connection(self, connection: asyncpg.Connection) -> AsyncIterator[None]:
        """Ends the block with StoreBusy when the server does not answer on `connection`."""
        limit = asyncio.timeout(None)

        def end_block(*_: object) -> None:
            if not limit.expired():
                limit.reschedule(0)

        async def watch() -> None:
            try:
                while True:
                    await asyncio.sleep(LOCK_CHECK_S)
                    await connection.execute("SELECT 1", timeout=LOCK_CHECK_S)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                end_block()

        try:
            async with limit:
                connection.add_termination_listener(end_block)
                watching = asyncio.create_task(watch())
                try:
                    yield
                finally:
                    watching.cancel()
                    connection.remove_termination_listener(end_block)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StoreBusy(f"the database {display(self._url)}: the connection of a lock was lost") from error

    async def erase_journal(self) -> None:
        """Does nothing: the server removes deleted rows by itself (autovacuum), and recycles its journal."""

    def note_deletion(self) -> None:
        """Does nothing, see `erase_journal`."""

    async def raise_if_too_new(self) -> None:
        """See Database.raise_if_too_new."""
        with _map_errors(self._url):
            async with self._pool.acquire() as connection:
                require_known_version(display(self._url), await _version(connection))

    def raise_if_damaged(self) -> None:
        """Does nothing: a damaged database is repaired on the server."""


@lru_cache(maxsize=1000)
def to_positional(statement: str) -> tuple[str, tuple[str, ...]]:
    """Returns the statement with `$1::TYPE`, `$2::TYPE` … in place of named values, and their names in this order."""
    names = tuple(dict.fromkeys(found[1] for found in PARAMETER.finditer(statement)))

    def number_parameter(found: re.Match[str]) -> str:
        name = found[1]
        is_integer = name in INTEGERS or name.endswith(("_at", "_number", "_tokens"))
        return f"${names.index(name) + 1}{found[2] or ('::bigint' if is_integer else '::text')}"

    return PARAMETER.sub(number_parameter, statement), names


async def _read(
    source: PoolConnectionProxy | asyncpg.Pool, statement: str, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    text, names = to_positional(statement)
    return [dict(row) for row in await source.fetch(text, *(values[name] for name in names))]


def to_stored(text: str) -> str:
    """Returns `text` with NUL escaped, which PostgreSQL does not store. `from_stored` reverts it."""
    if "\0" in text or "\1" in text:
        return text.replace("\1", "\1" + "1").replace("\0", "\1" + "0")
    return text


def json_to_stored(json: str) -> str:
    """Like `to_stored`, for JSON: the server decodes its escapes of NUL and U+0001."""
    return ESCAPE.sub(lambda found: f"\\u0001{found[1]}" if found[1] else found[0], json) if "\\u000" in json else json


def from_stored(text: str) -> str:
    """Returns the text that `to_stored` has escaped."""
    if "\1" in text:
        return text.replace("\1" + "0", "\0").replace("\1" + "1", "\1")
    return text


async def _prepare(connection: asyncpg.Connection) -> None:
    """Prepares a new connection of the pool."""
    await connection.set_type_codec("text", schema="pg_catalog", encoder=to_stored, decoder=from_stored)
    await connection.set_type_codec("json", schema="pg_catalog", encoder=json_to_stored, decoder=from_stored)
    # The type of a sum of integers.
    await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=int)


async def _skip_reset(_: object) -> None:
    """Leaves a connection as `_prepare` has set it: a reset after each use would take a request of its own."""


async def _require_session(connection: PoolConnectionProxy, pool: asyncpg.Pool, own: int, name: str) -> None:
    """Raises SettingsInvalid if a pooler gives the server's session `own` of a connection to other connections."""
    async with pool.acquire() as other:
        if await other.fetchval(GET_SESSION) == own or await connection.fetchval(GET_SESSION) != own:
            raise _not_a_session(name)


def _not_a_session(name: str) -> SettingsInvalid:
    return SettingsInvalid(
        f"TAILRACE_DATABASE: {name} is a connection pooler that shares sessions, as in transaction pooling: choose "
        "session pooling (PgBouncer: pool_mode=session), or name the server itself"
    )


async def _check(connection: PoolConnectionProxy, pool: asyncpg.Pool, name: str) -> int:
    """Returns the version of the schema. Raises SettingsInvalid and StoreTooNew.

    Raises StoreUnwritable for a state that changes without new settings: a supervisor starts the process again until
    the standby is promoted, or the backup is restored.
    """
    server = connection.get_server_version()
    if server.major < SERVER_VERSION_MIN:
        raise SettingsInvalid(
            f"TAILRACE_DATABASE: the server of {name} is PostgreSQL {server.major}.{server.minor}; Tailrace needs "
            f"{SERVER_VERSION_MIN} or newer: upgrade the server"
        )
    facts = await connection.fetchrow(
        "SELECT current_setting('server_encoding') AS encoding, current_schema() AS schema, "
        "pg_is_in_recovery() AS is_standby, pg_backend_pid() AS session"
    )
    assert facts is not None  # noqa: S101  # a SELECT without FROM
    # A pooler has sent a number of its own when the connection started.
    if facts["session"] != connection.get_server_pid():
        await _require_session(connection, pool, facts["session"], name)
    if facts["encoding"] != "UTF8":
        raise SettingsInvalid(
            f"TAILRACE_DATABASE: {name} has the encoding {facts['encoding']}; create it with ENCODING 'UTF8'"
        )
    if facts["schema"] is None:
        raise StoreUnwritable(f"TAILRACE_DATABASE: no schema of the search_path of {name} exists: create one")
    if facts["is_standby"]:
        raise StoreUnwritable(f"TAILRACE_DATABASE: {name} is a standby, which cannot be written: name its primary")
    found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    ours = {row["tablename"] for row in found} & _tables(NEWEST)
    version = await _version(connection)
    require_known_version(name, version)
    missing = _tables(version or NEWEST) - ours
    if (ours and missing) or (ours and not version):
        what = f"has no table {min(missing)}" if missing else f"has no row in {VERSION_TABLE}"
        raise StoreUnwritable(
            f"TAILRACE_DATABASE: {name} has the table {min(ours)} and {what}: restore a whole backup, or name an empty "
            "database or schema"
        )
    return version


def _tables(version: int) -> set[str]:
    """Returns the tables of a schema version."""
    steps = (step for step in migrations(own=MIGRATIONS) if step.number <= version)
    return {VERSION_TABLE, *(table for step in steps for table in CREATED_TABLE.findall(step.sql))}


async def _version(connection: PoolConnectionProxy) -> int:
    """Returns the version of the schema; 0 without tables. Ignores tables in other schemas of the search_path."""
    found = await connection.fetchval(
        "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = $1", VERSION_TABLE
    )
    return int((found and await connection.fetchval(GET_VERSION)) or 0)


def _url_invalid(url: str, error: Exception) -> SettingsInvalid:
    why = str(error).partition("\n")[0]
    if why.startswith(("`ssl", "root certificate", "direct TLS")):
        return SettingsInvalid(f"TAILRACE_DATABASE: an option of {display(url)} is not valid: {why}")
    # Other messages may contain parts of the URL, such as the password.
    return SettingsInvalid(
        f"TAILRACE_DATABASE: {display(url)} is not a valid URL ({type(error).__name__}); expected "
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters percent-encoded"
    )


@contextmanager
def _map_errors(url: str) -> Iterator[None]:
    """Maps errors of asyncpg and the network to StoreError. Their messages contain no stored values."""
    try:
        yield
    except asyncpg.PostgresError as error:
        state = str(getattr(error, "sqlstate", ""))
        kind = next((kind for begin, kind in ERRORS.items() if state.startswith(begin)), None)
        if kind is None:
            raise
        if state == "54000" and not getattr(error, "table_name", None):
            # Not a row that is too large for an index, but for example a server without free transaction numbers.
            kind = StoreUnwritable
        # No stored values: the first line may have the refused value, and the other lines the whole row.
        why = type(error).__name__ if kind is StoreRefused else str(error).partition("\n")[0]
        raise kind(f"the database {display(url)}: {why} ({state})") from (None if kind is StoreRefused else error)
    except (asyncpg.DataError, UnicodeEncodeError) as error:
        raise StoreRefused(f"the database cannot hold a value ({type(error).__name__})") from None
    except asyncpg.TargetServerAttributeNotMatched as error:
        raise StoreBusy(f"the database {display(url)}: {error}") from error
    except asyncpg.InternalClientError as error:
        # asyncpg's error for a connection that has received the server's last message, but not yet the end.
        raise StoreBusy(f"the database {display(url)}: the server has ended the connection") from error
    except asyncpg.InterfaceError as error:
        # The connection or the pool was closed.
        is_setting = isinstance(error, asyncpg.ClientConfigurationError)
        if not is_setting and isinstance(first := error.__context__, ROLLED_BACK_FOR):
            # The rollback of a transaction has failed, too: the transaction's first error says why.
            with _map_errors(url):
                raise first from None
        raise StoreBusy(f"the database {display(url)}: {error}") from error
    except (OSError, TimeoutError) as error:
        why = str(error) or "no answer in time"
        if isinstance(error, socket.gaierror):
            why += "; correct the host name, and percent-encode special characters of the password"
        raise StoreBusy(f"the database {display(url)} cannot be reached: {why}") from error
