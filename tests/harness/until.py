"""Waits for a condition with a deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeVar, overload

T = TypeVar("T")

LOOK_EVERY_S = 0.01
# Only a failed test waits so long. On a machine with twenty busy processes, ten seconds are one second of CPU time.
DEADLINE_S = 30.0
# A look may be a request, and most of a run is waiting: after a second it looks less often.
LOOK_EVERY_S_MAX, SHARE_OF_WAITED = 0.05, 0.05


@overload
async def until(
    condition: Callable[[], Awaitable[T]], deadline_s: float = DEADLINE_S, every_s: float = LOOK_EVERY_S
) -> T: ...
@overload
async def until(condition: Callable[[], T], deadline_s: float = DEADLINE_S, every_s: float = LOOK_EVERY_S) -> T: ...
async def until(
    condition: Callable[[], T | Awaitable[T]], deadline_s: float = DEADLINE_S, every_s: float = LOOK_EVERY_S
) -> T:
    """Returns the first true value of `condition`; fails after `deadline_s` seconds with the last value.

    It looks every `every_s` seconds at first, and five times less often after a second.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        result = condition()
        seen: T = await result if isawaitable(result) else result
        if seen:
            return seen
        waited = loop.time() - began
        if waited >= deadline_s:
            raise AssertionError(f"not within {deadline_s} s; seen last: {seen!r}")
        await asyncio.sleep(max(every_s, min(waited * SHARE_OF_WAITED, LOOK_EVERY_S_MAX)))


async def until_equal(look: Callable[[], object], expected: object) -> None:
    """Waits until `look` returns `expected`; fails after DEADLINE_S with the last value."""
    seen: object = None

    async def is_equal() -> bool:
        nonlocal seen
        result = look()
        seen = await result if isawaitable(result) else result
        return bool(seen == expected)

    try:
        await until(is_equal)
    except AssertionError:
        raise AssertionError(f"not {expected!r} within {DEADLINE_S} s; seen last: {seen!r}") from None
