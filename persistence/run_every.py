"""run_every: repeats the work of a background task. An unavailable log or database only delays it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from tailrace.proto.errors import LogError, Refused, StoreBusy, StoreUnwritable
from tailrace.proto.runtime.race import is_set_within

logger = structlog.get_logger()


async def run_every(interval_s: float, work: Callable[[], Awaitable[None]], what: str, stop: asyncio.Event) -> None:
    """Runs `work` at once and after each interval, until `stop` is set. Log messages name it `what`."""
    while not stop.is_set():
        try:
            await work()
        except (LogError, Refused, StoreBusy, StoreUnwritable) as error:
            logger.debug("background work is delayed", work=what, why=str(error))
        await is_set_within(stop, interval_s)


@asynccontextmanager
async def run_beside(
    run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], stop: asyncio.Event
) -> AsyncIterator[None]:
    """Runs `run` while the block runs, and cancels it at the end. An unexpected error in `run` ends the process."""
    running = asyncio.create_task(run(stop))
    running.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        stop.set()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
