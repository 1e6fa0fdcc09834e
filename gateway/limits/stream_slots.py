"""Slots of open streams, for the limit `streams` of a key and of a tenant over all gateways.

A slot is renewed while its stream is open. The slots of a gateway that was killed are free after SLOT_LIFE_S. While
NATS is unreachable streams are not counted: what they deliver is paid for. reader_counts.py still limits each gateway.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cached_property

import structlog

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.limits.limiter import Limiter
from tailrace.gateway.limits.quotas import Owner
from tailrace.gateway.limits.reader_counts import Groups, ReaderCounts
from tailrace.proto.errors import LogError, LogUnavailable, Refused
from tailrace.proto.ids import new_id
from tailrace.proto.nats.leases import keep_renewed
from tailrace.proto.nats.slots import Slot

logger = structlog.get_logger()

SLOT_LIFE_S = 6
# Two renewals may fail.
RENEW_INTERVAL_S = SLOT_LIFE_S / 3
RETRY_AFTER_S = 2.0
STREAMS = "streams"


class StreamSlots:
    """The streams of this gateway, whose slots are renewed."""

    def __init__(self, limiter: Limiter, readers: ReaderCounts) -> None:
        self.limiter = limiter
        self.readers = readers
        self.open: set[StreamPermit] = set()
        """The permits that hold slots."""

    async def renew_periodically(self) -> None:
        """Renews the slots of all open streams until it is cancelled."""
        await keep_renewed(lambda: self.open, RENEW_INTERVAL_S)


class StreamPermit:
    """The permission for one stream: a count among this gateway's readers, and a slot of each owner that has a limit.

    Each step is done once: a POST can take the steps before its turn is submitted, and its stream repeats none of them.
    """

    def __init__(self, streams: StreamSlots, principal: Principal, address: str) -> None:
        self.principal = principal
        self._streams = streams
        self._address = address
        self._owners: list[Owner] = []
        self._slots: dict[str, Slot] = {}
        """By the name of the owner. An owner without one had none free, or NATS was unreachable."""
        self._counted: Groups | None = None
        self._is_acquired = False

    @cached_property
    def holder(self) -> str:
        """The name under which the slots are held."""
        return new_id()

    def enter(self) -> None:
        """Counts the reader in this gateway. Raises Refused above a limit."""
        if self._counted is None:
            # A proxy has one address for all its users. A credential says whose reader it is, so its tenant is counted.
            address = self._address if self.principal.key is None else None
            self._counted = self._streams.readers.add(self.principal.tenant, address)

    async def acquire(self) -> None:
        """Acquires the slots over all gateways, which are renewed until `release`. Raises Refused if all are taken."""
        if self._is_acquired:
            return
        limiter = self._streams.limiter
        owners = limiter.owners(self.principal) if limiter.has_limits(self.principal) else ()
        self._owners = [owner for owner in owners if owner.limits.streams is not None]
        try:
            for owner in self._owners:
                slot = await self._acquire_of(owner)
                if slot is None:
                    most = owner.limits.streams
                    raise Refused(
                        "too_many_streams",
                        f"This {owner.noun} has {most} open streams, its limit; close one.",
                        retry_after_s=RETRY_AFTER_S,
                    )
                self._slots[owner.name] = slot
        except Refused:
            await self._release_slots()
            raise
        except LogUnavailable as error:
            logger.debug("stream not counted", error=str(error))
        if self._owners:
            self._streams.open.add(self)
        self._is_acquired = True

    async def _acquire_of(self, owner: Owner) -> Slot | None:
        return await self._streams.limiter.slots.acquire(
            owner.tenant, owner.name, STREAMS, owner.limits.streams or 0, self.holder, life_s=SLOT_LIFE_S
        )

    async def release(self) -> None:
        """Stops counting the reader and releases its slots. May be called twice."""
        self._is_acquired = False
        counted, self._counted = self._counted, None
        if counted is not None:
            self._streams.readers.remove(counted)
        await self._release_slots()

    async def _release_slots(self) -> None:
        self._streams.open.discard(self)
        # Before freeing: a concurrent renewal sees that the permit is released, and frees the slot that it gets.
        slots, self._slots = self._slots, {}
        # A slot that cannot be freed expires.
        with suppress(LogError):
            for slot in slots.values():
                await self._streams.limiter.slots.release(slot.seq)

    async def renew(self) -> None:
        """Renews the slots of a stream for SLOT_LIFE_S seconds. Changes nothing while NATS is unreachable.

        A slot may have expired while NATS was unreachable. The stream stays open, and takes one again if one is free.
        """
        slots = self._streams.limiter.slots
        with suppress(LogError):
            for owner in self._owners:
                slot = self._slots.get(owner.name)
                newer = await slots.renew(slot, self.holder, SLOT_LIFE_S) if slot is not None else None
                if newer is None and self._is_acquired:
                    newer = await self._acquire_of(owner)
                if not self._is_acquired:
                    # The stream was closed meanwhile.
                    if newer is not None:
                        await slots.release(newer.seq)
                    continue
                self._slots.pop(owner.name, None)
                if newer is not None:
                    self._slots[owner.name] = newer

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator[None]:
        """Reserves the stream before its turn is submitted; releases it if that fails. Raises Refused."""
        try:
            self.enter()
            await self.acquire()
            yield
        except BaseException:
            await self.release()
            raise
