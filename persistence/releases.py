"""Blobs that a deleted turn referred to: purged, once nobody refers to them any more (PROTOCOL R34). It reads none.

A blob is condemned before anybody looks who refers to it: who comes later stores it again. Who came before has its
request in the log by then, and so in the database once that has caught up, or still holds the blob, and it is looked at
again. What is not settled stands in the database, so whoever dies half-way goes on from there.
"""

import asyncio
from contextlib import suppress
from weakref import WeakValueDictionary

import structlog

from persistence.answers import Caught
from persistence.store import Store
from proto.errors import LogError, Refused, StoreBusy, StoreUnwritable
from proto.ids import Seq, Tenant
from proto.log import Bodies, Holds

logger = structlog.get_logger()

# Whoever deletes settles it at once. Left over is what others held at that moment, and what was broken off.
LOOK_EVERY_S = 2.0
# So many blobs are asked for, or purged, at once.
AT_ONCE = 16


class Releases:
    def __init__(self, store: Store, bodies: Bodies, holds: Holds, caught_up: Caught) -> None:
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
        places = asyncio.Semaphore(AT_ONCE)
        doomed: dict[str, Seq | None] = {}

        async def condemn(sha256: str) -> None:
            async with places:
                seq = await self._bodies.condemn(tenant, sha256)
                if not await self._holds.is_held(tenant, sha256):
                    doomed[sha256] = seq

        async def purge(sha256: str) -> None:
            async with places:
                if (seq := doomed[sha256]) is not None:
                    await self._bodies.purge(tenant, sha256, seq)

        await asyncio.gather(*map(condemn, await self._unused(tenant, released)))
        if not doomed:
            return
        await self._caught_up()
        unused = await self._unused(tenant, list(doomed))
        await asyncio.gather(*map(purge, unused))
        await self._store.settle(tenant, unused)
        logger.info("blobs of deleted turns are gone", blobs=len(unused))

    async def _unused(self, tenant: Tenant, blobs: list[str]) -> list[str]:
        """Those that no turn refers to. The others stay."""
        used = await self._store.used(tenant, blobs)
        if used:
            await self._store.settle(tenant, used)
        return [sha256 for sha256 in blobs if sha256 not in set(used)]
