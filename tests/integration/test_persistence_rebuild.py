"""A database that is damaged, gone or new is made again from the log, and what was damaged is kept."""

import os
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.errors import StoreCorrupt, StoreTooNew
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.records import (
    GetSession,
    GetTurn,
    ListSessions,
    SessionPage,
    SessionRecord,
    TurnRecord,
    record_from_fold,
)
from tailrace.proto.resources import CreateProject, CreateSession, GetProject, ProjectRecord
from tailrace.proto.subjects import PERSISTENCE, STREAM, TurnKey
from tests.conftest import apply_streams
from tests.persisting import Persistence
from tests.until import until
from tests.upgrade.recording import as_of
from tests.writing import Writer

OURS = Tenant("ours")
# SQLite's default. Its first page holds the shape of the tables; all the others hold what is in them.
PAGE_BYTES = 4096
# Where the version stands: SQLite's "Database File Format", section 1.3.
USER_VERSION = 60


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tailrace.db"


async def write(log: TurnLog) -> TurnKey:
    writer = Writer(log, TurnKey(OURS, TurnId(new_id())))
    await writer.open("Light ", "scatters.")
    await writer.end()
    return writer.key


def content(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, first: int, new: bytes) -> bytes:
    """The content, with `new` in it from byte `first` on."""
    was = path.read_bytes()
    path.write_bytes(was[:first] + new + was[first + len(new) :])
    return path.read_bytes()


def spoil(path: Path, first: int) -> bytes:
    """Noise over everything from byte `first` on."""
    return overwrite(path, first, os.urandom(path.stat().st_size - first))


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.rule("F17")
@pytest.mark.parametrize("first", [0, PAGE_BYTES])
async def test_a_damaged_database_is_set_aside_and_made_again_from_the_log(
    own_server: NatsServer, own_log: TurnLog, database: Path, first: int
) -> None:
    """The process says so and ends; its next start has every turn that the log still has (fault F17)."""
    keys = [await write(own_log) for _ in range(3)]
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "turn", GetTurn(keys[0].turn), TurnRecord)
    spoilt = spoil(database, first)
    async with Persistence(own_server.url, database) as persistence:
        keys.append(await write(own_log))
        with pytest.raises(StoreCorrupt, match=r"renamed to .*tailrace\.db\.damaged-1\. The next start makes"):
            await persistence.running
    assert content(Path(f"{database}.damaged-1"))[:PAGE_BYTES] == spoilt[:PAGE_BYTES]
    await has_all(own_server.url, database, own_log, keys)


async def test_a_database_that_was_deleted_is_made_again_from_the_log(
    own_server: NatsServer, own_log: TurnLog, database: Path
) -> None:
    """Deleted while persistence is away is the same as damaged, and as a first start."""
    keys = [await write(own_log) for _ in range(3)]
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "turn", GetTurn(keys[0].turn), TurnRecord)
    delete(database)
    await has_all(own_server.url, database, own_log, keys)


async def test_a_database_that_is_deleted_under_a_running_process_is_made_again(
    own_server: NatsServer, own_log: TurnLog, database: Path
) -> None:
    """What SQLite writes to a file without a name is not acknowledged."""
    keys = [await write(own_log)]
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "turn", GetTurn(keys[0].turn), TurnRecord)
        delete(database)
        keys.append(await write(own_log))
        with pytest.raises(StoreCorrupt, match=r"deleted or replaced .*; the file does not exist any more"):
            await persistence.running
    await has_all(own_server.url, database, own_log, keys)


async def test_a_database_that_is_there_is_not_made_again(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """A restart goes on where the last life stopped: a day of turns is not folded twice."""
    async with Persistence(own_server.url, database) as persistence:
        key = await write(own_log)
        await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    before = (await deliveries.backlog()).floor
    async with Persistence(own_server.url, database):
        assert (await deliveries.backlog()).floor == before > 0
        assert await deliveries.is_drained()


async def test_a_new_database_is_told_everything_again_before_it_is_one(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Who dies after the file was made and before it was told of has nothing in it, and is new the next time."""
    async with Persistence(own_server.url, database) as persistence:
        key = await write(own_log)
        await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
    empty(database)
    await has_all(own_server.url, database, own_log, [key])


@pytest.mark.rule("R27")
@pytest.mark.rule("F17")
async def test_a_database_that_is_restored_from_a_backup_is_told_all_that_came_after_it(
    own_server: NatsServer, own_log: TurnLog, database: Path, tmp_path: Path
) -> None:
    """Also what was acknowledged since, and the end of what ran; nobody has to tell the log (docs/RUNBOOK.md)."""
    backup = tmp_path / "copy.db"
    running = Writer(own_log, TurnKey(OURS, TurnId(new_id())))
    await running.open("Light ")
    keys = [await write(own_log), running.key]
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "turn", GetTurn(keys[0].turn), TurnRecord)
    shutil.copy(database, backup)
    await running.end()
    async with Persistence(own_server.url, database) as persistence:
        keys.append(await write(own_log))
        await persistence.ask(OURS, "turn", GetTurn(keys[-1].turn), TurnRecord)
    shutil.copy(backup, database)
    assert await told_again(own_server.url, database) == ["restored database"]
    await has_all(own_server.url, database, own_log, keys)
    assert await told_again(own_server.url, database) == []


@pytest.mark.rule("R27")
async def test_a_database_that_is_restored_beside_a_younger_log_is_told_all_of_that(
    own_server: NatsServer, own_log: TurnLog, database: Path, tmp_path: Path
) -> None:
    """It has gone further in its own log than this one goes, of which another database was told."""
    for _ in range(5):
        await write(own_log)
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "sessions", ListSessions(), SessionPage)
    (tmp_path / "another").mkdir()
    async with NatsServer(tmp_path / "another") as another:
        await apply_streams(another.url)
        connection = await Connection.open(another.url, "test")
        log = TurnLog(connection)
        key = await write(log)
        async with Persistence(another.url, tmp_path / "another.db") as persistence:
            await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
        assert await told_again(another.url, database) == ["restored database"]
        async with Persistence(another.url, database) as persistence:
            told = await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
        assert told == record_from_fold(key, await log.turn(key))
        assert await told_again(another.url, database) == []
        await connection.close()


@pytest.mark.rule("R27")
async def test_a_database_of_this_log_is_no_backup(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Also while a turn runs on, and when the log has forgotten all: a day of turns is not folded twice."""
    running = Writer(own_log, TurnKey(OURS, TurnId(new_id())))
    asked = await running.ask()
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "turn", GetTurn(running.key.turn), TurnRecord)
    await running.begin(*["and "] * 9)
    assert await told_again(own_server.url, database) == []
    await own_connection.jetstream.purge_stream(STREAM)
    assert (await (await Deliveries.open(own_connection, PERSISTENCE)).backlog()).floor > asked
    assert await told_again(own_server.url, database) == []


async def told_again(nats_url: str, database: Path) -> list[str]:
    """Why a start reads the log from its beginning; empty when it does not."""
    with capture_logs() as lines:
        async with Persistence(nats_url, database):
            pass
    return [line["why"] for line in lines if line["event"] == "replaying the log from its beginning"]


async def test_a_start_says_why_it_reads_the_log_again(own_server: NatsServer, database: Path) -> None:
    """The first one, which nobody need worry about; not the second; and one that has an older version's file."""
    url = own_server.url
    assert [await told_again(url, database), await told_again(url, database)] == [["new database"], []]
    assert await told_again(url, as_of(1, database)) == ["older database"]


async def test_a_new_database_has_sessions_and_projects_and_not_what_people_called_them(
    own_server: NatsServer, own_log: TurnLog, database: Path
) -> None:
    """The log knows which project a turn named, and no title: that is in the backup, or lost (docs/RUNBOOK.md)."""
    writer = Writer(own_log, TurnKey(OURS, TurnId(new_id())))
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "new_project", CreateProject("rivers", "Rivers"), ProjectRecord)
        await persistence.ask(OURS, "new_session", CreateSession("session-1", "The Rhine"), SessionRecord)
        await persistence.ask(OURS, "new_session", CreateSession("session-2", "The Elbe"), SessionRecord)
        await writer.ask(project="rivers")
        project = await persistence.ask(OURS, "project", GetProject("rivers"), ProjectRecord)
        assert (project.name, project.turns) == ("Rivers", 1)
    delete(database)
    async with Persistence(own_server.url, database) as persistence:
        project = await persistence.ask(OURS, "project", GetProject("rivers"), ProjectRecord)
        sessions = await persistence.ask(OURS, "sessions", ListSessions(), SessionPage)
    assert (project.name, project.turns) == ("rivers", 1)
    assert [(one.session, one.title, one.project_id) for one in sessions.sessions] == [("session-1", None, "rivers")]


async def test_a_newer_database_ends_the_process_with_a_sentence(own_server: NatsServer, database: Path) -> None:
    """It is neither read nor moved: the newer version will want it."""
    async with Persistence(own_server.url, database):
        pass
    newer = overwrite(database, USER_VERSION, (999).to_bytes(4))
    async with Persistence(own_server.url, database) as persistence:
        with pytest.raises(StoreTooNew, match="has schema version 999"):
            await persistence.running
    assert content(database) == newer


async def has_all(nats_url: str, database: Path, log: TurnLog, keys: list[TurnKey]) -> None:
    async with Persistence(nats_url, database) as persistence:
        told = [await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord) for key in keys]
        assert told == [record_from_fold(key, await log.turn(key)) for key in keys]
        session = await persistence.ask(OURS, "session", GetSession(told[0].session), SessionRecord)
        assert session.turns == len(keys)
        assert not persistence.running.done()
        await until(persistence.is_begun)
