"""A semaphore that counts bytes, in first-in-first-out order. It bounds the memory of large bodies."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteSemaphore:
    """`async with semaphore.reserve(size):` waits for `size` free bytes, at most for all of them."""

    def __init__(self, bytes_max: int) -> None:
        self._all = self.free = bytes_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        size = await self.acquire(size)
        try:
            yield
        finally:
            self.release(size)

    async def acquire(self, size: int) -> int:
        """Waits for `size` free bytes. Returns the reserved size, which the caller must `release`."""
        size = min(size, self._all)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((size, waiter))
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self.release(size)
            # A waiter behind a cancelled large one may fit now.
            self._admit()
            raise
        return size

    def release(self, size: int) -> None:
        self.free += size
        self._admit()

    def _admit(self) -> None:
        """Admits waiters in order while bytes are free. Small requests do not overtake a large one."""
        while self._waiting:
            size, waiter = self._waiting[0]
            if not waiter.done():
                if size > self.free:
                    return
                self.free -= size
                waiter.set_result(None)
            self._waiting.popleft()
