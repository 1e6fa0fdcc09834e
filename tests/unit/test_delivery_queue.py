"""In which order entries are recorded, and which tenants' queries may be answered meanwhile."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.persistence import delivery_queue
from tailrace.persistence.catch_up import SharedCatchUp
from tailrace.persistence.delivery_queue import DeliveryQueue
from tailrace.persistence.recorder import FOLD_S, FOLDS_MAX, Recorder
from tailrace.persistence.rows import TurnRow
from tailrace.proto.entries import End, Request
from tailrace.proto.errors import Refused, StoreBusy
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats.leases import Delivery, Progress
from tailrace.proto.ownership import ScopedKey
from tailrace.testing import MemoryDeliveries, MemoryDelivery, MemoryLog, MemoryStore, MemoryTombstones
from tests.harness.turn_builder import completed_turn, request
from tests.harness.until import until
from tests.harness.virtual_time import run

LOUD, QUIET, THIRD = Tenant("loud"), Tenant("quiet"), Tenant("third")
FIRST = completed_turn("Light").stored


def key(tenant: Tenant, number: int = 0) -> TurnKey:
    return TurnKey(tenant, TurnId(f"turn-{number}"))


def entry(seq: int, tenant: Tenant, turn: int, number: int = 0, kind: type = Request) -> MemoryDelivery:
    """The delivery of the entry at `seq`, with the given number; 0: `seq` is also its number."""
    [stored] = [one for one in FIRST if isinstance(one.entry, kind)]
    delivery = MemoryDelivery(key(tenant, turn), type(stored)(Seq(seq), stored.at, stored.entry))
    delivery.number = number or seq
    return delivery


def seqs(batch: Sequence[Delivery]) -> list[int]:
    return [one.seq for one in batch]


def take(queue: DeliveryQueue, most: int) -> list[Delivery]:
    """Takes a whole batch."""
    return list(chain.from_iterable(queue.take(most)))


def batches(queue: DeliveryQueue, most: int) -> list[list[int]]:
    """Records all that waits; returns the batches."""
    found = []
    while batch := take(queue, most):
        found.append(seqs(batch))
        queue.settle(batch)
    return found


def test_tenants_are_recorded_in_turn_and_each_batch_has_the_oldest_entry() -> None:
    queue = DeliveryQueue()
    queue.add(entry(seq, LOUD, seq) for seq in range(1, 7))
    queue.add([entry(7, QUIET, 1), entry(8, QUIET, 2), entry(9, THIRD, 1)])
    assert batches(queue, 3) == [[1, 7, 9], [2, 8, 3], [4, 5, 6]]


@pytest.mark.parametrize("most", [1, 2])
def test_a_small_batch_has_the_oldest_turn_and_the_next_tenants(most: int) -> None:
    """Otherwise the second tenant would wait until all turns of the first one are recorded."""
    queue = DeliveryQueue()
    queue.add(
        entry(2 * turn + number, LOUD, turn, kind=kind)
        for turn in (0, 1, 2)
        for number, kind in ((1, Request), (2, End))
    )
    queue.add([entry(7, QUIET, 1)])
    assert batches(queue, most) == [[1, 2, 7], [3, 4, 5, 6]]


def test_the_waiting_entries_of_a_turn_are_recorded_together() -> None:
    """A second delivery of an entry replaces the first one."""
    queue = DeliveryQueue()
    queue.add([entry(1, LOUD, 1), entry(2, LOUD, 2), entry(3, LOUD, 1, kind=End), again := entry(1, LOUD, 1, 4)])
    assert (len(queue), again in list(queue.leases())) == (3, True)
    assert batches(queue, 9) == [[1, 3, 2]]


@example([*((LOUD, turn) for turn in range(6)), (QUIET, 0), (THIRD, 0), (QUIET, 1), (THIRD, 1)], 1)
@given(st.lists(st.tuples(st.sampled_from([LOUD, QUIET, THIRD]), st.integers(0, 9)), max_size=40), st.integers(1, 8))
def test_the_recorded_sequence_grows_with_each_batch_and_is_never_too_high(
    entries: list[tuple[Tenant, int]], most: int
) -> None:
    """A lost commit is noticed by it, and a restored database must not claim what it lacks."""
    queue, left, last = DeliveryQueue(), set(range(1, len(entries) + 1)), 0
    queue.add(entry(seq, tenant, turn) for seq, (tenant, turn) in enumerate(entries, 1))
    while batch := take(queue, most):
        reached = queue.reached_with(batch)
        queue.settle(batch)
        left -= set(seqs(batch))
        assert last < reached < min(left, default=len(entries) + 1)
        last = reached
    assert not left


def progress(delivered: int, floor: int = 0, *, number: int = 0, last: int = 0, leased: int = 1) -> Progress:
    """By default, the last delivered entry is the log's last, and deliveries have the numbers of their entries."""
    end = Seq(last or delivered)
    return Progress(end, Seq(delivered), Seq(delivered), number or delivered, Seq(floor), leased)


def test_a_tenant_is_recorded_although_another_is_not() -> None:
    queue = DeliveryQueue()
    queue.add([entry(1, LOUD, 1), entry(2, QUIET, 1), entry(3, LOUD, 2)])
    queue.settle([entry(2, QUIET, 1)])
    now = progress(3)
    assert [queue.has_recorded(tenant, Seq(3), now) for tenant in (QUIET, THIRD, LOUD, None)] == [
        True,
        True,
        False,
        False,
    ]
    assert queue.has_recorded(None, Seq(3), progress(3, floor=3))
    assert queue.has_recorded(LOUD, Seq(3), progress(3, floor=3))


@pytest.mark.parametrize(
    ("numbers", "now", "is_recorded"),
    [
        pytest.param([1, 2], progress(2), True, id="all deliveries have come"),
        pytest.param([1, 2], progress(2, last=3), False, id="an entry is not delivered yet"),
        pytest.param([1, 2], progress(3), False, id="a delivery is on its way, or went to another process"),
        pytest.param([1, 2], progress(2, number=3), False, id="an entry was delivered again, to another process"),
        pytest.param([1, 3], progress(2, number=3), False, id="another process has received a delivery"),
        pytest.param([1, 3], progress(2, number=3, floor=2), True, id="and has recorded it"),
        pytest.param(
            [4, 5], progress(2, number=5), False, id="an earlier process may not have recorded its deliveries"
        ),
        pytest.param([1, 2], progress(3, number=2), False, id="after a failover the numbers are of other entries"),
    ],
)
def test_a_tenant_is_recorded_only_if_this_process_has_all_deliveries(
    numbers: list[int], now: Progress, *, is_recorded: bool
) -> None:
    queue = DeliveryQueue()
    queue.add(entry(seq, LOUD, seq, number) for seq, number in enumerate(numbers, 1))
    assert queue.has_recorded(QUIET, now.last, now) is is_recorded


@pytest.mark.parametrize("leased", [0, 1])
def test_after_a_start_the_deliveries_to_earlier_processes_are_waited_for(leased: int) -> None:
    queue = DeliveryQueue()
    queue.begin(progress(8, floor=5, leased=leased))
    queue.add([entry(9, LOUD, 1)])
    assert queue.has_recorded(QUIET, Seq(9), progress(9, floor=5)) is not bool(leased)
    assert queue.has_recorded(QUIET, Seq(9), progress(9, floor=8))


def test_what_was_read_before_a_delivery_does_not_tell_what_other_processes_have_received() -> None:
    """The delivery with the number 3 went to another process after the progress was read, and is not recorded."""
    queue, before, after = DeliveryQueue(), progress(2, floor=1), progress(3, floor=2, last=3)
    queue.add([entry(1, LOUD, 1), entry(2, LOUD, 1), entry(4, LOUD, 2)])
    assert not queue.has_recorded(QUIET, before.last, before)
    assert not queue.has_recorded(QUIET, Seq(4), progress(4, floor=2))
    queue.add([entry(5, LOUD, 2), entry(7, LOUD, 3)])
    assert not queue.has_recorded(QUIET, after.last, after)
    assert not queue.has_recorded(QUIET, Seq(7), progress(7, floor=3))
    queue.add([entry(8, LOUD, 4)])
    assert queue.has_recorded(QUIET, Seq(8), progress(8, floor=7))


def test_entries_that_are_given_back_are_not_recorded_yet() -> None:
    """Until another process has recorded them."""
    queue = DeliveryQueue()
    queue.add([entry(1, LOUD, 1), entry(2, QUIET, 1)])
    take(queue, 1)
    assert seqs(queue.give_back()) == [1, 2]
    assert (len(queue), take(queue, 9)) == (0, [])
    assert not queue.has_recorded(QUIET, Seq(2), progress(2))
    assert queue.has_recorded(QUIET, Seq(2), progress(2, floor=2))


def test_the_memory_for_waiting_entries_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The payload of a further entry is read from the log."""
    first, second, third = [entry(seq, LOUD, seq) for seq in (1, 2, 3)]
    monkeypatch.setattr(delivery_queue, "KEPT_BYTES_MAX", first.kept_bytes)
    queue = DeliveryQueue()
    queue.add([first, second])
    assert (bool(first.kept_bytes), second.kept_bytes) == (True, 0)
    take(queue, 1)
    queue.add([third])
    assert third.kept_bytes


def test_a_query_does_not_wait_for_the_backlog_of_another_tenant() -> None:
    """The quiet tenant's turn is recorded within two transactions, and its query is answered. The loud one's is not."""

    async def record() -> tuple[int, int, list[str]]:
        log, deliveries, store, queue = MemoryLog(), MemoryDeliveries(), MemoryStore(), DeliveryQueue()
        database: Any = store

        async def write() -> None:
            await asyncio.sleep(1)

        store.write = write
        for number in range(100):
            deliveries.add(key(LOUD, number), log.store(key(LOUD, number), request()))
        recorder = Recorder(log, MemoryTombstones(), deliveries, database, (), queue, batch_max=10, retry_wait_s=1)
        catch_up = SharedCatchUp(deliveries, queue.has_recorded, lambda: recorder.failure, 3.0)
        stop, refused = asyncio.Event(), []
        recording = asyncio.create_task(recorder.run(stop))
        await asyncio.sleep(0.5)
        deliveries.add(key(QUIET), log.store(key(QUIET), request()))
        await catch_up.wait(QUIET)
        behind, transactions = len(store.rows), store.transactions
        assert key(QUIET) in store.rows
        for tenant in (LOUD, None):
            with pytest.raises(Refused) as error:
                await catch_up.wait(tenant)
            refused.append(error.value.code)
        stop.set()
        await recording
        return behind, transactions, refused

    assert run(record()) == (20, 2, ["persistence_unavailable"] * 2)


class LargeTurns(MemoryLog):
    """A log whose loud turns take `fold_s` each, one after the other: their folds need the CPU."""

    fold_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._cpu = asyncio.Lock()

    async def read_turn_upto(self, key: ScopedKey, reached: Seq, enough: int | None = None) -> Turn:
        if key.tenant == LOUD:
            async with self._cpu:
                await asyncio.sleep(self.fold_s)
        return await super().read_turn_upto(key, reached, enough)


@pytest.mark.parametrize("fold_s", [0.1, 0.4])
def test_no_query_waits_for_a_batch_of_large_turns_and_each_turn_is_recorded_once(
    monkeypatch: pytest.MonkeyPatch, fold_s: float
) -> None:
    """A batch of 100 of them would take 10 or 40 s. One turn may take longer than FOLD_S."""
    monkeypatch.setattr(LargeTurns, "fold_s", fold_s)

    async def record() -> tuple[list[float], Counter[TurnKey], int]:
        log, deliveries, store, queue = LargeTurns(), MemoryDeliveries(), MemoryStore(), DeliveryQueue()
        database: Any = store
        written = Counter[TurnKey]()

        async def record_rows(rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:
            written.update(TurnKey(Tenant(row.tenant), TurnId(row.turn)) for row in rows)
            await MemoryStore.record(store, rows, reached)

        database.record = record_rows
        for number in range(100):
            deliveries.add(key(LOUD, number), log.store(key(LOUD, number), request()))
        recorder = Recorder(log, MemoryTombstones(), deliveries, database, (), queue, batch_max=100, retry_wait_s=1)
        catch_up = SharedCatchUp(deliveries, queue.has_recorded, lambda: recorder.failure, 3.0)
        stop, waited = asyncio.Event(), list[float]()
        recording = asyncio.create_task(recorder.run(stop))
        for number in range(5):
            await asyncio.sleep(0.5)
            deliveries.add(key(QUIET, number), log.store(key(QUIET, number), request()))
            began = asyncio.get_running_loop().time()
            await catch_up.wait(QUIET)
            assert key(QUIET, number) in store.rows
            waited.append(asyncio.get_running_loop().time() - began)
        assert not deliveries.is_done
        await until(lambda: deliveries.is_done, 200)
        stop.set()
        await recording
        return waited, written, max(one.times for one in deliveries.delivered)

    waited, written, times = run(record())
    assert max(waited) < 2 * (FOLD_S + FOLDS_MAX * fold_s)
    assert set(written.values()) == {1}
    assert (len(written), times) == (105, 1)


def test_what_cannot_be_recorded_is_given_back_with_all_that_waits() -> None:
    """Another process may then record it. Afterwards, everything is recorded."""

    async def record() -> tuple[int, int]:
        log, deliveries, store = MemoryLog(), MemoryDeliveries(), MemoryStore()
        database: Any = store
        errors = [StoreBusy("locked")]

        async def write() -> None:
            if errors:
                raise errors.pop()

        store.write = write
        for number in range(30):
            deliveries.add(key(LOUD, number), log.store(key(LOUD, number), request()))
        recorder = Recorder(log, MemoryTombstones(), deliveries, database, (), batch_max=10, retry_wait_s=1)
        stop = asyncio.Event()
        recording = asyncio.create_task(recorder.run(stop))
        await until(lambda: deliveries.is_done)
        stop.set()
        await recording
        return len(store.rows), max(one.times for one in deliveries.delivered)

    assert run(record()) == (30, 2)


def test_the_recorder_ends_if_leases_cannot_be_renewed_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each entry that waits long would be delivered again and again, also to other processes."""

    async def fail(_: Delivery) -> None:
        raise MemoryError

    async def record() -> None:
        log, deliveries, store = MemoryLog(), MemoryDeliveries(), MemoryStore()
        database: Any = store

        async def write() -> None:
            await asyncio.sleep(2 * deliveries.renew_every_s)
            monkeypatch.setattr(MemoryDelivery, "renew", fail)

        store.write = write
        for number in range(30):
            deliveries.add(key(LOUD, number), log.store(key(LOUD, number), request()))
        recorder = Recorder(log, MemoryTombstones(), deliveries, database, (), batch_max=3, retry_wait_s=1)
        with pytest.raises(MemoryError):
            await recorder.run(asyncio.Event())
        assert not deliveries.is_done

    run(record())
