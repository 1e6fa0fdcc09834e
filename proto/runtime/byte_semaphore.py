"""A semaphore of bytes, for large bodies in memory: first come, first served."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteSemaphore:
    """`async with room.taken(size):` waits until there is room; what is larger than all of it waits for all of it."""

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
        """Waits for room; returns how much of it was taken, which is to be given back."""
        size = min(size, self._all)
        entering = asyncio.get_running_loop().create_future()
        self._waiting.append((size, entering))
        self._admit()
        try:
            await entering
        except asyncio.CancelledError:
            if not entering.cancelled():
                self.release(size)
            # Whoever stood behind a large one may fit now that it has left.
            self._admit()
            raise
        return size

    def release(self, size: int) -> None:
        self.free += size
        self._admit()

    def _admit(self) -> None:
        """Lets in who is first for as long as there is room: no small one passes by a large one for ever."""
        while self._waiting:
            size, entering = self._waiting[0]
            if not entering.done():
                if size > self.free:
                    return
                self.free -= size
                entering.set_result(None)
            self._waiting.popleft()
