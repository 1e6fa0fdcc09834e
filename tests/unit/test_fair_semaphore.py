"""FairSemaphore: round-robin order between tenants, never more holders than slots, no lost slot."""

import asyncio
import random
from contextlib import AsyncExitStack, suppress

from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.runtime.fair_semaphore import FairSemaphore

SLOTS = 3


async def test_tenants_are_served_in_rounds() -> None:
    """Of a hundred earlier waiters of one tenant, one enters before each waiter of another tenant."""
    semaphore, entered = FairSemaphore(1), list[str]()

    async def enter(tenant: str) -> None:
        async with semaphore.slot(tenant):
            entered.append(tenant)

    async with semaphore.slot("many"):
        waiting = [asyncio.create_task(enter("many")) for _ in range(100)]
        await asyncio.sleep(0)
        waiting += [asyncio.create_task(enter(tenant)) for tenant in ("few", "few", "one")]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert entered[:7] == ["many", "few", "one", "many", "few", "many", "many"]
    assert len(entered) == 103


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20), st.randoms(use_true_random=False))
def test_no_slot_is_lost_by_cancellation(waiters: list[tuple[str, bool]], chance: random.Random) -> None:
    """With any waiters and cancellations, holders never exceed the slots, and all slots are free in the end."""
    semaphore, inside = FairSemaphore(SLOTS), 0

    async def enter(tenant: str) -> None:
        nonlocal inside
        async with semaphore.slot(tenant):
            inside += 1
            try:
                assert inside <= SLOTS
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1

    async def run() -> None:
        tasks = [asyncio.create_task(enter(tenant)) for tenant, _ in waiters]
        for task, (_, is_cancelled) in zip(tasks, waiters, strict=True):
            await asyncio.sleep(0)
            if is_cancelled:
                task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        async with asyncio.timeout(5), AsyncExitStack() as all_of_them:
            for _ in range(SLOTS):
                await all_of_them.enter_async_context(semaphore.slot("last"))

    asyncio.run(run())
