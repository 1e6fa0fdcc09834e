"""ByteSemaphore for large things: never more than there is, first come, first served, and nothing is lost of it."""

import asyncio
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.runtime.byte_semaphore import ByteSemaphore

ALL = 100


async def test_what_fits_enters_and_what_does_not_waits() -> None:
    """Until enough was given back, and no longer."""
    room = ByteSemaphore(ALL)
    first, second = await room.acquire(60), await room.acquire(40)
    waiting = asyncio.create_task(room.acquire(50))
    room.release(second)
    await asyncio.sleep(0)
    assert (waiting.done(), room.free) == (False, 40)
    room.release(first)
    assert (await waiting, room.free) == (50, 50)


async def test_what_is_larger_than_all_of_it_gets_all_of_it() -> None:
    """It waits for the others and then goes alone; what would never fit would wait for ever."""
    room = ByteSemaphore(ALL)
    async with room.reserve(1):
        waiting = asyncio.create_task(room.acquire(ALL + 1))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert (await waiting, room.free) == (ALL, 0)


async def test_no_small_one_passes_by_a_large_one() -> None:
    """Or the large one would wait for as long as small ones come."""
    room = ByteSemaphore(ALL)
    taken = await room.acquire(60)
    large = asyncio.create_task(room.acquire(80))
    await asyncio.sleep(0)
    small = asyncio.create_task(room.acquire(10))
    await asyncio.sleep(0)
    assert not small.done()
    room.release(taken)
    assert [await large, await small] == [80, 10]


async def test_who_leaves_the_queue_lets_the_next_one_in() -> None:
    """A client that went away holds nobody up."""
    room = ByteSemaphore(ALL)
    await room.acquire(60)
    large = asyncio.create_task(room.acquire(80))
    await asyncio.sleep(0)
    small = asyncio.create_task(room.acquire(10))
    await asyncio.sleep(0)
    large.cancel()
    assert await small == 10


async def test_who_is_let_in_and_leaves_at_the_same_moment_gives_back() -> None:
    """A cancellation that meets the permission loses nothing."""
    room = ByteSemaphore(ALL)
    taken = await room.acquire(ALL)
    waiting = asyncio.create_task(room.acquire(10))
    await asyncio.sleep(0)
    room.release(taken)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert room.free == ALL


@given(st.lists(st.tuples(st.integers(1, ALL + 20), st.booleans()), max_size=12), st.randoms(use_true_random=False))
def test_any_crowd_leaves_all_of_it_free(crowd: list[tuple[int, bool]], chance: random.Random) -> None:
    """Whoever comes and whoever is cancelled, there is never less than nothing, and at last all of it."""

    async def enter(room: ByteSemaphore, size: int) -> None:
        async with room.reserve(size):
            assert room.free >= 0
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)

    async def run() -> int:
        room = ByteSemaphore(ALL)
        tasks = [asyncio.create_task(enter(room, size)) for size, _ in crowd]
        for task, (_, is_cancelled) in zip(tasks, crowd, strict=True):
            await asyncio.sleep(0)
            if is_cancelled:
                task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        return room.free

    assert asyncio.run(run()) == ALL
