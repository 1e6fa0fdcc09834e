"""Faults of the database: locks, full and read-only disks, damage, deletion, restored backups.

Turns are answered meanwhile, /readyz reports the fault, and every turn is in the database afterwards. Each fault is the
real one. Persistence is restarted whenever it ends, as `up` does.
"""

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.projects.records import CreateProject, GetProject, ProjectRecord
from tailrace.features.usage.records import GetUsage, UsagePage
from tailrace.proto.errors import Refused, StoreError
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn, ListSessions, SessionPage, SessionRecord, TurnRecord, record_from_fold
from tailrace.proto.resources import CreateSession, DeleteResource, Remaining
from tailrace.proto.subjects import PERSISTENCE, STREAM
from tests.conftest import apply_streams
from tests.harness.generator_in_loop import running_generator, words
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_writer import OURS, Writer, new_writer, write_turn
from tests.harness.until import until
from tests.integration.conftest import NewGateway
from tests.integration.test_persistence_recorder import expected_rows, rows
from tests.upgrade.recording import downgrade

Fault = Callable[[Path], Any]

# SQLite's default. The first page holds the schema.
PAGE_BYTES = 4096
DISK_BYTES = 4 * 1024**2
DOCS = Path(__file__).parents[2] / "docs"
RESTART_S = 0.1
HEAL_S_MAX = 30.0
WORDS = 5


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tailrace.db"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of the test's own, which only root can mount."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(mounted)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a disk: faults of a real disk are NOT tested here")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


class PersistenceSystem(NamedTuple):
    """A gateway, a generator and the log of a nats-server of the test's own."""

    url: str
    log: TurnLog
    client: Any
    deliveries: Deliveries
    tenant: Tenant

    @asynccontextmanager
    async def persistence(self, database: Path) -> AsyncIterator[None]:
        """Runs persistence, and starts it again whenever it ends."""
        stop = asyncio.Event()

        async def supervise() -> None:
            stopping = asyncio.create_task(stop.wait())
            while not stop.is_set():
                async with Persistence(self.url, database) as serving:
                    await asyncio.wait([serving.running, stopping], return_when=asyncio.FIRST_COMPLETED)
                with suppress(StoreError):
                    serving.running.result()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), RESTART_S)

        supervising = asyncio.create_task(supervise())
        try:
            yield
        finally:
            stop.set()
            await supervising

    async def answer(self, tag: str) -> TurnKey:
        """Posts a turn and reads its complete answer."""
        response = await self.client.post("/v1/turns", json={"message": f"#sim words={WORDS} rate=0 tag={tag}"})
        assert response.status_code == 202, response.text
        text = (await self.client.get(response.json()["links"]["events"], params={"dialect": "text"})).text
        assert text == words(WORDS, tag)
        return TurnKey(self.tenant, TurnId(response.json()["turn"]))

    async def answer_three(self) -> list[TurnKey]:
        return list(await asyncio.gather(*(self.answer(f"during{number}x") for number in range(3))))

    async def trouble(self) -> str:
        """Returns the reason that /readyz reports for persistence; empty if it is ready."""
        report = (await self.client.get("/readyz")).json()["persistence"]
        return "" if report["ok"] else str(report["detail"])

    async def is_ready(self) -> bool:
        return not await self.trouble()

    async def floor(self) -> int:
        """Returns the sequence up to which persistence has acknowledged everything."""
        return (await self.deliveries.backlog()).floor

    async def wait_until_drained(self) -> None:
        await until(self.deliveries.is_drained, HEAL_S_MAX)


@pytest.fixture
async def own(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    own_claude: str,
    new_gateway: NewGateway,
    tenant: Tenant,
) -> AsyncIterator[PersistenceSystem]:
    gateway = await new_gateway(own_server.url)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with running_generator(own_server.url, own_claude):
        yield PersistenceSystem(own_server.url, own_log, gateway.client, deliveries, tenant)


@asynccontextmanager
async def locked_database(database: Path) -> AsyncGenerator[None]:
    """Another program holds a lock, as a backup may."""
    # Without a timeout: persistence runs in this event loop, and while the loop waits, it cannot end a transaction.
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as other:

        async def is_locked() -> bool:
            with suppress(sqlite3.OperationalError):
                other.execute("BEGIN EXCLUSIVE")
            return other.in_transaction

        await until(is_locked)
        yield
        other.execute("ROLLBACK")


@asynccontextmanager
async def full_disk(database: Path) -> AsyncGenerator[None]:
    filler = database.with_name("filler")
    with filler.open("wb", buffering=0) as filling, suppress(OSError):
        while True:
            filling.write(b"x" * PAGE_BYTES)
    yield
    filler.unlink()


def overwrite(database: Path, first: int, new: bytes) -> None:
    """Overwrites the database from byte `first` on; persistence may have it open."""
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with database.open("r+b") as file:
        file.seek(first)
        file.write(new)


def content(path: Path) -> bytes:
    """Returns the content of a file; empty if it does not exist."""
    return path.read_bytes() if path.exists() else b""


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


def damage_all(database: Path) -> None:
    overwrite(database, 0, os.urandom(database.stat().st_size))


def damage_rows(database: Path) -> None:
    """Damages all pages except the first, which has the schema."""
    overwrite(database, PAGE_BYTES, os.urandom(database.stat().st_size - PAGE_BYTES))


def replace(database: Path) -> None:
    other = database.with_name("other")
    other.write_bytes(b"not a database" * 1000)
    other.rename(database)


def delete_folder(database: Path) -> None:
    rmtree(database.parent)


@pytest.mark.rule("F17")
@pytest.mark.parametrize(
    ("fault", "why"), [(locked_database, "SQLITE_BUSY"), (full_disk, "SQLITE_FULL")], ids=["locked", "full"]
)
async def test_while_the_database_cannot_be_written_turns_are_answered_and_not_acknowledged(
    own: PersistenceSystem, request: pytest.FixtureRequest, tmp_path: Path, fault: Fault, why: str
) -> None:
    """/readyz reports the reason; when it is over, every turn is recorded (fault F17)."""
    folder: Path = request.getfixturevalue("disk") if fault is full_disk else tmp_path
    database = folder / "tailrace.db"
    async with own.persistence(database):
        keys = [await own.answer("before")]
        await own.wait_until_drained()
        floor = await own.floor()
        async with fault(database):
            keys += await own.answer_three()

            async def is_reported() -> bool:
                return why in await own.trouble()

            await until(is_reported)
            assert await own.floor() == floor
        await own.wait_until_drained()
        await until(own.is_ready)
        keys.append(await own.answer("after"))
        await own.wait_until_drained()
    assert rows(database) == await expected_rows(own.log, keys)


@pytest.mark.rule("F17")
@pytest.mark.parametrize("was_killed", [False, True])
async def test_a_start_on_a_read_only_disk_is_repeated_until_it_succeeds(
    own: PersistenceSystem, disk: Path, *, was_killed: bool
) -> None:
    """File systems become read-only after an error. The database is neither moved nor rebuilt.

    A killed process leaves a journal. With one, SQLite opens a database that it can only read.
    """
    database = disk / "tailrace.db"
    async with own.persistence(database):
        keys = [await own.answer("before")]
        await own.wait_until_drained()
        if was_killed:
            killed = shutil.copytree(disk, disk / "killed")
    if was_killed:
        database = killed / database.name
    inode, floor = database.stat().st_ino, await own.floor()

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)

    async with AsyncExitStack() as stack:
        remount("ro")
        stack.callback(remount, "rw")
        await stack.enter_async_context(own.persistence(database))
        keys += await own.answer_three()
        assert await own.trouble()
        assert await own.floor() == floor
        remount("rw")
        await own.wait_until_drained()
        await until(own.is_ready)
    assert database.stat().st_ino == inode
    assert rows(database) == await expected_rows(own.log, keys)


@pytest.mark.rule("F17")
@pytest.mark.parametrize("fault", [damage_all, damage_rows, replace, delete_folder])
async def test_a_damaged_or_deleted_database_is_rebuilt_from_the_log(
    own: PersistenceSystem, database: Path, fault: Fault
) -> None:
    """While turns are answered; the damaged file is kept under another name (F17).

    The first two happen while persistence is down: with a write-ahead log, they would not reach what it reads.
    """

    async def is_complete() -> bool:
        with suppress(sqlite3.Error):
            return rows(database) == await expected_rows(own.log, keys)
        return False

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(own.persistence(database))
        keys = [await own.answer(f"before{number}x") for number in range(2)]
        await own.wait_until_drained()
        if fault in (damage_all, damage_rows):
            await stack.pop_all().aclose()
            fault(database)
            await stack.enter_async_context(own.persistence(database))
        else:
            fault(database)
        keys += await own.answer_three()
        await until(is_complete, HEAL_S_MAX)
        await until(own.is_ready, HEAL_S_MAX)
    assert rows(database) == await expected_rows(own.log, keys)
    assert bool(content(Path(f"{database}.damaged-1"))) == (fault != delete_folder)


@pytest.mark.rule("F17")
async def test_damage_that_only_a_query_finds_is_repaired(own: PersistenceSystem, database: Path) -> None:
    """No write reads the damaged page: a client that requests the history gets a 503, and later the history."""
    async with own.persistence(database):
        await own.answer("before")
        await own.wait_until_drained()
        await until(own.is_ready)
    with closing(sqlite3.connect(database)) as other:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'sessions_by_update'"
        ((page,),) = other.execute(query).fetchall()
    async with own.persistence(database):
        await until(own.is_ready)
        overwrite(database, (page - 1) * PAGE_BYTES, os.urandom(PAGE_BYTES))
        answers = []

        async def is_answered() -> bool:
            answers.append(await own.client.get("/v1/sessions?limit=1"))
            return answers[-1].status_code == 200 and bool(answers[-1].json()["data"])

        await until(is_answered, HEAL_S_MAX)
    assert {answer.status_code for answer in answers} == {503, 200}
    assert content(Path(f"{database}.damaged-1"))


# Which databases get the whole log again at a start


async def replay_reasons(nats_url: str, database: Path) -> list[str]:
    """Starts and stops persistence; returns why it read the log from its beginning, or an empty list."""
    with capture_logs() as lines:
        async with Persistence(nats_url, database):
            pass
    return [line["why"] for line in lines if line["event"] == "replaying the log from its beginning"]


async def assert_complete(nats_url: str, database: Path, log: TurnLog, keys: list[TurnKey]) -> None:
    async with Persistence(nats_url, database) as persistence:
        for key in keys:
            record = await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
            assert record == record_from_fold(key, await log.read_turn(ScopedKey.whole(key)))


@pytest.mark.rule("R27")
async def test_the_log_is_replayed_for_new_and_older_databases_only(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Not for a current one: also not while a turn is running, nor when the log has expired."""
    url = own_server.url
    running = new_writer(own_log)
    first = await running.store_request()
    assert await replay_reasons(url, database) == ["new database"]
    assert await replay_reasons(url, database) == []
    # A process that was killed right after it had created the file.
    truncate(database)
    assert await replay_reasons(url, database) == ["new database"]
    await running.begin(*["and "] * 9)
    assert await replay_reasons(url, database) == []
    await own_connection.jetstream.purge_stream(STREAM)
    assert (await (await Deliveries.open(own_connection, PERSISTENCE)).backlog()).floor > first
    assert await replay_reasons(url, database) == []
    assert await replay_reasons(url, downgrade(1, database)) == ["older database"]


@pytest.mark.rule("F17")
@pytest.mark.rule("R27")
async def test_a_restored_backup_gets_all_later_turns_from_the_log(
    own_server: NatsServer, own_log: TurnLog, database: Path, tmp_path: Path
) -> None:
    """Also acknowledged ones, and the end of turns that were running; no manual step is needed (docs/RUNBOOK.md)."""
    url, backup = own_server.url, tmp_path / "copy.db"
    running = new_writer(own_log)
    await running.store_request()
    requested = await own_log.read_turn(ScopedKey.whole(running.key))
    await running.begin("Light ")
    keys = [await write_turn(own_log, "Light")]
    await assert_complete(url, database, own_log, keys)
    async with Persistence(url, database) as persistence:
        record = await persistence.ask(OURS, "turn", GetTurn(running.key.turn), TurnRecord)
        assert record == record_from_fold(running.key, requested)
    shutil.copy(database, backup)
    await running.end()
    keys += [running.key, await write_turn(own_log, "scatters")]
    await assert_complete(url, database, own_log, keys)
    shutil.copy(backup, database)
    assert await replay_reasons(url, database) == ["restored database"]
    await assert_complete(url, database, own_log, keys)
    assert await replay_reasons(url, database) == []


@pytest.mark.rule("R27")
@pytest.mark.rule("R35")
async def test_a_restored_backup_has_no_turn_that_was_deleted_after_it(
    own_server: NatsServer, own_log: TurnLog, database: Path, tmp_path: Path
) -> None:
    """NATS has their tombstones for a day. Their usage stays counted; a turn that the log has again is kept."""
    kept, deleted, stored_again = [await write_turn(own_log, text) for text in ("Light", "scatters", "and bends")]
    async with Persistence(own_server.url, database) as persistence:
        before = await usage(persistence, await own_log.read_turn(ScopedKey.whole(kept)))
    shutil.copy(database, tmp_path / "copy.db")
    async with Persistence(own_server.url, database) as persistence:
        for key in (deleted, stored_again):
            await own_log.purge(key)
            await persistence.ask(OURS, "delete", DeleteResource("turn", key.turn, (key.turn,)), Remaining)
        await Writer(own_log, stored_again).store_request()
        await write_turn(own_log, "afterwards")
    for _ in range(2):
        shutil.copy(tmp_path / "copy.db", database)
        assert await replay_reasons(own_server.url, database) == ["restored database"]
    async with Persistence(own_server.url, database) as persistence:
        assert (await persistence.ask(OURS, "turn", GetTurn(kept.turn), TurnRecord)).text == "Light"
        assert (await persistence.ask(OURS, "turn", GetTurn(stored_again.turn), TurnRecord)).outcome == "running"
        with pytest.raises(Refused, match="no turn has this id"):
            await persistence.ask(OURS, "turn", GetTurn(deleted.turn), TurnRecord)
        assert await usage(persistence, await own_log.read_turn(ScopedKey.whole(kept))) == before + 1


async def usage(persistence: Persistence, of: Turn) -> int:
    """Returns the number of turns of the day of a turn."""
    assert of.asked_at is not None
    day = of.asked_at.date()
    (line,) = (await persistence.ask(OURS, "usage", GetUsage("day", day, day), UsagePage)).usage
    return line.turns


def damage_page_of(text: str, database: Path) -> None:
    """Damages a page that has `text`."""
    page = database.read_bytes().index(text.encode()) // PAGE_BYTES
    overwrite(database, page * PAGE_BYTES, os.urandom(PAGE_BYTES))


def restore_as_the_docs_say(database: Path) -> None:
    """Sets the database aside and restores it with the commands of docs/BACKUP.md."""
    database.rename(f"{database}.damaged-1")
    steps = DOCS.joinpath("BACKUP.md").read_text().partition("## Read what a damaged file still has")[2]
    commands = re.findall(r"^ {7}(.*)$", steps.partition("\n## ")[0], re.MULTILINE)
    script = "\n".join(commands).replace(".tailrace/", f"{database.parent.name}/")
    subprocess.run(script, shell=True, check=True, cwd=database.parents[1])
    shutil.copy(database.parents[1] / "copy.db", database)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the command sqlite3 is not installed")
async def test_what_a_damaged_file_still_has_can_be_restored_as_the_docs_say(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """A turn that the log has not any more is lost only if its page is damaged."""
    texts = [f"{number:03}" * 300 for number in range(30)]
    keys = [await write_turn(own_log, text) for text in texts]
    await assert_complete(own_server.url, database, own_log, keys)
    await own_connection.jetstream.purge_stream(STREAM)
    damage_page_of(texts[15], database)
    restore_as_the_docs_say(database)
    found = []
    async with Persistence(own_server.url, database) as persistence:
        for key in [*keys, await write_turn(own_log, "afterwards")]:
            with suppress(Refused):
                found.append((await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)).text)
    assert set(found) < {*texts, "afterwards"}
    assert "afterwards" in found
    assert len(found) > len(texts) - 6


@pytest.mark.rule("R27")
async def test_a_backup_of_another_log_gets_all_turns_of_this_log(
    own_server: NatsServer, own_log: TurnLog, database: Path, tmp_path: Path
) -> None:
    """It has recorded higher sequences of its own log than this one has."""
    keys = [await write_turn(own_log, "Light") for _ in range(5)]
    await assert_complete(own_server.url, database, own_log, keys)
    (tmp_path / "another").mkdir()
    async with NatsServer(tmp_path / "another") as another:
        await apply_streams(another.url)
        connection = await Connection.open(another.url, "test")
        key = await write_turn(TurnLog(connection), "Light")
        assert await replay_reasons(another.url, tmp_path / "another.db") == ["new database"]
        assert await replay_reasons(another.url, database) == ["restored database"]
        await assert_complete(another.url, database, TurnLog(connection), [key])
        assert await replay_reasons(another.url, database) == []
        await connection.close()


async def test_a_rebuilt_database_has_sessions_and_projects_without_their_titles(
    own_server: NatsServer, own_log: TurnLog, database: Path
) -> None:
    """The log has a turn's project but no title, which only a backup has (docs/RUNBOOK.md)."""
    writer = new_writer(own_log)
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "new_project", CreateProject("rivers", "Rivers"), ProjectRecord)
        await persistence.ask(OURS, "new_session", CreateSession("session-1", "The Rhine"), SessionRecord)
        await persistence.ask(OURS, "new_session", CreateSession("session-2", "The Elbe"), SessionRecord)
        await writer.store_request(project="rivers")
        project = await persistence.ask(OURS, "project", GetProject("rivers"), ProjectRecord)
        assert (project.name, project.turns) == ("Rivers", 1)
    delete(database)
    async with Persistence(own_server.url, database) as persistence:
        project = await persistence.ask(OURS, "project", GetProject("rivers"), ProjectRecord)
        sessions = await persistence.ask(OURS, "sessions", ListSessions(), SessionPage)
    assert (project.name, project.turns) == ("rivers", 1)
    assert [(one.session, one.title, one.project_id) for one in sessions.sessions] == [("session-1", None, "rivers")]
