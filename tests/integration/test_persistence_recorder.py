"""From the log into SQLite: every turn once, nothing acknowledged before it is written, and streaming unaffected."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from signal import SIGKILL

import msgspec
import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rows import TurnRow, build_row
from tailrace.persistence.store import Store
from tailrace.proto import subjects
from tailrace.proto.end_entry import build_end
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, Tombstones, TurnLog, streams
from tailrace.proto.nats.log_server import BATCH, Page
from tailrace.proto.records import GetTurn, TurnRecord, record_from_fold
from tailrace.proto.subjects import PERSISTENCE, STREAM, TurnKey
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import persistence as process
from tests.harness.turn_writer import Writer
from tests.harness.until import until

OURS = Tenant("ours")
LEASE_S = 0.4
ROWS = """
SELECT turns.*, usage.*, sessions.project, (
    SELECT json_group_array(sha256) FROM (
        SELECT sha256 FROM blob_uses WHERE tenant = turns.tenant AND turn = turns.turn ORDER BY sha256
    )
) AS blobs
FROM turns
JOIN usage USING (tenant, session, turn) JOIN sessions USING (tenant, session) ORDER BY turn
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tailrace.db"


def new_key() -> TurnKey:
    return TurnKey(OURS, TurnId(new_id()))


async def write(log: TurnLog, *texts: str) -> TurnKey:
    """A whole turn that says `texts`."""
    writer = Writer(log, new_key())
    await writer.open(*texts)
    await writer.end()
    return writer.key


def rows(database: Path) -> list[TurnRow]:
    """What is in the file, whoever has it open."""
    with closing(sqlite3.connect(database)) as reading:
        reading.row_factory = sqlite3.Row
        found = reading.execute(ROWS).fetchall()
    return [TurnRow(**{name: one[name] for name in TurnRow.__struct_fields__}) for one in found]


async def folds(log: TurnLog, keys: Sequence[TurnKey]) -> list[TurnRow]:
    return [build_row(key, await log.turn(key)) for key in sorted(keys)]


async def shorten_lease(connection: Connection) -> None:
    """What nobody acknowledges comes again soon, and not after ten seconds."""
    (config,) = [one for one in streams.consumers() if one.durable_name == PERSISTENCE]
    await connection.jetstream.add_consumer(STREAM, config.evolve(ack_wait=LEASE_S))


@asynccontextmanager
async def recording(
    log: TurnLog, deliveries: Deliveries, store: Store, batch_max: int = 100
) -> AsyncIterator[Recorder]:
    """A recorder that is stopped when the block ends, and that broke nothing."""
    stop = asyncio.Event()
    tombstones = Tombstones(log._connection)
    recorder = Recorder(log, tombstones, deliveries, store, batch_max=batch_max, retry_wait_s=0.05)
    running = asyncio.create_task(recorder.run(stop))
    try:
        yield recorder
    finally:
        stop.set()
        await running


@asynccontextmanager
async def opened(database: Path, kind: type[Store] = Store) -> AsyncIterator[Store]:
    store = await kind.open(database, busy_timeout_s=0.05)
    await store.migrate()
    try:
        yield store
    finally:
        await store.close()


class Stuck(Store):
    """A store that has committed and does not come back until it is let."""

    async def record(self, rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:
        await super().record(rows, reached)
        self.committed.set()
        await self.let.wait()

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.committed = asyncio.Event()
        self.let = asyncio.Event()


async def test_the_row_of_a_turn_is_its_fold(own_server: NatsServer, own_log: TurnLog, database: Path) -> None:
    """Completed, failed, cancelled or running: database and log are equal (promise 4)."""
    ended = await write(own_log, "Light ", "scatters.")
    cancelled, running = Writer(own_log, new_key()), Writer(own_log, new_key())
    await cancelled.open("Light")
    await cancelled.end("cancelled")
    await running.ask()
    async with Persistence(own_server.url, database) as persistence:
        told = await persistence.ask(OURS, "turn", GetTurn(ended.turn), TurnRecord)
    assert told == record_from_fold(ended, await own_log.turn(ended))
    assert rows(database) == await folds(own_log, [ended, cancelled.key, running.key])


async def test_a_backlog_longer_than_a_batch_is_recorded(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """In several transactions."""
    keys = [await write(own_log, "Light") for _ in range(7)]
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database) as store, recording(own_log, deliveries, store, batch_max=3):
        await until(deliveries.is_drained)
    assert rows(database) == await folds(own_log, keys)


@pytest.mark.rule("R27")
@pytest.mark.rule("F18")
async def test_after_a_kill_between_commit_and_acknowledgement_each_turn_is_recorded_once(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Everything is delivered again, and writing it again changes nothing (fault F18)."""
    await shorten_lease(own_connection)
    key = await write(own_log, "Light")
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database, Stuck) as stuck:
        assert isinstance(stuck, Stuck)
        tombstones = Tombstones(own_connection)
        recorder = Recorder(own_log, tombstones, deliveries, stuck, batch_max=9, retry_wait_s=0.05)
        killed = asyncio.create_task(recorder.run(asyncio.Event()))
        await until(stuck.committed.is_set)
        killed.cancel()
        await asyncio.wait([killed])
    once = rows(database)
    assert (await deliveries.backlog()).leased == 2
    async with opened(database) as store, recording(own_log, deliveries, store):
        await until(deliveries.is_drained)
    assert rows(database) == once == await folds(own_log, [key])


async def test_repeated_kills_lose_no_turn(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tmp_path: Path
) -> None:
    """Every turn of the log is in the database once, wherever SIGKILL came (promise 5)."""
    keys: list[TurnKey] = []
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    await shorten_lease(own_connection)
    async with process(tmp_path, own_server.url, TAILRACE_BATCH_MAX=2) as persistence:
        for kill in range(3):
            keys += [await write(own_log, "Light ", "scatters.") for _ in range(20)]
            await until(lambda kill=kill: len(rows(tmp_path / "tailrace.db")) > 20 * kill)  # type: ignore[misc]
            await persistence.stop(SIGKILL)
            await persistence.start()
        await until(deliveries.is_drained, deadline_s=20)
    assert rows(tmp_path / "tailrace.db") == await folds(own_log, keys)


async def test_while_the_database_is_locked_turns_stay_in_the_log(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Nothing is acknowledged and health reports it; after the lock everything is written (F17)."""
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with Persistence(own_server.url, database) as persistence:
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            keys = [await write(own_log, "Light")]
            await until(lambda: _reports(persistence, "locked"))
            keys.append(await write(own_log, "scatters"))
            backlog = await deliveries.backlog()
            assert (backlog.waiting + backlog.leased, backlog.floor) == (4, 0)
            other.execute("ROLLBACK")
        await until(deliveries.is_drained)
        await until(lambda: _reports(persistence, ""))
    assert rows(database) == await folds(own_log, keys)


@pytest.mark.parametrize(
    ("breaks", "mends", "why"),
    [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000", "SQLITE_FULL"),
        ("PRAGMA query_only = ON", "PRAGMA query_only = OFF", "SQLITE_READONLY"),
    ],
)
async def test_while_the_disk_is_full_turns_stay_in_the_log(
    own_connection: Connection, own_log: TurnLog, database: Path, breaks: str, mends: str, why: str
) -> None:
    """A turn that is not on the disk is not acknowledged (fault F17)."""
    keys = [await write(own_log, "Light " * 10_000)]
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database) as store:
        await store._writer.execute_fetchall(breaks)
        async with recording(own_log, deliveries, store) as recorder:
            failure = await until(lambda: recorder.failure)
            assert why in failure
            assert (await deliveries.backlog()).floor == 0
            await store._writer.execute_fetchall(mends)
            await until(deliveries.is_drained)
            await until(lambda: not recorder.failure)
    assert rows(database) == await folds(own_log, keys)


async def test_leases_are_renewed_during_a_slow_commit(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Otherwise the log would deliver everything twice."""
    await shorten_lease(own_connection)
    await write(own_log, "Light")
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database, Stuck) as stuck:
        assert isinstance(stuck, Stuck)
        async with recording(own_log, deliveries, stuck):
            await until(stuck.committed.is_set)
            # Somebody else asks for about a second, more than twice as long as a lease lasts.
            other = await Deliveries.open(own_connection, PERSISTENCE)
            assert [await other.next(10) for _ in range(2)] == [[], []]
            stuck.let.set()
            await until(deliveries.is_drained)


async def test_a_text_that_does_not_match_its_hash_is_recorded_and_counted(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """The log is the truth; the metric shows the mismatch."""
    writer = Writer(own_log, new_key())
    await writer.open("Light")
    end = build_end(await own_log.turn(writer.key), "completed")
    await writer.store(msgspec.structs.replace(end, text_chars=4))
    before = count("proof_mismatches")
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database) as store, recording(own_log, deliveries, store):
        await until(deliveries.is_drained)
    (found,) = rows(database)
    assert (found.text, found.text_chars, count("proof_mismatches") - before) == ("Light", 4, 1)


async def test_a_turn_that_has_left_the_log_delays_no_other_turn(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """It cannot be recorded: it is counted and acknowledged."""
    gone, here = await write(own_log, "Light"), await write(own_log, "scatters")
    await own_connection.jetstream.purge_stream(STREAM, subject=subjects.entry(gone, "request"))
    before = count("turns_left_out")
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database) as store, recording(own_log, deliveries, store):
        await until(deliveries.is_drained)
    assert rows(database) == await folds(own_log, [here])
    assert count("turns_left_out") - before == 1


async def test_a_turn_that_cannot_be_folded_delays_no_other_turn(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """A bug costs one row and not all of history."""
    await write(own_log, "Light")
    good = await write(own_log, "scatters")

    class Broken(TurnLog):
        async def turn_upto(self, key: TurnKey, reached: Seq) -> Turn:
            return await super().turn_upto(key, reached) if key == good else 1 / 0  # type: ignore[return-value]

    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database) as store, recording(Broken(own_connection), deliveries, store):
        await until(deliveries.is_drained)
    assert rows(database) == await folds(own_log, [good])


async def test_a_row_that_sqlite_rejects_delays_no_other_turn(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """A cost beyond 64 bits is counted and left out; the batch's other turns are written."""
    before, here = count("turns_left_out"), [await write(own_log, "Light")]
    broken = Writer(own_log, new_key())
    await broken.open("Light")
    await broken.store(
        msgspec.structs.replace(build_end(await own_log.turn(broken.key), "completed"), cost_nano_usd=2**63)
    )
    here.append(await write(own_log, "scatters"))
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database) as store, recording(own_log, deliveries, store):
        await until(deliveries.is_drained)
    assert rows(database) == await folds(own_log, here)
    assert count("turns_left_out") - before >= 1


async def test_a_fold_from_a_lagging_replica_is_not_recorded_as_the_end(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Its `end` was delivered; recorded without it, the turn would run for ever."""
    key = await write(own_log, "Light")
    behind = 0

    class Behind(TurnLog):
        async def read(self, key: TurnKey, after: Seq, limit: int = BATCH) -> Page:
            nonlocal behind
            page = await super().read(key, after, limit)
            if after != BEFORE_FIRST:
                return page
            behind += 1
            return Page(page.entries[:1], is_last=True)

    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    async with opened(database) as store, recording(Behind(own_connection), deliveries, store):
        await until(deliveries.is_drained)
    assert behind
    assert rows(database) == await folds(own_log, [key])


async def _reports(persistence: Persistence, why: str) -> bool:
    health = await persistence.health()
    return health.ok == (not why) and why in health.detail


def count(name: str) -> float:
    return REGISTRY.get_sample_value(f"tailrace_persistence_{name}_total") or 0.0
