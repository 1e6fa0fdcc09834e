"""run_to_first_wait: begins an awaitable at once, outside of any task. Python 3.12's eager tasks begin like this."""

from collections.abc import Awaitable, Callable, Generator
from functools import partial
from types import coroutine
from typing import Any


def run_to_first_wait(work: Awaitable[None]) -> Awaitable[None] | None:
    """Runs `work` until it waits for something; returns the rest of it, which a task must await. None: it is done.

    Until then `work` has no current task, which `asyncio.timeout` and `asyncio.TaskGroup` need.
    """
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return None
    return _finish(steps, waits_for)


@coroutine
def _finish(steps: Generator[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Passes on what `steps` waits for, and what the task that awaits this sends or raises, as `yield from` does."""
    while True:
        step: Callable[[], Any]
        try:
            step = partial(steps.send, (yield waits_for))
        except BaseException as error:  # noqa: BLE001  # also a cancellation
            step = partial(steps.throw, error)
        try:
            waits_for = step()
        except StopIteration:
            return
