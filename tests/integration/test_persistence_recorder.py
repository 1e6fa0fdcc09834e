"""Recording turns of the log in SQLite: every turn once, and nothing is acknowledged before it is committed."""

import asyncio
import math
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from prometheus_client import REGISTRY

from tailrace.features.persistence import TABLES
from tailrace.features.unstored import unstored_turns
from tailrace.features.unstored.table import UnstoredTable
from tailrace.features.unstored.unstored_turns import FIRST_TURN, UnstoredTurns
from tailrace.features.usage.persistence import UsageTable
from tailrace.persistence.catch_up import SharedCatchUp
from tailrace.persistence.delivery_queue import DeliveryQueue
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rows import TurnRow, build_row
from tailrace.persistence.store import Store
from tailrace.proto import subjects
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import LogUnavailable, StoreRefused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnKey
from tailrace.proto.nats import Connection, Deliveries, Delivery, Tombstones, TurnLog
from tailrace.proto.nats.jetstream_log import ErasedEntries
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.resources import TurnToDelete
from tailrace.proto.subjects import CLAIMS_STREAM, PERSISTENCE, STREAM
from tests.harness.generator_in_loop import shorten_lease
from tests.harness.open_store import open_store
from tests.harness.stored_turns import with_batch, words_row
from tests.harness.turn_writer import OURS, new_writer, write_turn
from tests.harness.until import until, until_equal

LEASE_S = 0.4
ROWS = """
SELECT turns.*, usage.*, sessions.project, (
    SELECT json_group_array(sha256) FROM (
        SELECT sha256 FROM blob_uses WHERE tenant = turns.tenant AND turn = turns.turn ORDER BY sha256
    )
) AS blobs, (
    SELECT json_group_object(name, value) FROM (
        SELECT name, value FROM labels WHERE tenant = turns.tenant AND turn = turns.turn ORDER BY name
    )
) AS labels, coalesce(
    (SELECT words FROM searched WHERE searched.tenant = turns.tenant AND searched.turn = turns.turn), ''
) AS words
FROM turns
JOIN usage USING (tenant, session, turn) JOIN sessions USING (tenant, session) ORDER BY turn
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tailrace.db"


@pytest.fixture
async def deliveries(own_connection: Connection) -> Deliveries:
    """The consumer of persistence, with short leases."""
    await shorten_lease(own_connection, LEASE_S, PERSISTENCE)
    return await Deliveries.open(own_connection, PERSISTENCE)


def rows(database: Path) -> list[TurnRow]:
    """Reads all rows from the file, beside any process that has it open."""
    with closing(sqlite3.connect(database)) as reading:
        reading.row_factory = sqlite3.Row
        found = reading.execute(ROWS).fetchall()
    names = set(TurnRow.__struct_fields__) - {"added"}
    read = [TurnRow(**{name: one[name] for name in names}, added=words_row(one["words"])) for one in found]
    return [with_batch(row, one["batch"]) for row, one in zip(read, found, strict=True)]


async def expected_rows(log: TurnLog, keys: Sequence[TurnKey]) -> list[TurnRow]:
    """Returns the rows that the log implies."""
    return [
        build_row(key, await log.read_turn(ScopedKey.whole(key)), [one.rows for one in TABLES]) for key in sorted(keys)
    ]


def recorder(
    log: TurnLog, deliveries: Deliveries, store: Store, batch_max: int = 100, queue: DeliveryQueue | None = None
) -> Recorder:
    tombstones = Tombstones(log.connection)
    unstored = UnstoredTurns(log, tombstones, store, grace_s=600)
    return Recorder(log, tombstones, deliveries, store, [unstored], queue, batch_max=batch_max, retry_wait_s=0.05)


@asynccontextmanager
async def running_recorder(
    log: TurnLog, deliveries: Deliveries, store: Store, batch_max: int = 100, queue: DeliveryQueue | None = None
) -> AsyncIterator[Recorder]:
    """Runs a recorder during the block; raises its error."""
    stop = asyncio.Event()
    one = recorder(log, deliveries, store, batch_max, queue)
    running = asyncio.create_task(one.run(stop))
    try:
        yield one
    finally:
        stop.set()
        await running


async def record(log: TurnLog, deliveries: Deliveries, database: Path, batch_max: int = 100) -> list[TurnRow]:
    """Records all turns of the log; returns all rows."""
    async with open_store(database) as store, running_recorder(log, deliveries, store, batch_max):
        await until(deliveries.is_drained)
    return rows(database)


def count(name: str) -> float:
    return REGISTRY.get_sample_value(f"tailrace_persistence_{name}_total") or 0.0


@pytest.mark.rule("R93")
async def test_rows_of_another_process_during_a_start_do_not_look_like_a_restored_database(
    own_log: TurnLog, deliveries: Deliveries, database: Path
) -> None:
    """It would make the process that starts record the whole log again."""
    await write_turn(own_log, "Light ")

    async def read_before_another_records() -> Seq:
        async with open_store(database) as store:
            before = await store.read_recorded_upto()
        await record(own_log, deliveries, database)
        return before

    assert await deliveries.can_continue_after(read_before_another_records)
    assert (await deliveries.backlog()).floor > 0


class StuckStore(Store):
    """A store whose transaction does not return; `is_before`: it does not begin."""

    is_before = False

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.is_reached = asyncio.Event()
        self.may_return = asyncio.Event()

    async def record(self, rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:
        if not self.is_before:
            await super().record(rows, reached)
        self.is_reached.set()
        await self.may_return.wait()


class StuckBefore(StuckStore):
    is_before = True


@pytest.mark.rule("F18")
@pytest.mark.rule("R27")
@pytest.mark.parametrize("acknowledged", [None, 0, 1, 4])
async def test_a_recorder_killed_at_any_acknowledgement_records_each_turn_once(
    own_log: TurnLog, deliveries: Deliveries, database: Path, monkeypatch: pytest.MonkeyPatch, acknowledged: int | None
) -> None:
    """Before the commit (None), after it, and after acknowledgements of a batch of four (fault F18)."""
    keys = [await write_turn(own_log, "Light ", "scatters.") for _ in range(2)]
    ack, is_reached, left = Delivery.ack, asyncio.Event(), acknowledged or 0

    async def ack_some(self: Delivery) -> None:
        nonlocal left
        if left:
            left -= 1
            await ack(self)
        if not left:
            is_reached.set()
            await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Delivery, "ack", ack_some)
        async with open_store(database, StuckBefore if acknowledged is None else Store) as store:
            killed = asyncio.create_task(recorder(own_log, deliveries, store, 9).run(asyncio.Event()))
            await until(store.is_reached.is_set if isinstance(store, StuckBefore) else is_reached.is_set)
            killed.cancel()
            await asyncio.wait([killed])
    await own_log.connection.client.flush()
    assert (await deliveries.backlog()).leased == 4 - (acknowledged or 0)
    assert rows(database) == ([] if acknowledged is None else await expected_rows(own_log, keys))
    assert await record(own_log, deliveries, database) == await expected_rows(own_log, keys)


async def test_a_turn_that_the_process_has_no_memory_for_is_recorded_later(
    own_connection: Connection, own_log: TurnLog, deliveries: Deliveries, database: Path
) -> None:
    key = await write_turn(own_log, "Light")
    failures = [MemoryError]

    class LogWithoutMemory(TurnLog):
        async def read_turn_upto(self, key: ScopedKey, reached: Seq, enough: int | None = None) -> Turn:
            if failures:
                raise failures.pop()
            return await super().read_turn_upto(key, reached, enough)

    assert await record(LogWithoutMemory(own_connection), deliveries, database) == await expected_rows(own_log, [key])


async def test_leases_are_renewed_during_a_slow_commit(
    own_connection: Connection, own_log: TurnLog, deliveries: Deliveries, database: Path
) -> None:
    """Otherwise the log would deliver every entry twice."""
    await write_turn(own_log, "Light")
    async with open_store(database, StuckStore) as store, running_recorder(own_log, deliveries, store):
        assert isinstance(store, StuckStore)
        await until(store.is_reached.is_set)
        # Each call waits for half a second: together more than twice a lease.
        other = await Deliveries.open(own_connection, PERSISTENCE)
        assert [await other.next(10) for _ in range(2)] == [[], []]
        store.may_return.set()
        await until(deliveries.is_drained)


async def test_no_lease_expires_while_large_turns_are_recorded(
    own_connection: Connection, own_log: TurnLog, database: Path
) -> None:
    """Their folds hold up the event loop, which renews the leases. A query of another tenant is answered meanwhile."""
    await shorten_lease(own_connection, 1.0, PERSISTENCE)
    deliveries, quiet, turns = await Deliveries.open(own_connection, PERSISTENCE), Tenant("quiet"), 40

    class LargeTurns(TurnLog):
        async def read_ended_turn(self, key: ScopedKey, end: StoredEntry) -> Turn:
            turn = await super().read_ended_turn(key, end)
            if key.tenant != quiet:
                time.sleep(0.08)  # noqa: ASYNC251
            return turn

    keys = [await write_turn(own_log, "Light") for _ in range(turns)]
    log, queue = LargeTurns(own_connection), DeliveryQueue()
    async with open_store(database) as store, running_recorder(log, deliveries, store, queue=queue) as running:
        await until(lambda: len(queue))
        keys.append(await write_turn(own_log, "Light", tenant=quiet))
        await SharedCatchUp(deliveries, queue.has_recorded, lambda: running.failure, 3.0).wait(quiet)
        assert {turn.tenant for turn in rows(database)} >= {quiet}
        assert (await deliveries.progress()).leased
        await until(deliveries.is_drained)
        assert (await deliveries.backlog()).number == 2 * len(keys)
    assert rows(database) == await expected_rows(own_log, keys)


async def test_a_turn_that_cannot_be_recorded_delays_no_other_turn(
    own_connection: Connection, own_log: TurnLog, deliveries: Deliveries, database: Path
) -> None:
    """A turn that was purged, one whose fold raises, one that SQLite rejects (a cost beyond 64 bits), also with
    `store: false`: they are counted.

    A text that does not match the hash in its end is recorded, and counted too.
    """
    before = {name: count(name) for name in ("turns_left_out", "proof_mismatches")}
    mismatch, expensive = new_writer(own_log), new_writer(own_log)
    purged, unfoldable = await write_turn(own_log, "purged"), await write_turn(own_log, "unfoldable")
    for writer, wrong in ((mismatch, {"text_chars": 4}), (expensive, {"cost_nano_usd": 2**63})):
        await writer.open("Light")
        end = build_end(await own_log.read_turn(ScopedKey.whole(writer.key)), "completed")
        await writer.store(msgspec.structs.replace(end, **wrong))
    unstored = new_writer(own_log)
    await unstored.store_request(store=False)
    await unstored.begin("Light")
    end = build_end(await own_log.read_turn(ScopedKey.whole(unstored.key)), "completed")
    await unstored.store(msgspec.structs.replace(end, cost_nano_usd=2**63))
    good = await write_turn(own_log, "scatters")
    await own_connection.jetstream.purge_stream(STREAM, subject=subjects.entry(purged, "request"))

    class BrokenLog(TurnLog):
        async def read_turn_upto(self, key: ScopedKey, reached: Seq, enough: int | None = None) -> Turn:
            return await super().read_turn_upto(key, reached, enough) if key.plain != unfoldable else 1 / 0  # type: ignore[return-value]

        async def read_ended_turn(self, key: ScopedKey, end: StoredEntry) -> Turn:
            return await super().read_ended_turn(key, end) if key.plain != unfoldable else 1 / 0  # type: ignore[return-value]

    found = await record(BrokenLog(own_connection), deliveries, database)
    assert found == await expected_rows(own_log, [mismatch.key, good])
    (row,) = [one for one in found if one.turn == mismatch.key.turn]
    assert (row.text, row.text_chars) == ("Light", 4)
    assert count("proof_mismatches") - before["proof_mismatches"] == 1
    assert count("turns_left_out") - before["turns_left_out"] >= 4


@pytest.mark.rule("R109")
async def test_a_turn_with_store_false_whose_note_is_refused_delays_no_other_turn(
    own_log: TurnLog, deliveries: Deliveries, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: UnstoredTable, key: TurnKey, user: str | None) -> None:
        raise StoreRefused(f"{key.turn} {user}")

    monkeypatch.setattr(UnstoredTable, "put", refuse)
    before = count("turns_left_out")
    await new_writer(own_log).store_request(store=False)
    good = await write_turn(own_log, "Light")
    async with open_store(database) as store, running_recorder(own_log, deliveries, store):
        await until(deliveries.is_drained)
    assert rows(database) == await expected_rows(own_log, [good])
    assert count("turns_left_out") == before + 1


@pytest.mark.rule("R109")
async def test_without_the_feature_a_turn_with_store_false_is_left_out(
    own_log: TurnLog, deliveries: Deliveries, database: Path
) -> None:
    """And with another feature that handles other turns."""
    before = count("turns_left_out")
    await write_turn(own_log, "secret", store=False)
    good = await write_turn(own_log, "Light")

    class Others:
        async def divert(self, _: TurnKey, __: Turn) -> bool:
            return False

        async def find_to_delete(self, _: TurnKey) -> None:
            return None

        async def list_of_user(self, _: Tenant, __: str | None) -> list[TurnToDelete]:
            return []

    async with open_store(database) as store:
        tombstones = Tombstones(own_log.connection)
        plain = Recorder(own_log, tombstones, deliveries, store, [Others()], batch_max=100, retry_wait_s=0.05)
        stop = asyncio.Event()
        running = asyncio.create_task(plain.run(stop))
        await until(deliveries.is_drained)
        stop.set()
        await running
    assert rows(database) == await expected_rows(own_log, [good])
    assert count("turns_left_out") > before


@asynccontextmanager
async def running_erasure(unstored: UnstoredTurns) -> AsyncIterator[None]:
    stop = asyncio.Event()
    running = asyncio.create_task(unstored.run(stop))
    yield
    stop.set()
    await running


def read_due_metric() -> float | None:
    return REGISTRY.get_sample_value("tailrace_persistence_unstored_due")


@pytest.mark.rule("R109")
async def test_the_note_of_a_turn_with_store_false_is_removed_as_the_last_step_of_its_erasure(
    own_connection: Connection, own_log: TurnLog, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure or a kill before it leaves the note. After it, a restart finds no turn to erase."""
    tries: set[TurnKey] = set()
    is_failing = True

    forget = UnstoredTable.forget

    async def fail(self: UnstoredTable, turns: Sequence[TurnKey]) -> None:
        tries.update(turns)
        if is_failing:
            raise StoreRefused("full")
        await forget(self, turns)

    monkeypatch.setattr(UnstoredTable, "forget", fail)
    monkeypatch.setattr(unstored_turns, "INTERVAL_S", 0.05)
    tombstones = Tombstones(own_connection)
    written, requestless = [await write_turn(own_log, "Light", store=False) for _ in range(2)]
    request, *_ = await own_log.read_entries(ScopedKey.whole(requestless))
    await own_connection.jetstream.delete_msg(STREAM, request.seq)
    keys = {written, requestless, new_writer(own_log).key}
    for key in keys:
        await tombstones.note_erasure(key)

    async def count_notes() -> int:
        return (await own_connection.jetstream.stream_info(CLAIMS_STREAM)).state.messages

    async with open_store(database) as store:
        async with running_erasure(UnstoredTurns(own_log, tombstones, store, grace_s=0)):
            await until(lambda: tries == keys)
        assert await count_notes() == len(keys)
        is_failing = False
        async with running_erasure(UnstoredTurns(own_log, tombstones, store, grace_s=0)):
            await until_equal(lambda: tombstones.next_erasure_note(BEFORE_FIRST), None)
            await until(lambda: read_due_metric() == 0)
        for key in keys:
            assert await own_log.read_entries(ScopedKey.whole(key)) == []
        await until_equal(count_notes, 0)


@pytest.mark.rule("R109")
@pytest.mark.parametrize("is_begun", [False, True], ids=["not_begun", "begun"])
async def test_a_turn_with_store_false_is_counted_once_and_erased_although_another_cannot_be(
    own_connection: Connection, deliveries: Deliveries, database: Path, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    """Also if its `end` is delivered again: the process was killed before its acknowledgement.

    `is_begun`: some entries of the other turn can be erased.
    """

    class StuckLog(TurnLog):
        stuck: TurnKey | None = None

        async def erase(self, key: TurnKey, deadline: float = math.inf, *, purges_rest: bool = False) -> ErasedEntries:
            if key == self.stuck and is_begun:
                return ErasedEntries(1, is_gone=False)
            if key == self.stuck:
                raise LogUnavailable("stuck")
            return await super().erase(key, deadline, purges_rest=purges_rest)

    monkeypatch.setattr(unstored_turns, "INTERVAL_S", 0.05)
    log = StuckLog(own_connection)
    stuck, erased = [await write_turn(log, "Light", store=False) for _ in range(2)]
    log.stuck = stuck

    async def is_erased() -> bool:
        return read_due_metric() == 1 and not await log.has_turn(ScopedKey.whole(erased))

    async with open_store(database) as store:
        async with running_recorder(log, deliveries, store):
            await until(deliveries.is_drained)
        first, restarted = (UnstoredTurns(log, Tombstones(own_connection), store, grace_s=0) for _ in range(2))
        assert await first.divert(erased, await log.read_turn(ScopedKey.whole(erased)))
        async with running_erasure(first):
            await until(is_erased)
        async with running_erasure(restarted):
            await until(is_erased)
            log.stuck = None
            await until(lambda: read_due_metric() == 0)
        assert not await log.has_turn(ScopedKey.whole(stuck))
        assert await UnstoredTable(store).every(FIRST_TURN) == []
        today = datetime.now(UTC).date()
        usage = (await UsageTable(store).usage(OURS, "day", today - timedelta(days=1), today, "", 9))[0]
    assert sum(day.turns for day in usage) == 2
