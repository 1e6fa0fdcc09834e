"""A semaphore with round-robin fairness between tenants."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """`async with places.taken(whose):` waits for one. Of one tenant: first come, first served."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Of each tenant that waits, the one whose turn it is first."""

    @asynccontextmanager
    async def slot(self, whose: str) -> AsyncIterator[None]:
        await self._take(whose)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, whose: str) -> None:
        entering = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(entering)
        self._admit()
        try:
            await entering
        except asyncio.CancelledError:
            if not entering.cancelled():
                self._give_back()
            raise

    def _give_back(self) -> None:
        self._free += 1
        self._admit()

    def _admit(self) -> None:
        while self._free and self._waiting:
            whose = next(iter(self._waiting))
            own = self._waiting.pop(whose)
            entering = own.popleft()
            if own:
                # Behind all others that wait.
                self._waiting[whose] = own
            if not entering.done():
                self._free -= 1
                entering.set_result(None)
