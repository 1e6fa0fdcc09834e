"""Memory for large request bodies: half of it while they arrive, half of it while they are processed.

Memory is reserved when a body turns out to be large, which is after authentication, and released when the endpoint has
returned its response. While bodies arrive, one tenant may use half of their memory: a client that sends slowly blocks
at most its own tenant. The whole declared size is reserved at once. Reserved piece by piece, many half-read bodies
could fill the memory, and none of them could be completed.

A complete body is in memory several times: as it came, as decoded strings, and as the bytes of those that become blobs.
Processing takes less than a second or waits for the log, so tenants simply take turns.

A request may need more memory later: for the uploaded files that its body names. It then holds memory while it waits,
and two such requests would wait for each other. So one of them waits at a time, before all others, and the next one is
refused at once. No request reserves more than there is, so none waits for itself.

A process may be limited to less memory than its setting (`ulimit -v`). Therefore a body is refused unless the process
could allocate all reserved memory again, plus SPARE_BYTES for small requests and the connection to NATS.
"""

import asyncio
import mmap
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

import structlog

from tailrace.gateway.http.error_responses import NO_MEMORY
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.fair_semaphore import FairSemaphore

logger = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

# The number of smaller bodies is limited by the number of connections alone.
SMALL_BYTES_MAX = 256 * 1024
# Copies of a complete body besides the one that has arrived: its strings, and the bytes of the blobs. Python stores a
# text with a character beyond Latin-1 in two or four bytes a character, so there may be three copies more.
COPIES = 5
SPARE_BYTES = 32 * 1024 * 1024


class LargeBodies:
    """Reserves memory out of `bytes_max` for all tenants; waits for `timeout_s` at most."""

    def __init__(self, *, bytes_max: int, timeout_s: float) -> None:
        self._bytes_max = bytes_max
        self._arriving = FairSemaphore(bytes_max // 2)
        self._copies = FairSemaphore(bytes_max // 2)
        self._share_bytes_max = max(1, bytes_max // 4)
        self._shares: WeakValueDictionary[Tenant, FairSemaphore] = WeakValueDictionary()
        self._timeout_s = timeout_s
        self._extending = asyncio.Lock()
        """Is held while a request that holds memory waits for more."""
        self.decoding = asyncio.Lock()
        """Is held while a large body is decoded: one body at a time, and streams are served after each of its steps."""

    @property
    def free(self) -> int:
        """Bytes that are not reserved."""
        return self._arriving.free + self._copies.free

    async def reserve(self, holder: AsyncExitStack, tenant: Tenant, size: int) -> None:
        """Reserves memory for an arriving body until `holder` is closed. Raises Refused if none is free in time."""
        share = self._shares.setdefault(tenant, FairSemaphore(self._share_bytes_max))
        with self._refuse_timeout():
            async with asyncio.timeout(self._timeout_s):
                await holder.enter_async_context(share.reserve(size))
                await holder.enter_async_context(self._arriving.reserve(min(size, self._share_bytes_max)))
        self.require_memory()

    async def reserve_copies(self, holder: AsyncExitStack, tenant: Tenant, size: int) -> None:
        """Reserves memory for the copies of a complete body until `holder` is closed. Raises Refused like `reserve`."""
        with self._refuse_timeout():
            async with asyncio.timeout(self._timeout_s):
                await holder.enter_async_context(self._copies.reserve(COPIES * size, tenant=tenant))
        self.require_memory()

    async def reserve_more(self, holder: AsyncExitStack, tenant: Tenant, size: int, *, held: int) -> None:
        """Reserves memory for the copies of `size` bytes that are added to `held` bytes of the same request.

        Raises Refused like `reserve`; at once if another request that holds memory waits.
        """
        if held <= SMALL_BYTES_MAX:
            # The request holds no memory.
            await self.reserve_copies(holder, tenant, size)
            return
        most = self._bytes_max // 2
        added = min(COPIES * (held + size), most) - min(COPIES * held, most)
        if self._extending.locked():
            raise _busy()
        with self._refuse_timeout():
            async with self._extending, asyncio.timeout(self._timeout_s):
                await holder.enter_async_context(self._copies.reserve(added, is_urgent=True))
        self.require_memory()

    def require_memory(self) -> None:
        """Raises Refused if the process could not allocate what is reserved."""
        # The pages are never touched: this takes microseconds.
        size = self._bytes_max - self.free + SPARE_BYTES
        with suppress(OSError), mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON):
            return
        logger.warning("no memory for a request body")
        raise Refused("server_busy", NO_MEMORY)

    @staticmethod
    @contextmanager
    def _refuse_timeout() -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise _busy() from error


def _busy() -> Refused:
    return Refused("server_busy", "the memory for large requests is in use: repeat the request after Retry-After")


async def convert_body(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Returns `function(…)`, which converts a decoded body of `size` bytes; in a thread if the body is large."""
    if size <= SMALL_BYTES_MAX:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
