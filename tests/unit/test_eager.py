"""run_to_first_wait begins an awaitable without a task, and a task awaits the rest of it."""

import asyncio
from collections.abc import Awaitable

import pytest

from tailrace.proto.runtime.eager import run_to_first_wait


class Work:
    """Waits for each of `waits` in turn, and lists what it has done."""

    def __init__(self, waits: int) -> None:
        self.waits = [asyncio.Event() for _ in range(waits)]
        self.done: list[str] = []

    async def run(self) -> None:
        try:
            for number, wait in enumerate(self.waits):
                self.done.append(f"before {number}")
                await wait.wait()
            self.done.append("all")
        except asyncio.CancelledError:
            self.done.append("cancelled")
            raise

    def begin(self) -> Awaitable[None]:
        rest = run_to_first_wait(self.run())
        assert rest is not None
        return rest


async def test_work_that_does_not_wait_is_done_at_once() -> None:
    work = Work(0)
    assert run_to_first_wait(work.run()) is None
    assert work.done == ["all"]


async def test_an_error_before_the_first_wait_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("before")

    with pytest.raises(ValueError, match="before"):
        run_to_first_wait(fail())


async def test_a_task_completes_the_rest() -> None:
    work = Work(3)
    rest = work.begin()
    assert work.done == ["before 0"]
    for wait in work.waits:
        asyncio.get_running_loop().call_soon(wait.set)
    await rest
    assert work.done == ["before 0", "before 1", "before 2", "all"]


@pytest.mark.parametrize("set_before", [0, 1])
async def test_a_cancellation_reaches_the_work(set_before: int) -> None:
    """Also when the work has waited for something else before."""
    work = Work(2)
    task = asyncio.ensure_future(_await(work.begin()))
    for wait in work.waits[:set_before]:
        wait.set()
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done[-1] == "cancelled"


async def test_an_error_after_a_wait_is_raised() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("after")

    rest = run_to_first_wait(fail())
    assert rest is not None
    with pytest.raises(ValueError, match="after"):
        await rest


async def _await(work: Awaitable[None]) -> None:
    await work
