"""A semaphore over slots or bytes, with round-robin fairness between tenants."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """`async with semaphore.reserve(size, tenant=tenant):` waits for `size` free units, at most for all units.

    First in, first out within a tenant: a small request does not overtake a large one, which would otherwise wait for
    as long as small requests arrive.
    """

    def __init__(self, units: int) -> None:
        self._units = self.free = units
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        """The waiters of each tenant; the tenant that is served next comes first."""
        self._urgent: deque[tuple[int, asyncio.Future[None]]] = deque()
        """The waiters that are served before all tenants."""

    @asynccontextmanager
    async def reserve(self, size: int = 1, *, tenant: str = "", is_urgent: bool = False) -> AsyncIterator[None]:
        """Holds `size` units, or all if there are fewer, until the context is left. Waits while too few are free.

        `is_urgent`: served before all other waiters, for a caller that holds units which they may need.
        """
        size, waiter = min(size, self._units), asyncio.get_running_loop().create_future()
        (self._urgent if is_urgent else self._waiting.setdefault(tenant, deque())).append((size, waiter))
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self._release(size)
            # A waiter behind a cancelled large one may fit now.
            self._admit()
            raise
        try:
            yield
        finally:
            self._release(size)

    def waiting(self, tenant: str) -> int:
        """Returns how many of the tenant's requests wait."""
        return sum(not waiter.done() for _, waiter in self._waiting.get(tenant, ()))

    def _release(self, size: int) -> None:
        self.free += size
        self._admit()

    def _admit(self) -> None:
        """Admits urgent waiters, then the next one of each tenant in turn, until a waiter does not fit."""
        while self._urgent or self._waiting:
            tenant, own = ("", self._urgent) if self._urgent else next(iter(self._waiting.items()))
            size, waiter = own[0]
            if not waiter.done():
                if size > self.free:
                    return
                self.free -= size
                waiter.set_result(None)
            own.popleft()
            if own is self._urgent:
                continue
            # The tenant goes to the end of the round.
            del self._waiting[tenant]
            if own:
                self._waiting[tenant] = own
