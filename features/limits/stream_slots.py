"""Slots of open streams, for the limit `streams` of a key and of a tenant over all gateways.

A slot is renewed while its stream is open. The slots of a gateway that was killed are free after SLOT_LIFE_S. While
NATS is unreachable streams are not counted: what they deliver is paid for. reader_counts.py still limits each gateway.
"""

from collections.abc import Sequence
from contextlib import suppress

import structlog

from tailrace.features.limits.quotas import Owner
from tailrace.proto.errors import LogError, LogUnavailable, Refused
from tailrace.proto.ids import new_id
from tailrace.proto.nats import Slots
from tailrace.proto.nats.leases import keep_renewed
from tailrace.proto.nats.slots import Slot

logger = structlog.get_logger()

SLOT_LIFE_S = 6
# Two renewals may fail.
RENEW_INTERVAL_S = SLOT_LIFE_S / 3
RETRY_AFTER_S = 2.0
STREAMS = "streams"


class StreamSlots:
    """The slots of this gateway's streams, which are renewed."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.open: set[HeldSlots] = set()
        """The slots of the open streams."""

    async def renew_periodically(self) -> None:
        """Renews the slots of all open streams until it is cancelled."""
        await keep_renewed(lambda: self.open, RENEW_INTERVAL_S)


class HeldSlots:
    """The slots of one stream: one of each owner that has a limit."""

    def __init__(self, streams: StreamSlots, owners: Sequence[Owner]) -> None:
        self.holder = new_id()
        """The name under which the slots are held."""
        self._streams = streams
        self._owners = owners
        self._slots: dict[str, Slot] = {}
        """Slots by owner name. A missing owner had no free slot, or NATS was unreachable."""
        self._is_open = False

    async def acquire(self) -> None:
        """Acquires the slots, which are renewed until `release`. Raises Refused if all slots of an owner are taken."""
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
            await self.release()
            raise
        except LogUnavailable as error:
            logger.debug("stream not counted", error=str(error))
        self._streams.open.add(self)
        self._is_open = True

    async def _acquire_of(self, owner: Owner) -> Slot | None:
        return await self._streams.slots.acquire(
            owner.tenant, owner.name, STREAMS, owner.limits.streams or 0, self.holder, life_s=SLOT_LIFE_S
        )

    async def release(self) -> None:
        """Frees the slots. May be called twice."""
        self._is_open = False
        self._streams.open.discard(self)
        # Before freeing: a concurrent renewal sees that the stream is closed, and frees the slot that it gets.
        slots, self._slots = self._slots, {}
        # A slot that cannot be freed expires.
        with suppress(LogError):
            for slot in slots.values():
                await self._streams.slots.release(slot.seq)

    async def renew(self) -> None:
        """Renews the slots for SLOT_LIFE_S seconds. Changes nothing while NATS is unreachable.

        A slot may have expired while NATS was unreachable. The stream stays open, and takes a new slot if one is free.
        """
        slots = self._streams.slots
        with suppress(LogError):
            for owner in self._owners:
                slot = self._slots.get(owner.name)
                newer = await slots.renew(slot, self.holder, SLOT_LIFE_S) if slot is not None else None
                if newer is None and self._is_open:
                    newer = await self._acquire_of(owner)
                if not self._is_open:
                    # The stream was closed meanwhile.
                    if newer is not None:
                        await slots.release(newer.seq)
                    continue
                self._slots.pop(owner.name, None)
                if newer is not None:
                    self._slots[owner.name] = newer
