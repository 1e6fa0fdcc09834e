"""The estimated position of a turn in the queue."""

import asyncio

import pytest

from tailrace.gateway.turns import queue_estimate
from tailrace.gateway.turns.queue_estimate import QueueEstimate, QueueState
from tailrace.proto.generator_health import GeneratorHealth
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Rpc
from tailrace.proto.nats.leases import Backlog
from tests.harness.service_builders import UNUSED

A, B = Tenant("a"), Tenant("b")


def state(
    *generators: tuple[int, int, dict[Tenant, int]], undelivered: int = 0, leased: int = 0, undelivered_s: float = 0.0
) -> QueueState:
    """Each generator has its held turns, its free slots, and the tenants that wait."""
    return QueueState([GeneratorHealth(True, *one) for one in generators], undelivered, leased, undelivered_s)


@pytest.mark.parametrize(
    ("queue", "ahead"),
    [
        (state((1, 3, {})), None),
        (state((3, 1, {B: 5})), None),
        (state((3, 1, {A: 0})), 0),
        (state((3, 1, {A: 2}), (3, 1, {A: 1})), 3),
        (state((3, 1, {A: 2}), (1, 3, {})), None),
        (state((6, 1, {A: 2}), leased=10), 6),
        (state((6, 0, {B: 2}), undelivered=7, leased=10), 7),
        (state((3, 1, {B: 5}), undelivered=7, undelivered_s=0.9), None),
        (state((3, 1, {B: 5}), undelivered=7, undelivered_s=1.0), 7),
        (state(undelivered=2), 2),
        (state(), None),
    ],
    ids=[
        *("free", "another-waits", "share-used", "waiting", "one-free", "given-back", "full"),
        *("being-fetched", "fetched-late", "none-runs", "unknown"),
    ],
)
def test_turns_ahead_of_a_tenants_next_turn(queue: QueueState, ahead: int | None) -> None:
    assert queue.count_ahead(A) == ahead
    assert queue.count_ahead(A, submitted=4) == (None if ahead is None else ahead + 4)


def test_the_oldest_waiting_turn_and_the_orphaned_ones_of_all_generators() -> None:
    held = [GeneratorHealth(ok=True, held=3, free=1, oldest_waiting_s=4.0), GeneratorHealth(ok=True, held=2, free=1)]
    queue = QueueState(held, undelivered=2, leased=9, undelivered_s=1.5)
    assert (queue.oldest_waiting_s, queue.orphan_count) == (4.0, 4)
    assert (state().oldest_waiting_s, state((3, 1, {})).orphan_count) == (0.0, 0)


async def test_a_turn_that_is_stored_during_a_refresh_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers to the refresh may lack it."""
    has_read = asyncio.Event()

    class NoGenerators(Rpc):
        async def every_health(self, *_: object, **__: object) -> list[bytes]:
            has_read.set()
            return []

    async def read_backlog(*_: object) -> Backlog:
        estimate.estimate_position(A)
        return Backlog(waiting=2, leased=0, delivered=Seq(1), floor=Seq(1))

    async def read_oldest(*_: object) -> None: ...

    monkeypatch.setattr(queue_estimate, "consumer_backlog", read_backlog)
    monkeypatch.setattr(queue_estimate, "oldest_request_at", read_oldest)
    estimate = QueueEstimate(UNUSED, NoGenerators(UNUSED), most=100)
    watching = asyncio.create_task(estimate.watch())
    estimate.estimate_position(A)
    await has_read.wait()
    assert estimate.estimate_position(A) == 4
    watching.cancel()
