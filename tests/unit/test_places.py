"""FairSemaphore of which each tenant has its turn: never more than there are, and none is lost."""

import asyncio
import random
from contextlib import AsyncExitStack, suppress

from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.runtime.fair_semaphore import FairSemaphore

AT_ONCE = 3


async def test_who_waits_with_many_is_let_in_in_turn_with_the_others() -> None:
    """Of a hundred that waited first, one is let in before each of another tenant's."""
    places, entered = FairSemaphore(1), list[str]()

    async def enter(whose: str) -> None:
        async with places.slot(whose):
            entered.append(whose)

    async with places.slot("many"):
        waiting = [asyncio.create_task(enter("many")) for _ in range(100)]
        await asyncio.sleep(0)
        waiting += [asyncio.create_task(enter(whose)) for whose in ("few", "few", "one")]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert entered[:7] == ["many", "few", "one", "many", "few", "many", "many"]
    assert len(entered) == 103


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20), st.randoms(use_true_random=False))
def test_any_crowd_leaves_all_of_them_free(crowd: list[tuple[str, bool]], chance: random.Random) -> None:
    """Whoever comes and whoever is cancelled, there are never more inside than places, and at last all are free."""
    places, inside = FairSemaphore(AT_ONCE), 0

    async def enter(whose: str) -> None:
        nonlocal inside
        async with places.slot(whose):
            inside += 1
            try:
                assert inside <= AT_ONCE
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1

    async def run() -> None:
        tasks = [asyncio.create_task(enter(whose)) for whose, _ in crowd]
        for task, (_, is_cancelled) in zip(tasks, crowd, strict=True):
            await asyncio.sleep(0)
            if is_cancelled:
                task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        async with asyncio.timeout(5), AsyncExitStack() as all_of_them:
            for _ in range(AT_ONCE):
                await all_of_them.enter_async_context(places.slot("last"))

    asyncio.run(run())
