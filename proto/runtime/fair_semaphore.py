"""A semaphore with round-robin fairness between tenants."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """`async with semaphore.slot(tenant):` waits for one of `slots`. First in, first out within a tenant."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """The waiters of each tenant; the tenant that is served next comes first."""

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        await self._acquire(tenant)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, tenant: str) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self._free += 1
        self._admit()

    def _admit(self) -> None:
        while self._free and self._waiting:
            tenant = next(iter(self._waiting))
            own = self._waiting.pop(tenant)
            waiter = own.popleft()
            if own:
                # The tenant goes to the end of the round.
                self._waiting[tenant] = own
            if not waiter.done():
                self._free -= 1
                waiter.set_result(None)
