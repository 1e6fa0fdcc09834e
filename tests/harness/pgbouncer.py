"""PgBouncer, Debian's connection pooler, on a free port in front of a PostgreSQL server."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import asyncpg

from tailrace.deploy.local import ports
from tailrace.deploy.local.spawn import die_with
from tests.harness.postgresql import PASSWORD, USER, PostgreSQLServer, allow_other_users
from tests.harness.until import until

PROGRAM = "pgbouncer"
START_S_MAX = 20.0


Mode = Literal["session", "transaction", "statement"]


@asynccontextmanager
async def running_pgbouncer(server: PostgreSQLServer, mode: Mode) -> AsyncIterator[str]:
    """Runs PgBouncer with its defaults besides `mode` and the password. Yields the URL of a new database behind it."""
    (port,) = ports.find_free(1)
    url = (await server.new_database()).replace(f":{server.port}/", f":{port}/")
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    process = _start(folder, port, server.port, mode)

    async def answers() -> bool:
        try:
            await (await asyncpg.connect(url)).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    try:
        await until(answers, START_S_MAX)
        yield url
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, port: int, server_port: int, mode: Mode) -> subprocess.Popen[bytes]:
    (folder / "users").write_text(f'"{USER}" "{PASSWORD}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={server_port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
        f"auth_file = {folder}/users\npool_mode = {mode}\n"
    )
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        # Like PostgreSQL, it refuses to run as root.
        user = {"user": "postgres", "group": "postgres"}
        allow_other_users(Path(tempfile.gettempdir()))
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, **user)
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            [PROGRAM, folder / "pgbouncer.ini"], stdout=output, stderr=output, cwd="/", start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()), **user,  # noqa: PLW1509
        )  # fmt: skip
