"""ByteSemaphore: never more bytes reserved than there are, FIFO order, no lost bytes."""

import asyncio
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.runtime.byte_semaphore import ByteSemaphore

ALL = 100


async def test_acquire_waits_until_enough_bytes_are_free() -> None:
    """It continues as soon as enough bytes are released."""
    semaphore = ByteSemaphore(ALL)
    first, second = await semaphore.acquire(60), await semaphore.acquire(40)
    waiting = asyncio.create_task(semaphore.acquire(50))
    semaphore.release(second)
    await asyncio.sleep(0)
    assert (waiting.done(), semaphore.free) == (False, 40)
    semaphore.release(first)
    assert (await waiting, semaphore.free) == (50, 50)


async def test_a_size_above_the_total_reserves_the_total() -> None:
    """It waits for all others and runs alone, instead of waiting for ever."""
    semaphore = ByteSemaphore(ALL)
    async with semaphore.reserve(1):
        waiting = asyncio.create_task(semaphore.acquire(ALL + 1))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert (await waiting, semaphore.free) == (ALL, 0)


async def test_a_small_request_does_not_overtake_a_large_one() -> None:
    """Otherwise the large one would wait as long as small ones arrive."""
    semaphore = ByteSemaphore(ALL)
    taken = await semaphore.acquire(60)
    large = asyncio.create_task(semaphore.acquire(80))
    await asyncio.sleep(0)
    small = asyncio.create_task(semaphore.acquire(10))
    await asyncio.sleep(0)
    assert not small.done()
    semaphore.release(taken)
    assert [await large, await small] == [80, 10]


async def test_cancelling_a_waiter_admits_the_next_one() -> None:
    """A disconnected client does not block the queue."""
    semaphore = ByteSemaphore(ALL)
    await semaphore.acquire(60)
    large = asyncio.create_task(semaphore.acquire(80))
    await asyncio.sleep(0)
    small = asyncio.create_task(semaphore.acquire(10))
    await asyncio.sleep(0)
    large.cancel()
    assert await small == 10


async def test_cancellation_at_the_moment_of_admission_loses_no_bytes() -> None:
    """The future has its result when the cancellation arrives."""
    semaphore = ByteSemaphore(ALL)
    taken = await semaphore.acquire(ALL)
    waiting = asyncio.create_task(semaphore.acquire(10))
    await asyncio.sleep(0)
    semaphore.release(taken)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert semaphore.free == ALL


@given(st.lists(st.tuples(st.integers(1, ALL + 20), st.booleans()), max_size=12), st.randoms(use_true_random=False))
def test_no_bytes_are_lost_by_cancellation(waiters: list[tuple[int, bool]], chance: random.Random) -> None:
    """With any waiters and cancellations, free bytes are never negative, and all are free in the end."""

    async def enter(semaphore: ByteSemaphore, size: int) -> None:
        async with semaphore.reserve(size):
            assert semaphore.free >= 0
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)

    async def run() -> int:
        semaphore = ByteSemaphore(ALL)
        tasks = [asyncio.create_task(enter(semaphore, size)) for size, _ in waiters]
        for task, (_, is_cancelled) in zip(tasks, waiters, strict=True):
            await asyncio.sleep(0)
            if is_cancelled:
                task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        return semaphore.free

    assert asyncio.run(run()) == ALL
