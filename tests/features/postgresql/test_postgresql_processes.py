"""Persistence with PostgreSQL, as processes: faults of the server and of a recorder, and what is refused."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest
import pytest_asyncio

from tailrace.deploy.cli.main import main
from tailrace.features.persistence import DATABASES
from tailrace.features.postgresql.database import PostgreSQL
from tailrace.persistence.__main__ import preflight
from tailrace.persistence.settings import Settings
from tailrace.proto.errors import SettingsInvalid, StoreBusy, StoreUnwritable, TailraceError
from tailrace.proto.runtime.exit_status import EXIT_USAGE
from tests.checker.invariants import OF_BATCHES, find_failed, judge
from tests.checker.recorded_system import RecordedSystem
from tests.checker.run import load
from tests.checker.verdicts import Bounds
from tests.harness.forks import run_module
from tests.harness.open_store import open_store
from tests.harness.pgbouncer import PROGRAM, Mode, running_pgbouncer
from tests.harness.postgresql import IN_URL, PASSWORD, PostgreSQLServer

# What this run does not do.
UNUSED = (
    "I6 readers",
    "I7 idempotency",
    "I8 cancellation",
    "I12 resources",
    "I13 isolation",
    "I20 steers",
    # The audit of budgets reads SQLite's file.
    "I21 budgets",
    *OF_BATCHES,
)


@pytest_asyncio.fixture
async def own_postgresql(postgresql: PostgreSQLServer) -> AsyncIterator[PostgreSQLServer]:
    """A server that the test may kill."""
    async with PostgreSQLServer() as server:
        yield server


def url_of_both(url: str, primary: PostgreSQLServer, standby: PostgreSQLServer) -> str:
    """Returns the URL as docs/POSTGRESQL.md writes it for several servers, of which one is the primary."""
    host = f"127.0.0.1:{primary.port}"
    return url.replace(host, f"127.0.0.1:{standby.port},{host}")


@pytest.mark.rule("R93")
@pytest.mark.timeout(180)
async def test_no_turn_is_lost_or_recorded_twice_when_the_server_and_a_recorder_are_killed(
    own_postgresql: PostgreSQLServer, tmp_path: Path
) -> None:
    """Two recorders write while the server is restarted, one of them is killed, and a standby takes the server over."""
    url = await own_postgresql.new_database()
    async with (
        PostgreSQLServer(primary=own_postgresql) as standby,
        RecordedSystem(tmp_path, database_url=url_of_both(url, own_postgresql, standby)) as system,
    ):
        await system.start()
        second = await system.new_persistence("persistence-2")
        await second.start()
        client = system.client("client")
        posted = 0

        async def post(count: int) -> None:
            nonlocal posted
            for _ in range(count):
                posted += 1
                key = await client.post(f"#sim words=3 rate=0 tag=p{posted}x")
                assert key is not None
                await client.get(key)

        for fault in ("nothing", "restart", "kill", "failover"):
            posting = asyncio.create_task(post(20))
            await asyncio.sleep(0)
            if fault == "restart":
                own_postgresql.kill()
                await own_postgresql.start()
            if fault == "kill":
                await second.stop(SIGKILL)
            if fault == "failover":
                own_postgresql.kill()
                await standby.promote()
            await posting
        await second.start()
        await system.wait_until_settled()
        (day,) = (await system.clients[0].get("/v1/usage?by=day")).json()["data"]
        await system.collect()
        printed = [process.printed.read_text() for process in (system.persistence, second)]
    assert find_failed(judge(load(tmp_path), Bounds(end_s=0)), UNUSED) == {}
    assert (day["turns"], posted) == (80, 80)
    assert not any(secret in text for secret in (PASSWORD, IN_URL) for text in printed)


@pytest.mark.parametrize(
    ("prepare", "change", "says"),
    [
        ("", ("127.0.0.1", "127.0.0.2"), "cannot be reached: "),
        ("", (f"{IN_URL}@", "pass@word.invalid@"), "and percent-encode special characters of the password"),
        ("", (IN_URL, "wrong"), "password authentication failed"),
        ("", ("/test_", "/nothing_"), 'database "nothing_'),
        ("", (f"{IN_URL}@", f"{PASSWORD}@"), "is not a valid URL"),
        ("", ("postgresql:", "mysql:"), "mysql:// is not supported"),
        ("CREATE TABLE turns ()", ("", ""), "has the table turns and has no table blob_releases"),
        ("DROP TABLE labels", ("", ""), "has no table labels: restore a whole backup"),
        ("DELETE FROM tailrace_version", ("", ""), "has no row in tailrace_version"),
        ("UPDATE tailrace_version SET version = 999", ("", ""), "has schema version 999"),
        ("ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc TEMPLATE template0", ("", ""), "LATIN1"),
    ],
)
async def test_a_database_that_cannot_be_used_is_refused_before_it_is_changed(
    postgresql: PostgreSQLServer, prepare: str, change: tuple[str, str], says: str
) -> None:
    """With one sentence without the password. What a restore may complete is not the fault of a setting.

    systemd does not start a process again whose setting is invalid.
    """
    url = await postgresql.new_database(prepare if prepare.startswith("ENCODING") else "")
    if prepare and not prepare.startswith("ENCODING"):
        if "CREATE" not in prepare:
            async with open_store(url):
                pass
        async with postgresql.connect(url) as connection:
            await connection.execute(prepare)
    before = await tables(postgresql, url)
    with pytest.raises(TailraceError) as refused:
        await preflight(Settings(database=url.replace(*change)))
    message = str(refused.value)
    assert says in message
    assert isinstance(refused.value, StoreUnwritable) or "has no" not in says
    assert "\n" not in message
    assert not any(secret in message for secret in (PASSWORD, IN_URL, "pass@word", "wrong@"))
    assert await tables(postgresql, url) == before


@pytest.mark.parametrize("option", ["connect_timeout", "sslmod", "pool_size"])
async def test_an_unknown_option_of_the_url_is_named(postgresql: PostgreSQLServer, option: str) -> None:
    url = await postgresql.new_database()
    with pytest.raises(
        SettingsInvalid, match=f"^TAILRACE_DATABASE: the option {option} of the URL is unknown: "
    ) as error:
        await preflight(Settings(database=f"{url}?{option}=5"))
    assert IN_URL not in str(error.value)


@pytest.mark.parametrize(
    ("option", "error", "says"),
    [
        (
            "sslmode=always",
            SettingsInvalid,
            "an option of .* is not valid: `sslmode` parameter must be one of: disable",
        ),
        ("sslmode=verify-full&sslrootcert=/none.pem", StoreBusy, "cannot be reached: .*No such file"),
        ("target_session_attrs=writable", SettingsInvalid, "is not a valid URL"),
        ("target_session_attrs=standby", StoreBusy, "None of the hosts match"),
    ],
)
async def test_an_option_that_cannot_be_used_is_refused_with_one_sentence(
    postgresql: PostgreSQLServer, option: str, error: type[TailraceError], says: str
) -> None:
    """A server that is a standby for the moment may become the primary: a supervisor starts the process again."""
    url = await postgresql.new_database()
    with pytest.raises(error, match=rf"^[^\n]*{says}[^\n]*$") as refused:
        await preflight(Settings(database=f"{url}?{option}"))
    assert IN_URL not in str(refused.value)


needs_pgbouncer = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is missing")
LIMITS = {
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "15s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
}


async def limits_of(url: str) -> dict[str, str]:
    """Returns the time limits of a connection to the database."""
    database = await PostgreSQL.open(url, busy_timeout_s=20)
    try:
        columns = ", ".join(f"current_setting('{name}') AS {name}" for name in LIMITS)
        (row,) = await database.read(f"SELECT {columns}", {})
    finally:
        await database.close()
    return row


async def test_each_connection_has_time_limits(postgresql: PostgreSQLServer) -> None:
    assert await limits_of(await postgresql.new_database()) == LIMITS


@needs_pgbouncer
async def test_the_time_limits_hold_behind_a_pooler_in_session_mode(postgresql: PostgreSQLServer) -> None:
    """With PgBouncer's defaults. Two processes use the database."""
    async with running_pgbouncer(postgresql, "session") as url:
        assert await limits_of(url) == LIMITS
        async with open_store(url), open_store(url):
            pass


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_shares_sessions_is_refused_with_one_sentence(
    postgresql: PostgreSQLServer, mode: Mode
) -> None:
    """At each start: the prepared statements of the process before are still in the server's session."""
    async with running_pgbouncer(postgresql, mode) as url:
        for _ in range(2):
            status, _, stderr = await run_module("tailrace.persistence", "--check", TAILRACE_DATABASE=url)
            assert (status, stderr.count("pool_mode=session"), stderr.count("\n")) == (EXIT_USAGE, 1, 1), stderr
            assert not any(secret in stderr for secret in (PASSWORD, IN_URL))


@needs_pgbouncer
async def test_an_option_that_a_pooler_refuses_is_named(postgresql: PostgreSQLServer) -> None:
    async with running_pgbouncer(postgresql, "session") as url:
        with pytest.raises(SettingsInvalid, match=r"^[^\n]* refuses the option statement_timeout of the URL[^\n]*$"):
            await preflight(Settings(database=f"{url}?statement_timeout=30000"))


async def tables(postgresql: PostgreSQLServer, url: str) -> list[str]:
    async with postgresql.connect(url) as connection:
        found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return [row["tablename"] for row in found]


@pytest.mark.parametrize(
    ("url", "begins"),
    [
        (f"postgres:/u:{PASSWORD}@h/d", "postgres:/"),
        (f"postgresql:/u:{PASSWORD}@h/d", "postgresql:/"),
        (f"postgresql:u:{PASSWORD}@h/d", "postgresql:"),
        (f"postgre://u:{PASSWORD}@h/d", "postgre://"),
        (f"postgresql+asyncpg://u:{PASSWORD}@h/d", "postgresql+asyncpg://"),
        (f"Postgresql://u:{PASSWORD}@h/d", "Postgresql://"),
        (f"mysql://u:{PASSWORD}@h/d", "mysql://"),
        (f" postgresql://u:{PASSWORD}@h/d", " postgresql:"),
        (f'"postgresql://u:{PASSWORD}@h/d"', '"postgresql:'),
        (f"postgresql//u:{PASSWORD}@h/d", "postgresql//"),
        (f"postgresql ;//u:{PASSWORD}@h/d", "postgresql ;"),
        ("sqlite:///tailrace.db", "sqlite:///"),
        ("file:/tailrace.db", "file:/"),
    ],
)
async def test_a_mistyped_url_is_not_taken_for_the_name_of_a_file(
    url: str, begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Persistence and the commands refuse it with its beginning only, and write nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsInvalid) as refused:
        await preflight(Settings(database=url))
    assert str(refused.value).startswith(f"TAILRACE_DATABASE: {begins} is not supported; expected postgresql://USER")
    assert await asyncio.to_thread(main, ["migrate-database", url, "new.db"]) == 2
    assert PASSWORD not in capsys.readouterr().err
    assert os.listdir(tmp_path) == []  # noqa: PTH208  # in a test
    for file in ("a:b.db", "postgresql.db"):
        await preflight(Settings(database=file))


async def test_an_older_server_is_refused(postgresql: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.features.postgresql.database.SERVER_VERSION_MIN", 99)
    with pytest.raises(
        SettingsInvalid, match=r"is PostgreSQL \d+\.\d+; Tailrace needs 99 or newer: upgrade the server"
    ):
        await preflight(Settings(database=await postgresql.new_database()))


async def test_the_command_copies_a_history_and_shows_no_password(
    postgresql: PostgreSQLServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, url = tmp_path / "tailrace.db", await postgresql.new_database()
    async with open_store(path):
        pass
    assert await asyncio.to_thread(main, ["migrate-database", str(path), url]) == 0
    assert await asyncio.to_thread(main, ["migrate-database", str(tmp_path / "none.db"), url, "--json"]) == 2
    printed = capsys.readouterr()
    shown = f"postgresql://tailrace@127.0.0.1:{postgresql.port}"
    assert re.search(
        rf"turns +0 rows  [0-9a-f]{{16}}\n(?s:.*){path} and {shown}/test_\d+ contain the same\n$", printed.out
    )
    assert "none.db' is not a file" in printed.err
    assert IN_URL not in printed.out + printed.err


async def test_a_backup_names_the_program_for_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAILRACE_DATABASE", f"postgresql://tailrace:{IN_URL}@db/tailrace")
    assert main(["backup", str(tmp_path / "backup.tar"), "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("back it up with pg_dump (docs/BACKUP.md)\n")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h:5432/d?sslmode=require", "postgresql://u@h:5432/d"),
        ("postgres://h/d", "postgresql://h/d"),
        ("postgresql://u:s3cret/x@y?z#@h/d", "postgresql://u@h/d"),
        ("postgresql://h/d?user=u&password=s3cr@t", "postgresql://…"),
        ("postgresql://u:p@h/d?application_name=a@b", "postgresql://…"),
        ("postgresql://u:s3cret?x=y@h/d", "postgresql://…"),
        ("tailrace.db", "tailrace.db"),
    ],
)
def test_the_name_of_a_database_in_messages_has_no_password(url: str, shown: str) -> None:
    assert DATABASES.display(url) == shown
