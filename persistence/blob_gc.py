"""Blobs that a deleted turn referred to: purged, once nobody refers to them any more (PROTOCOL R34). It reads none.

A blob is condemned before anybody looks who refers to it: who comes later stores it again. Who came before has its
request in the log by then, and so in the database once that has caught up, or still holds the blob, and it is looked at
again. That nobody needs it is believed when it was seen twice: a leader that has just woken up denies what came while
it slept (PROTOCOL R14). What is not settled stands in the database, so whoever dies half-way goes on from there.
"""

import asyncio
from contextlib import suppress
from weakref import WeakValueDictionary

import structlog

from tailrace.persistence.rpc import Caught
from tailrace.persistence.store import Store
from tailrace.proto.errors import LogError, Refused, StoreBusy, StoreUnwritable
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import BlobPins, Bodies
from tailrace.proto.nats.replay import WOKEN_WAIT_S

logger = structlog.get_logger()

# Whoever deletes settles it at once. Left over is what others held at that moment, and what was broken off.
LOOK_EVERY_S = 2.0
# So many blobs are asked for, or purged, at once.
AT_ONCE = 16


class Releases:
    def __init__(self, store: Store, bodies: Bodies, holds: BlobPins, caught_up: Caught) -> None:
        self._store = store
        self._bodies = bodies
        self._holds = holds
        self._caught_up = caught_up
        # Of each tenant one at a time, or the one would note as settled what the other has just found released anew.
        self._settling: WeakValueDictionary[Tenant, asyncio.Lock] = WeakValueDictionary()

    async def run(self, stop: asyncio.Event) -> None:
        """Settles what is left over, until `stop` is set."""
        while not stop.is_set():
            try:
                for tenant in await self._store.releasing():
                    await self.settle(tenant)
            except (LogError, Refused, StoreBusy, StoreUnwritable) as error:
                logger.debug("blobs of deleted turns wait", why=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)

    async def settle(self, tenant: Tenant) -> None:
        """Purges the tenant's released blobs, but for those that somebody is about to refer to.

        Raises LogUnavailable, StoreError, or Refused when the database cannot catch up; what is left is done later.
        """
        settling = self._settling.setdefault(tenant, asyncio.Lock())
        async with settling:
            released = await self._store.released(tenant)
            while released:
                await self._settle(tenant, released)
                released = await self._store.released(tenant, after=released[-1])

    async def _settle(self, tenant: Tenant, released: list[str]) -> None:
        doomed: dict[str, Seq | None] = {}
        left = await self._unneeded(tenant, await self._unused(tenant, released), doomed)
        if left:
            await asyncio.sleep(WOKEN_WAIT_S)
            left = await self._unneeded(tenant, left, doomed)
        if not left:
            return
        places = asyncio.Semaphore(AT_ONCE)

        async def purge(sha256: str) -> None:
            async with places:
                if (seq := doomed[sha256]) is not None:
                    await self._bodies.purge(tenant, sha256, seq)

        await asyncio.gather(*map(purge, left))
        await self._store.settle(tenant, left)
        logger.info("blobs of deleted turns are gone", blobs=len(left))

    async def _unneeded(self, tenant: Tenant, blobs: list[str], doomed: dict[str, Seq | None]) -> list[str]:
        """Those that nobody holds, and no turn refers to. They are `doomed` from then on, up to that sequence."""
        places = asyncio.Semaphore(AT_ONCE)

        async def is_let_go(sha256: str) -> bool:
            async with places:
                doomed[sha256] = await self._bodies.condemn(tenant, sha256)
                return not await self._holds.is_held(tenant, sha256)

        let_go = await asyncio.gather(*map(is_let_go, blobs))
        unheld = [sha256 for sha256, is_free in zip(blobs, let_go, strict=True) if is_free]
        if unheld:
            await self._caught_up()
        return await self._unused(tenant, unheld)

    async def _unused(self, tenant: Tenant, blobs: list[str]) -> list[str]:
        """Those that no turn refers to. The others stay."""
        used = await self._store.used(tenant, blobs)
        if used:
            await self._store.settle(tenant, used)
        return [sha256 for sha256 in blobs if sha256 not in set(used)]
