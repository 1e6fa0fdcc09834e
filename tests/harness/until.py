"""Waits for a condition with a deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeVar, overload

T = TypeVar("T")

LOOK_EVERY_S = 0.01


@overload
async def until(
    condition: Callable[[], Awaitable[T]], deadline_s: float = 10.0, every_s: float = LOOK_EVERY_S
) -> T: ...
@overload
async def until(condition: Callable[[], T], deadline_s: float = 10.0, every_s: float = LOOK_EVERY_S) -> T: ...
async def until(
    condition: Callable[[], T | Awaitable[T]], deadline_s: float = 10.0, every_s: float = LOOK_EVERY_S
) -> T:
    """Returns the first true value of `condition`; fails after `deadline_s` seconds with the last value.

    It looks every `every_s` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    while True:
        asked = condition()
        seen: T = await asked if isawaitable(asked) else asked
        if seen:
            return seen
        if loop.time() >= deadline:
            raise AssertionError(f"not within {deadline_s} s; seen last: {seen!r}")
        await asyncio.sleep(every_s)
