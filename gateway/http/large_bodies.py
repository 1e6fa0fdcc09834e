"""Memory for large request bodies: a limit for all of them, and half of it for each tenant.

A request holds its body as it came, as decoded values, and as the strings that were lifted out of it. Memory is
reserved when a body turns out to be large, which is after authentication, and released when the endpoint has returned
its response. A client that sends slowly blocks at most its own tenant's half.

The whole declared size is reserved at once. Reserved piece by piece, many half-read bodies could fill the memory, and
none of them could be completed.

Joining and decoding 30 MB takes about 40 ms, in which the event loop serves no stream, and a thread does not help:
msgspec holds the interpreter lock. So complete large bodies pass one at a time, and streams are served in between.
"""

import asyncio
from contextlib import AsyncExitStack
from weakref import WeakValueDictionary

from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.fair_semaphore import FairSemaphore

# The number of smaller bodies is limited by the number of connections alone.
SMALL_BYTES_MAX = 256 * 1024


class LargeBodies:
    """Reserves memory out of `bytes_max` for all tenants, half of it for one; waits for `timeout_s` at most."""

    def __init__(self, *, bytes_max: int, timeout_s: float) -> None:
        self._memory = FairSemaphore(bytes_max)
        self._share_bytes_max = max(1, bytes_max // 2)
        self._shares: WeakValueDictionary[Tenant, FairSemaphore] = WeakValueDictionary()
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()

    @property
    def free(self) -> int:
        """Bytes that are not reserved."""
        return self._memory.free

    async def reserve(self, holder: AsyncExitStack, tenant: Tenant, size: int) -> None:
        """Reserves `size` bytes until `holder` is closed. Raises Refused when they do not become free in time."""
        share = self._shares.setdefault(tenant, FairSemaphore(self._share_bytes_max))
        try:
            async with asyncio.timeout(self._timeout_s):
                await holder.enter_async_context(share.reserve(size))
                await holder.enter_async_context(self._memory.reserve(min(size, self._share_bytes_max)))
        except TimeoutError as error:
            message = "too many large requests are being read: send it again"
            raise Refused("server_busy", message) from error

    async def take_turn(self) -> None:
        """Returns when a complete large body may be decoded; one passes in each turn of the event loop."""
        async with self._turn:
            await asyncio.sleep(0)
