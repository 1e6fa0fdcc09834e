"""Measures how long the event loop runs no other task, in CPU time of the process.

On a busy machine, the loop also pauses while other processes run.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


async def longest_pause(task: asyncio.Task[object], every_s: float = 0.001) -> float:
    """Waits for `task`. Returns the longest pause of the loop meanwhile, as a part of the CPU time that `task` took."""
    began_s = last_s = time.process_time()
    longest_s = 0.0
    while not task.done():
        await asyncio.sleep(every_s)
        longest_s, last_s = max(longest_s, time.process_time() - last_s), time.process_time()
    return longest_s / (last_s - began_s)


async def longest_lock(task: asyncio.Task[object]) -> float:
    """Does the same for a task that waits for a thread: the loop requests the interpreter lock all the time."""
    with switching_soon():
        return await longest_pause(task, every_s=0)


@contextmanager
def switching_soon() -> Iterator[None]:
    """A thread gives up the interpreter lock as soon as another one requests it, if its work can be interrupted."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)
