"""The estimated position of a turn in the queue."""

import pytest

from tailrace.gateway.turns.queue_estimate import QueueState
from tailrace.proto.generator_health import GeneratorHealth
from tailrace.proto.ids import Tenant

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
