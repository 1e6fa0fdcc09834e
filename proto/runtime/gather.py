"""Runs one function over many items, a limited number at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def gather_limited(work: Callable[[T], Awaitable[R]], items: Iterable[T], at_once: int) -> list[R]:
    """Returns the results in the order of `items`. Raises the first error; the other calls then go on."""
    slots = asyncio.Semaphore(at_once)

    async def run(item: T) -> R:
        async with slots:
            return await work(item)

    return await asyncio.gather(*map(run, items))
