"""A missing log is not created where there may be one: by `tailrace streams`, by `tailrace up`, and while `up` runs."""

import asyncio
import io
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tailrace.deploy.cli.main import main
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.nats_server import NatsServer, streams_dir, wait_started
from tailrace.deploy.local.spawn import spawn
from tailrace.deploy.local.watch import SetupRepair
from tailrace.persistence.health import PersistenceHealth
from tailrace.proto.chain import START
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Rpc, TurnLog
from tailrace.proto.nats.setup_state import read_setup_state
from tailrace.proto.nats.stream_configs import CONSUMERS, EVERY_STREAM
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import BODIES, PERSISTENCE, STREAM
from tests.harness import processes
from tests.harness.open_store import open_store
from tests.harness.persistence_in_loop import Persistence
from tests.harness.stored_turns import running_row
from tests.harness.turn_builder import request
from tests.harness.until import until
from tests.harness.up import LEAN, running
from tests.unit.test_new_log import CASES

EVERYTHING = len(EVERY_STREAM) + len(CONSUMERS)


@pytest_asyncio.fixture
async def bare(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server without streams."""
    async with NatsServer(tmp_path) as server:
        yield server


class Command:
    """`tailrace streams`, in the environment of an operator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self._capsys = capsys
        monkeypatch.setenv("TAILRACE_NATS_URL", processes.as_user(url, ADMIN))
        monkeypatch.delenv("TAILRACE_DATABASE", raising=False)

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Returns the exit status, and all that it has printed."""
        status = await asyncio.to_thread(main, ["streams", "--gib", "1", *arguments])
        printed = self._capsys.readouterr()
        return status, printed.out + printed.err


@pytest.fixture
def streams(bare: NatsServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys, bare.url)


async def streams_of(url: str) -> set[str]:
    connection = await Connection.open(url, "test")
    try:
        return {str(info.config.name) for info in await connection.jetstream.streams_info()}
    finally:
        await connection.close()


async def test_the_command_creates_a_log_as_persistence_and_the_database_say(
    bare: NatsServer, streams: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with --new in each case. Other streams are not created either, so that a repeated command sees the same."""
    recorded, empty = tmp_path / "recorded.db", tmp_path / "empty.db"
    async with open_store(empty), open_store(recorded) as store:
        await store.record([running_row("turn-1")])
    databases = {True: recorded, False: empty, None: tmp_path / "away.db"}
    serving = await Connection.open(processes.as_user(bare.url, PERSISTENCE), "test")
    said: bool | None = None

    def report() -> bytes | None:
        health = PersistenceHealth(True, "", "the history", "id", has_recorded=said)
        return None if said is None else msgspec.json.encode(health)

    await Rpc(serving).serve_health(PERSISTENCE, report)
    try:
        for (persistence, database), may_create in CASES.items():
            said = persistence
            monkeypatch.setenv("TAILRACE_DATABASE", str(databases[database]))
            status, printed = await streams.run()
            assert (status, len(await streams_of(bare.url))) == ((0, len(EVERY_STREAM)) if may_create else (1, 0))
            if not may_create:
                assert "persistence has recorded turns in the history" in printed or persistence is not True
                assert f"the database {recorded} has recorded turns" in printed or database is not True
                assert (await streams.run("--new"))[0] == 0
                assert len(await streams_of(bare.url)) == len(EVERY_STREAM)
            admin = await Connection.open(bare.url, "test")
            for name in await streams_of(bare.url):
                await admin.jetstream.delete_stream(name)
            await admin.close()
    finally:
        await serving.close()


async def test_persistence_of_an_older_version_does_not_count_as_nothing_recorded(
    bare: NatsServer, streams: Command
) -> None:
    serving = await Connection.open(processes.as_user(bare.url, PERSISTENCE), "test")
    await Rpc(serving).serve_health(
        PERSISTENCE, lambda: msgspec.json.encode(PersistenceHealth(True, "", "the history", "id"))
    )
    try:
        status, printed = await streams.run()
    finally:
        await serving.close()
    assert (status, "persistence does not say" in printed) == (1, True)


async def test_the_log_of_a_volume_that_was_not_mounted_is_there_again_afterwards(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A running persistence knows that there was a log."""
    command = Command(monkeypatch, capsys, own_server.url)
    key = TurnKey(Tenant("acme"), TurnId(new_id()))
    store, away = streams_dir(own_server.spec.store), tmp_path / "away"
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        assert (await persistence.health()).has_recorded is False
        connection = await Connection.open(own_server.url, "test")
        await TurnLog(connection).append(key, START, request())
        await connection.close()

        async def has_recorded() -> bool:
            return bool((await persistence.health()).has_recorded)

        await until(has_recorded)
        await own_server.stop(SIGTERM)
        store.rename(away)
        await own_server.start()

        async def is_refused() -> str:
            status, printed = await command.run()
            assert status == 1
            return printed if "persistence has recorded turns in" in printed else ""

        assert "copy its store" in await until(is_refused, 20)
        assert await streams_of(own_server.url) == set()
        await own_server.stop(SIGTERM)
        shutil.rmtree(store)
        away.rename(store)
        await own_server.start()
        assert await command.run() == (
            0,
            f"0 streams, buckets and consumers created; {EVERYTHING} existed and were not changed\n",
        )
    connection = await Connection.open(own_server.url, "test")
    assert len((await TurnLog(connection).read_turn(ScopedKey.whole(key))).blocks) == 0
    await connection.close()


async def test_the_log_of_another_account_is_not_covered_by_a_new_one(
    bare: NatsServer, streams: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is the same, and no persistence answers in the other account."""
    assert (await streams.run("--new"))[0] == 0
    database = tmp_path / "tailrace.db"
    async with open_store(database) as store:
        await store.record([running_row("turn-1")])
    await bare.stop(SIGTERM)
    config = bare.spec.directory / "nats.conf"
    found = msgspec.json.decode(config.read_bytes())
    found["accounts"]["OTHER"] = {"jetstream": "enabled", "users": [{"user": "operator", "password": "p1"}]}
    config.write_bytes(msgspec.json.encode(found))
    binary = str(Path(sys.executable).parent / "nats-server")
    with bare.log.open("ab") as log:
        bare.process = await spawn((binary, "-c", str(config)), {}, log.fileno())
    await wait_started(bare.spec.port)
    url = f"nats://operator:p1@127.0.0.1:{bare.spec.port}"
    monkeypatch.setenv("TAILRACE_NATS_URL", url)
    assert "whether there was one is unknown (persistence does not answer" in (await streams.run())[1]
    monkeypatch.setenv("TAILRACE_DATABASE", str(database))
    status, printed = await streams.run()
    assert (status, f"the database {database} has recorded turns" in printed) == (1, True)
    assert await streams_of(url) == set()
    assert await streams_of(bare.url) == set(EVERY_STREAM)


async def test_doctor_says_stop_and_copy_the_store(
    bare: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAILRACE_NATS_URL", processes.as_user(bare.url, ADMIN))
    assert await asyncio.to_thread(main, ["doctor", "--json", "--port", "0", "--data", str(tmp_path / "data")]) == 1
    (nats,) = (one for one in msgspec.json.decode(capsys.readouterr().out) if one["name"] == "NATS")
    assert nats["level"] == "error"
    assert nats["detail"].startswith("NATS has no log (the stream TURNS). It may be in another account")
    assert nats["action"].startswith("stop nats-server now, and copy its store")


@pytest.mark.timeout(240)
async def test_up_does_not_create_a_log_beside_an_older_database(tmp_path: Path) -> None:
    """The first start needs no option. With --new, as after a restore of the database alone, all works again."""
    with running(tmp_path, *LEAN) as up:
        await answer_a_turn(await up.ready())
        up.process.send_signal(SIGTERM)
        up.process.wait(20)
    data = up.folder
    (data / "nats").rename(data / "away")
    status, message = await refused_up(tmp_path)
    assert status == 1
    assert f"the database {data / 'tailrace.db'} has recorded turns" in message
    assert "copy its store" in message
    assert "--new" in message
    # Files of a log that nats-server does not show are as good a reason, also without a database.
    shutil.rmtree(data / "nats")
    (data / "tailrace.db").rename(tmp_path / "kept.db")
    hidden = data / "nats/jetstream/$G/streams/TURNS"
    hidden.mkdir(parents=True)
    status, message = await refused_up(tmp_path)
    assert (status, f"{hidden} has files of one" in message) == (1, True)
    shutil.rmtree(data / "nats")
    (tmp_path / "kept.db").rename(data / "tailrace.db")
    with running(tmp_path, *LEAN, "--new") as up:
        await answer_a_turn(await up.ready())


async def refused_up(folder: Path) -> tuple[int | None, str]:
    """Returns the status and the output of an `up` that ends by itself."""
    with running(folder, *LEAN) as up:
        await until(lambda: up.process.poll() is not None, 60)
        return up.process.poll(), up.text


async def answer_a_turn(url: str) -> None:
    """Returns when the turn is in the database."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        body, headers = {"message": "#sim words=3 rate=0"}, {"accept": "text/event-stream"}
        assert "w000002" in (await client.post("/v1/turns?dialect=text", json=body, headers=headers)).text

        async def is_recorded() -> bool:
            listed = await client.get("/v1/turns?limit=1")
            return listed.status_code == 200 and len(listed.json()["data"]) == 1

        await until(is_recorded, 20)


async def test_a_log_that_is_missing_after_an_interruption_is_reported_and_not_created(own_server: NatsServer) -> None:
    """The store may be another one. A log that was deleted in the same server is created, see test_repairs.py."""
    out = io.StringIO()
    repair = SetupRepair(own_server.url, Console(out, width=4, coloured=False), [own_server.spec])
    store, away = streams_dir(own_server.spec.store), own_server.spec.directory / "away"

    async def is_interrupted() -> bool:
        await repair.check()
        return "NATS has no log (the stream TURNS)" in out.getvalue()

    try:
        await repair.check()
        await own_server.stop(SIGKILL)
        store.rename(away)
        await own_server.start()
        await until(is_interrupted, 20)
        await repair.check()
        assert out.getvalue().count("NATS has no log") == 1
        assert await streams_of(own_server.url) == set()
        await own_server.stop(SIGKILL)
        shutil.rmtree(store)
        away.rename(store)
        await own_server.start()
        connection = await Connection.open(own_server.url, "test")
        assert (await read_setup_state(connection)).missing == []
        # Other parts are created, also after an interruption.
        await connection.jetstream.delete_stream(BODIES)

        async def is_whole() -> bool:
            await repair.check()
            return not (await read_setup_state(connection)).missing

        await until(is_whole, 20)
        await connection.jetstream.delete_stream(STREAM)
        await until(is_whole, 20)
        await connection.close()
    finally:
        await repair.close()
