"""A PostgreSQL server on a free port, from Debian's package `postgresql`, in a temporary folder.

PostgreSQL refuses to run as root: then the server runs as the user that the package made.
"""

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import asyncpg

from tailrace.deploy.local import ports
from tailrace.deploy.local.spawn import die_with
from tests.harness.until import until

USER = "tailrace"
# Its characters have to be percent-encoded in a URL: no message may contain it.
PASSWORD, IN_URL = "s3cret/pass@word", "s3cret%2Fpass%40word"
# Faster than the defaults. A server that is killed loses nothing: the system goes on.
OPTIONS = (
    "fsync=off",
    "wal_retrieve_retry_interval=100ms",
    "listen_addresses=127.0.0.1",
    "max_connections=200",
    "shared_buffers=64MB",
    "timezone=Pacific/Auckland",
)
START_S_MAX = 60.0


class PostgreSQLMissing(Exception):
    """There is no PostgreSQL server, or no user that it can run as."""


def programs() -> Path:
    """Returns the folder of the server's programs. Raises PostgreSQLMissing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    here = shutil.which("initdb")
    if not found and here is None:
        raise PostgreSQLMissing("PostgreSQL is not installed (Debian: apt install postgresql)")
    if os.geteuid() == 0 and not any(one.pw_name == "postgres" for one in pwd.getpwall()):
        raise PostgreSQLMissing("PostgreSQL does not run as root, and there is no user `postgres`")
    return (found[-1] if found else Path(str(here))).parent


def allow_other_users(folder: Path) -> None:
    """Lets other users reach files in `folder`, as the server's user has to."""
    folder.chmod(folder.stat().st_mode | 0o011)


class PostgreSQLServer:
    """`async with PostgreSQLServer() as server:` starts an empty server; leaving the context kills it.

    Its locale sorts texts in another way than SQLite, and its time zone is not UTC. With `primary`, it is a standby of
    another server, whose commits from then on wait until both have them.
    """

    def __init__(self, *options: str, primary: Self | None = None) -> None:
        self._options = (*OPTIONS, *options)
        self._primary = primary
        self._programs = programs()
        self._as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self._numbers = count(1)
        (self.port,) = ports.find_free(1)
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(self)
            if self._primary is None:
                self._initialise()
                await self.start()
            else:
                self._copy(self._primary)
                await self.start()
                async with self._primary.connect("postgres") as connection:
                    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                    await connection.execute("SELECT pg_reload_conf()")
            stack.pop_all()
        return self

    def _copy(self, primary: Self) -> None:
        if self._as:
            shutil.chown(self._folder, **self._as)
        command = ["pg_basebackup", f"--pgdata={self._folder / 'data'}", f"--dbname={primary.url('postgres')}"]
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        subprocess.run(
            [self._programs / command[0], *command[1:], *options], check=True, capture_output=True, cwd="/", **self._as
        )

    async def promote(self) -> None:
        """Makes a standby the primary. The other server must not run any more."""
        async with self.connect("postgres") as connection:
            assert await connection.fetchval("SELECT pg_promote()")

    def _initialise(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if self._as:
            allow_other_users(Path(tempfile.gettempdir()))
            for path in (self._folder, password):
                shutil.chown(path, **self._as)
        options = ["--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US", "--no-sync"]
        access = [f"--username={USER}", "--auth=scram-sha-256", f"--pwfile={password}"]
        command = [str(self._programs / "initdb"), f"--pgdata={self._folder / 'data'}", *options, *access]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as)

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        # Not here: on a busy machine, removing the databases of a whole run takes as long as a test may take.
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)

    async def start(self) -> None:
        """Starts it on its port; returns when it answers."""
        self._spawn()

        async def answers() -> bool:
            try:
                await (await asyncpg.connect(self.url("postgres"))).close()
            except (OSError, asyncpg.PostgresError):
                return False
            return True

        await until(answers, START_S_MAX)

    def _spawn(self) -> None:
        given = [
            f"-c{option}" for option in (*self._options, f"port={self.port}", f"unix_socket_directories={self._folder}")
        ]
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [self._programs / "postgres", f"-D{self._folder / 'data'}", *given], stdout=output, stderr=output,
                cwd="/", start_new_session=True, preexec_fn=partial(die_with, os.getpid()), **self._as,  # noqa: PLW1509
            )  # fmt: skip

    def kill(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """Stops it at once (`pg_ctl stop -m immediate`), and waits until it has stopped."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{IN_URL}@127.0.0.1:{self.port}/{database}"

    async def new_database(self, options: str = "") -> str:
        """Creates an empty database; returns its URL."""
        name = f"test_{next(self._numbers)}"
        async with self.connect("postgres") as connection:
            await connection.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    @asynccontextmanager
    async def connect(self, database: str) -> AsyncIterator[Any]:
        """Opens a connection to a database: its name or its URL."""
        connection = await asyncpg.connect(database if "://" in database else self.url(database))
        try:
            yield connection
        finally:
            await connection.close()
