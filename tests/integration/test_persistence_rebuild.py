"""Rebuilding the database from the log: damaged, deleted, new, restored and newer database files."""

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
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.upgrade.recording import as_of

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
async def test_a_damaged_database_is_renamed_and_rebuilt_from_the_log(
    own_server: NatsServer, own_log: TurnLog, database: Path, first: int
) -> None:
    """The process reports it and ends; after the next start all turns of the log are there (fault F17)."""
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


async def test_a_deleted_database_is_rebuilt_from_the_log(
    own_server: NatsServer, own_log: TurnLog, database: Path
) -> None:
    """Deleted while persistence is down is equal to a first start."""
    keys = [await write(own_log) for _ in range(3)]
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "turn", GetTurn(keys[0].turn), TurnRecord)
    delete(database)
    await has_all(own_server.url, database, own_log, keys)


async def test_a_database_that_is_deleted_during_the_run_is_rebuilt(
    own_server: NatsServer, own_log: TurnLog, database: Path
) -> None:
    """Writes of SQLite to a deleted file are not acknowledged."""
    keys = [await write(own_log)]
    async with Persistence(own_server.url, database) as persistence:
        await persistence.ask(OURS, "turn", GetTurn(keys[0].turn), TurnRecord)
        delete(database)
        keys.append(await write(own_log))
        with pytest.raises(StoreCorrupt, match=r"deleted or replaced .*; the file does not exist any more"):
            await persistence.running
    await has_all(own_server.url, database, own_log, keys)


async def test_an_intact_database_is_not_rebuilt(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """A restart continues where the last process stopped: a day of turns is not folded twice."""
    async with Persistence(own_server.url, database) as persistence:
        key = await write(own_log)
        await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    before = (await deliveries.backlog()).floor
    async with Persistence(own_server.url, database):
        assert (await deliveries.backlog()).floor == before > 0
        assert await deliveries.is_drained()


async def test_an_interrupted_rebuild_starts_again(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """A process that is killed after it created the file leaves an empty database, which is new at the next start."""
    async with Persistence(own_server.url, database) as persistence:
        key = await write(own_log)
        await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
    empty(database)
    await has_all(own_server.url, database, own_log, [key])


@pytest.mark.rule("R27")
@pytest.mark.rule("F17")
async def test_a_restored_backup_gets_all_later_turns_from_the_log(
    own_server: NatsServer, own_log: TurnLog, database: Path, tmp_path: Path
) -> None:
    """Also acknowledged ones, and the end of turns that were running; no manual step is needed (docs/RUNBOOK.md)."""
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
async def test_a_backup_of_another_log_gets_all_turns_of_this_log(
    own_server: NatsServer, own_log: TurnLog, database: Path, tmp_path: Path
) -> None:
    """It has recorded higher sequences of its own log than this one has."""
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
async def test_the_current_database_is_not_mistaken_for_a_backup(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Also while a turn is running, and when the log has expired: a day of turns is not folded twice."""
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


async def test_a_replay_of_the_log_is_logged_with_its_reason(own_server: NatsServer, database: Path) -> None:
    """At the first start, not at the second, and for a database of an older version."""
    url = own_server.url
    assert [await told_again(url, database), await told_again(url, database)] == [["new database"], []]
    assert await told_again(url, as_of(1, database)) == ["older database"]


async def test_a_rebuilt_database_has_sessions_and_projects_without_their_titles(
    own_server: NatsServer, own_log: TurnLog, database: Path
) -> None:
    """The log has a turn's project but no title, which only a backup has (docs/RUNBOOK.md)."""
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


async def test_a_newer_database_ends_the_process_with_a_message(own_server: NatsServer, database: Path) -> None:
    """It is neither changed nor moved."""
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
