"""Garbage collection of blobs: purges the blobs of deleted turns once no turn refers to them (PROTOCOL R34).

The order of the steps makes this safe. A blob is marked as deleted before the references are counted, so a client that
needs it later stores it again. A client that needed it earlier either has its request in the log, and therefore in the
database once that has caught up, or still pins the blob; a pinned blob is left for the next run. Each check is made
twice: a leader that has just resumed may deny what arrived while it was paused (PROTOCOL R14). Unfinished blobs are
rows in the database, so a process that is killed in between continues after its restart.
"""

import asyncio

import structlog

from tailrace.persistence.rpc import CatchUp
from tailrace.persistence.run_every import run_every
from tailrace.persistence.store import Store
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import BlobPins, BlobStore
from tailrace.proto.nats.replay import WOKEN_WAIT_S
from tailrace.proto.runtime.gather import gather_limited

logger = structlog.get_logger()

# A deletion collects its blobs at once. This loop finishes pinned blobs and interrupted collections.
INTERVAL_S = 2.0
# Concurrent requests to NATS for one tenant.
CONCURRENCY = 16


class BlobCollector:
    """Purges released blobs, for a deletion (`collect`) and in the background (`run`)."""

    def __init__(
        self,
        store: Store,
        blob_store: BlobStore,
        pins: BlobPins,
        catch_up: CatchUp,
    ) -> None:
        self._store = store
        self._blob_store = blob_store
        self._pins = pins
        self._catch_up = catch_up

    async def run(self, stop: asyncio.Event) -> None:
        """Deletes unreferenced blobs, and deleted rows in the journal, until `stop` is set."""
        await run_every(INTERVAL_S, self._collect_all, "blob collection", stop)

    async def _collect_all(self) -> None:
        await self._store.erase_journal()
        for tenant in await self._store.tenants_with_released_blobs():
            await self.collect(tenant)

    async def collect(self, tenant: Tenant) -> int:
        """Purges the tenant's released blobs, except those that are pinned. Returns their number.

        Raises LogUnavailable, StoreError, or Refused when the database cannot catch up; `run` finishes the rest.
        """
        # Without the lock, because it takes a connection to a server. A row stays until its blob is purged.
        if not await self._store.released_blobs(tenant):
            return 0
        # One collection a tenant: a second one could forget a blob that the first one has just found released again.
        async with self._store.lock(f"blobs of {tenant}"):
            released, purged = await self._store.released_blobs(tenant), 0
            while released:
                purged += await self._collect_page(tenant, released)
                released = await self._store.released_blobs(tenant, after=released[-1])
        return purged

    async def _collect_page(self, tenant: Tenant, released: list[str]) -> int:
        marks: dict[str, Seq | None] = {}
        unused = await self._mark_unused(tenant, await self._forget_referenced(tenant, released), marks)
        if unused:
            await asyncio.sleep(WOKEN_WAIT_S)
            unused = await self._mark_unused(tenant, unused, marks)
        if not unused:
            return 0

        async def purge(sha256: str) -> None:
            if (seq := marks[sha256]) is not None:
                await self._blob_store.purge(tenant, sha256, seq)

        await gather_limited(purge, unused, CONCURRENCY)
        await self._store.forget_released(tenant, unused)
        logger.info("blobs of deleted turns were purged", blobs=len(unused))
        return len(unused)

    async def _mark_unused(self, tenant: Tenant, blobs: list[str], marks: dict[str, Seq | None]) -> list[str]:
        """Marks `blobs` as deleted and returns those without pin and reference.

        `marks` gets the sequence of each mark, up to which the blob may be purged; None if the blob is not stored.
        """

        async def mark(sha256: str) -> bool:
            marks[sha256] = await self._blob_store.mark_deleted(tenant, sha256)
            return not await self._pins.is_pinned(tenant, sha256)

        is_free = await gather_limited(mark, blobs, CONCURRENCY)
        unpinned = [sha256 for sha256, free in zip(blobs, is_free, strict=True) if free]
        if unpinned:
            await self._catch_up(tenant)
        return await self._forget_referenced(tenant, unpinned)

    async def _forget_referenced(self, tenant: Tenant, blobs: list[str]) -> list[str]:
        """Forgets the `blobs` that a turn refers to: they stay stored. Returns the rest."""
        referenced = await self._store.referenced_blobs(tenant, blobs)
        if referenced:
            await self._store.keep_referenced(tenant, referenced)
        return [sha256 for sha256 in blobs if sha256 not in set(referenced)]
