"""Waits that end early: run_until for a coroutine, is_set_within for an event; and a cancellation that was lost."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tailrace.proto.runtime.flag import Flag

T = TypeVar("T")


async def run_until(
    work: Coroutine[Any, Any, T], *stops: asyncio.Future[Any], timeout_s: float | None = None
) -> asyncio.Task[T]:
    """Runs `work` until it is done, or one of `stops` is, or `timeout_s` is over; cancels `work` in the last two cases.

    Returns the task of `work`, which is over, in these cases `cancelled()`. The stops go on; an exception of a stop is
    not raised.
    """
    working = asyncio.create_task(work)
    try:
        await asyncio.wait((working, *stops), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
    return working


async def is_set_within(event: asyncio.Event | Flag, timeout_s: float) -> bool:
    """Waits until `event` is set, at most `timeout_s` seconds; returns whether it is."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


def raise_if_cancelled() -> None:
    """Raises CancelledError if this task was cancelled and went on.

    Python 3.11's `asyncio.wait_for`, which nats-py uses, loses a cancellation that meets its result.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
