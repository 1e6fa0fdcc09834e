"""Measures how long the event loop runs no other task."""

import asyncio


async def longest_pause(task: asyncio.Task[object]) -> float:
    """Waits for `task`. Returns the longest pause of the loop meanwhile, as a part of the time that `task` took."""
    loop = asyncio.get_running_loop()
    began_s = last_s = loop.time()
    longest_s = 0.0
    while not task.done():
        await asyncio.sleep(0.001)
        longest_s, last_s = max(longest_s, loop.time() - last_s), loop.time()
    return longest_s / (last_s - began_s)
