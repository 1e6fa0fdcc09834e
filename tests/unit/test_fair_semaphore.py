"""FairSemaphore: round-robin order between tenants, FIFO within one, never more holders than units, no lost unit."""

import asyncio
import random
from contextlib import AsyncExitStack, suppress

from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.runtime.fair_semaphore import FairSemaphore

UNITS = 100


class Holder:
    """A task that reserves `size` units when it is started, and holds them until it is released."""

    def __init__(self, semaphore: FairSemaphore, size: int) -> None:
        self._semaphore = semaphore
        self._size = size
        self.is_inside = False
        self._released = asyncio.Event()
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._semaphore.reserve(self._size):
            self.is_inside = True
            await self._released.wait()

    async def release(self) -> None:
        self._released.set()
        await self.task


async def holders(semaphore: FairSemaphore, *sizes: int) -> list[Holder]:
    """Starts a holder of each size, in order."""
    started = [Holder(semaphore, size) for size in sizes]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return started


async def test_an_urgent_waiter_enters_before_all_others() -> None:
    """Also if less is free than the others wait for."""
    semaphore, entered = FairSemaphore(3), list[str]()

    async def enter(name: str, size: int, *, is_urgent: bool = False) -> None:
        async with semaphore.reserve(size, tenant=name, is_urgent=is_urgent):
            entered.append(name)

    async with semaphore.reserve(2):
        waiting = [asyncio.create_task(enter("large", 3))]
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await enter("urgent", 1, is_urgent=True)
    await asyncio.gather(*waiting)
    assert entered == ["urgent", "large"]


async def test_tenants_are_served_in_rounds() -> None:
    """Of a hundred earlier waiters of one tenant, one enters before each waiter of another tenant."""
    semaphore, entered = FairSemaphore(1), list[str]()

    async def enter(tenant: str) -> None:
        async with semaphore.reserve(tenant=tenant):
            entered.append(tenant)

    async with semaphore.reserve(tenant="many"):
        waiting = [asyncio.create_task(enter("many")) for _ in range(100)]
        await asyncio.sleep(0)
        waiting += [asyncio.create_task(enter(tenant)) for tenant in ("few", "few", "one")]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert entered[:7] == ["many", "few", "one", "many", "few", "many", "many"]
    assert len(entered) == 103


async def test_a_reservation_waits_until_enough_units_are_free() -> None:
    """It continues as soon as enough of them are released."""
    semaphore = FairSemaphore(UNITS)
    first, second, third = await holders(semaphore, 60, 40, 50)
    await second.release()
    assert (third.is_inside, semaphore.free) == (False, 40)
    await first.release()
    await asyncio.sleep(0)
    assert (third.is_inside, semaphore.free) == (True, 50)
    await third.release()


async def test_a_size_above_the_total_reserves_the_total() -> None:
    """It waits for all others and runs alone, instead of waiting for ever."""
    semaphore = FairSemaphore(UNITS)
    small, huge = await holders(semaphore, 1, UNITS + 1)
    assert not huge.is_inside
    await small.release()
    await asyncio.sleep(0)
    assert (huge.is_inside, semaphore.free) == (True, 0)
    await huge.release()


async def test_a_small_request_waits_behind_a_large_one_until_that_is_cancelled() -> None:
    """Otherwise the large one would wait as long as small ones arrive. A disconnected client blocks no queue."""
    semaphore = FairSemaphore(UNITS)
    first, large, small = await holders(semaphore, 60, 80, 10)
    assert not small.is_inside
    large.task.cancel()
    with suppress(asyncio.CancelledError):
        await large.task
    await asyncio.sleep(0)
    assert small.is_inside
    await first.release()
    await small.release()


async def test_cancellation_at_the_moment_of_admission_loses_no_unit() -> None:
    """The future has its result when the cancellation arrives."""
    semaphore = FairSemaphore(UNITS)
    first, waiting = await holders(semaphore, UNITS, 10)
    await first.release()
    waiting.task.cancel()
    with suppress(asyncio.CancelledError):
        await waiting.task
    assert semaphore.free == UNITS


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, UNITS + 20), st.booleans()), max_size=20),
    st.randoms(use_true_random=False),
)
def test_no_unit_is_lost_by_cancellation(waiters: list[tuple[str, int, bool]], chance: random.Random) -> None:
    """With any waiters and cancellations, free units are never negative, and all are free in the end."""

    async def enter(semaphore: FairSemaphore, tenant: str, size: int) -> None:
        async with semaphore.reserve(size, tenant=tenant):
            assert semaphore.free >= 0
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)

    async def run() -> int:
        semaphore = FairSemaphore(UNITS)
        tasks = [asyncio.create_task(enter(semaphore, tenant, size)) for tenant, size, _ in waiters]
        for task, (_, _, is_cancelled) in zip(tasks, waiters, strict=True):
            await asyncio.sleep(0)
            if is_cancelled:
                task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        async with asyncio.timeout(5), AsyncExitStack() as all_of_them:
            for _ in range(UNITS):
                await all_of_them.enter_async_context(semaphore.reserve(tenant="last"))
        return semaphore.free

    assert asyncio.run(run()) == UNITS
