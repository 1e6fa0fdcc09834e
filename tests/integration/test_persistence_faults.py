"""What can befall the database while turns stream: nobody who streams notices, /readyz tells, and no turn is missing.

Each fault is the real one: another program's lock, a disk that is full or read-only, noise in the file, a file that is
gone. Persistence is kept alive as `up` keeps it, and nobody else mends anything but what only a person can.
"""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.persistence.__main__ import serve
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rows import TurnRow
from tailrace.persistence.settings import Settings
from tailrace.persistence.store import Store
from tailrace.proto.errors import StoreError
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId
from tailrace.proto.nats import Connection, Deliveries, Delivery, Tombstones, TurnLog
from tailrace.proto.subjects import PERSISTENCE, TurnKey
from tests.harness.generator_in_loop import words, working
from tests.harness.persistence_in_loop import QUICK
from tests.harness.processes import as_user
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway
from tests.integration.test_persistence_recorder import folds, opened, recording, rows, shorten_lease, write

Fault = Callable[[Path], Any]

PAGE_BYTES = 4096
DISK_BYTES = 4 * 1024**2
AGAIN_S = 0.1
# A rebuilt database has them all; under a lock, a start that waited for it has to come first.
HEAL_S_MAX = 30.0
WORDS = 40


@asynccontextmanager
async def kept_alive(nats_url: str, database: Path) -> AsyncIterator[None]:
    """Persistence, started again whatever ends it."""
    settings = Settings(nats_url=nats_url, database=database, **QUICK)  # type: ignore[arg-type]
    stop = asyncio.Event()

    async def lives() -> None:
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            connection, ends = (
                await Connection.open(as_user(nats_url, PERSISTENCE), "test-persistence"),
                asyncio.Event(),
            )
            life = asyncio.create_task(serve(settings, connection, ends))
            await asyncio.wait([life, stopping], return_when=asyncio.FIRST_COMPLETED)
            ends.set()
            with suppress(StoreError):
                await life
            await connection.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), AGAIN_S)

    living = asyncio.create_task(lives())
    try:
        yield
    finally:
        stop.set()
        await living


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one of its own; to mount it takes root."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(mounted)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("nobody but root can mount a disk: faults of a real disk are NOT tested here")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program has it, as a backup may."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def full(database: Path) -> Iterator[None]:
    """Not a byte is left on its disk."""
    filler = database.with_name("filler")
    with filler.open("wb", buffering=0) as filling, suppress(OSError):
        while True:
            filling.write(b"x" * PAGE_BYTES)
    yield
    filler.unlink()


@contextmanager
def noise(database: Path) -> Iterator[None]:
    """Pages of the file are not what was written there; the first one, with the shape of the tables, is."""
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with database.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(os.urandom(database.stat().st_size - PAGE_BYTES))
    yield


def spoil(database: Path, index: str) -> None:
    """Noise in one page: that of an index which only questions read while nothing new is asked."""
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((page,),) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (index,)).fetchall()
    with database.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(os.urandom(PAGE_BYTES))


@contextmanager
def replaced(database: Path) -> Iterator[None]:
    """By something that is no database."""
    other = database.with_name("other")
    other.write_bytes(b"not a database" * 1000)
    other.rename(database)
    yield


@contextmanager
def deleted(database: Path) -> Iterator[None]:
    database.unlink()
    yield


@contextmanager
def folder_deleted(database: Path) -> Iterator[None]:
    rmtree(database.parent)
    yield


async def streamed(gateway: Gateway, tag: str) -> TurnId:
    """A turn that was asked and told to its end, with every word of it."""
    body = {"message": f"#sim words={WORDS} rate=100 tag={tag}"}
    asked = await gateway.client.post("/v1/turns", json=body)
    assert asked.status_code == 202, asked.text
    told = await gateway.client.get(asked.json()["links"]["events"], params={"dialect": "text"})
    assert told.text == words(WORDS, tag)
    return TurnId(asked.json()["turn"])


async def is_ready(gateway: Gateway) -> bool:
    report = (await gateway.client.get("/readyz")).json()["persistence"]
    return bool(report["ok"])


async def has_trouble(gateway: Gateway) -> str:
    """What /readyz says of it."""
    report = (await gateway.client.get("/readyz")).json()["persistence"]
    return "" if report["ok"] else str(report["detail"])


@pytest.mark.rule("F17")
@pytest.mark.parametrize(("fault", "why"), [(locked, "SQLITE_BUSY"), (full, "SQLITE_FULL")], ids=["locked", "full"])
async def test_what_a_person_has_to_mend_is_waited_for(
    own_server: NatsServer,
    own_log: TurnLog,
    own_connection: Connection,
    new_gateway: NewGateway,
    claude: str,
    tenant: Tenant,
    disk: Path,
    fault: Fault,
    why: str,
) -> None:
    """Answers are told whole, nothing is acknowledged, /readyz says why; mended, every turn is recorded (fault F17)."""
    database, gateway = disk / "tailrace.db", await new_gateway(own_server.url)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with working(own_server.url, claude), kept_alive(own_server.url, database):
        turns = [await streamed(gateway, "before")]
        await until(deliveries.is_drained)
        floor = (await deliveries.backlog()).floor
        with fault(database):
            turns += await asyncio.gather(*(streamed(gateway, f"during{number}x") for number in range(3)))

            async def is_told() -> bool:
                return why in await has_trouble(gateway)

            await until(is_told)
            assert (await deliveries.backlog()).floor == floor
        await until(deliveries.is_drained, HEAL_S_MAX)
        await until(lambda: is_ready(gateway))
        turns.append(await streamed(gateway, "after"))
        await until(deliveries.is_drained)
    assert rows(database) == await folds(own_log, [TurnKey(tenant, turn) for turn in turns])


@pytest.mark.rule("F17")
@pytest.mark.parametrize("fault", [noise, replaced, deleted, folder_deleted])
async def test_what_nobody_can_mend_is_made_again(
    own_server: NatsServer,
    own_log: TurnLog,
    own_connection: Connection,
    new_gateway: NewGateway,
    claude: str,
    tenant: Tenant,
    tmp_path: Path,
    fault: Fault,
) -> None:
    """From the log, by itself, while answers are told whole; what was damaged lies beside it (F17)."""
    database, gateway = tmp_path / "folder" / "tailrace.db", await new_gateway(own_server.url)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with working(own_server.url, claude), kept_alive(own_server.url, database):
        turns = [await streamed(gateway, f"before{number}x") for number in range(2)]
        await until(deliveries.is_drained)
        with fault(database):
            turns += await asyncio.gather(*(streamed(gateway, f"during{number}x") for number in range(3)))
        keys = [TurnKey(tenant, turn) for turn in turns]

        async def is_whole() -> bool:
            with suppress(sqlite3.Error):
                return rows(database) == await folds(own_log, keys)
            return False

        await until(is_whole, HEAL_S_MAX)
        await until(lambda: is_ready(gateway), HEAL_S_MAX)
    assert rows(database) == await folds(own_log, keys)


async def test_a_page_that_only_a_question_reads_is_found_damaged(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, claude: str, tenant: Tenant, tmp_path: Path
) -> None:
    """No turn is written that would come by it: who asks for history gets a 503, and then the history."""
    database, gateway = tmp_path / "folder" / "tailrace.db", await new_gateway(own_server.url)
    async with working(own_server.url, claude):
        async with kept_alive(own_server.url, database):
            turn = await streamed(gateway, "before")
            await until(lambda: _is_recorded(gateway, turn))
        async with kept_alive(own_server.url, database):
            await until(lambda: is_ready(gateway))
            spoil(database, "sessions_by_update")
            answers = []

            async def is_told() -> bool:
                answers.append(await gateway.client.get("/v1/sessions?limit=1"))
                return answers[-1].status_code == 200 and bool(answers[-1].json()["data"])

            await until(is_told, HEAL_S_MAX)
    assert {answer.status_code for answer in answers} == {503, 200}
    assert is_set_aside(database)


async def test_a_start_on_a_disk_that_is_read_only_is_tried_until_it_is_not(
    own_server: NatsServer,
    own_log: TurnLog,
    own_connection: Connection,
    new_gateway: NewGateway,
    claude: str,
    tenant: Tenant,
    disk: Path,
) -> None:
    """As disks become after an error. It is moved nowhere, and nothing is made again (F17)."""
    database, gateway = disk / "tailrace.db", await new_gateway(own_server.url)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with working(own_server.url, claude):
        async with kept_alive(own_server.url, database):
            turns = [await streamed(gateway, "before")]
            await until(deliveries.is_drained)
        inode, floor = database.stat().st_ino, (await deliveries.backlog()).floor
        with ExitStack() as mending:
            remount(disk, "ro")
            mending.callback(remount, disk, "rw")
            async with kept_alive(own_server.url, database):
                turns += await asyncio.gather(*(streamed(gateway, f"during{number}x") for number in range(3)))
                assert await has_trouble(gateway)
                assert (await deliveries.backlog()).floor == floor
                mending.close()
                await until(deliveries.is_drained, HEAL_S_MAX)
                await until(lambda: is_ready(gateway))
    assert database.stat().st_ino == inode
    assert rows(database) == await folds(own_log, [TurnKey(tenant, turn) for turn in turns])


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


class Dying(Store):
    """A store that does not come to its transaction."""

    async def record(self, _: Sequence[TurnRow], __: Seq = BEFORE_FIRST) -> None:
        self.reached.set()
        await asyncio.Event().wait()

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.reached = asyncio.Event()


@pytest.mark.rule("F18")
@pytest.mark.parametrize("acknowledged", [None, 0, 1, 2, 3, 4])
async def test_killed_between_commit_and_any_acknowledgement_rows_are_the_fold(
    own_connection: Connection,
    own_log: TurnLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    acknowledged: int | None,
) -> None:
    """Before the commit (None), after it, and after each acknowledgement of a batch of four (F18)."""
    await shorten_lease(own_connection)
    keys, database = (
        [await write(own_log, "Light ", "scatters.") for _ in range(2)],
        tmp_path / "folder" / "tailrace.db",
    )
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    done, reached, left = Delivery.ack, asyncio.Event(), acknowledged or 0

    async def dying(self: Delivery) -> None:
        nonlocal left
        if not left:
            reached.set()
            await asyncio.Event().wait()
        left -= 1
        await done(self)
        if not left:
            reached.set()
            await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Delivery, "ack", dying)
        async with opened(database, Dying if acknowledged is None else Store) as store:
            if isinstance(store, Dying):
                reached = store.reached
            recorder = Recorder(own_log, Tombstones(own_connection), deliveries, store, batch_max=9, retry_wait_s=0.05)
            killed = asyncio.create_task(recorder.run(asyncio.Event()))
            await until(reached.is_set)
            killed.cancel()
            await asyncio.wait([killed])
    await own_connection.client.flush()
    assert (await deliveries.backlog()).leased == 4 - (acknowledged or 0)
    assert rows(database) == ([] if acknowledged is None else await folds(own_log, keys))
    async with opened(database) as store, recording(own_log, deliveries, store):
        await until(deliveries.is_drained)
    assert rows(database) == await folds(own_log, keys)


def is_set_aside(database: Path) -> bool:
    return Path(f"{database}.damaged-1").exists()


async def _is_recorded(gateway: Gateway, turn: TurnId) -> bool:
    return (await gateway.client.get(f"/v1/turns/{turn}")).status_code == 200
