"""MemoryCounters and MemorySlots: the counters and the distributed semaphore of the limits, in memory."""

import asyncio
import math
from datetime import UTC, datetime
from typing import NamedTuple

from tailrace.proto import subjects
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Counters, Slots
from tailrace.proto.nats.counters import Increment, Once
from tailrace.proto.nats.slots import HeldSlot, Slot


class MemoryCounters(Counters):
    """All counters in memory. They are kept."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        """By subject."""
        self._named: dict[tuple[str, str], Seq] = {}
        self._newest = 0

    async def increment(self, subject: str, amount: int) -> Increment:
        self.values[subject] = self.values.get(subject, 0) + amount
        self._newest += 1
        return Increment(self.values[subject], Seq(self._newest))

    async def add_once(self, subject: str, amount: int, name: str, _: datetime | None = None) -> Once:
        is_new = (subject, name) not in self._named
        if is_new:
            self._named[subject, name] = (await self.increment(subject, amount)).seq
        return Once(self._named[subject, name], is_new)


class _Held(NamedTuple):
    slot: HeldSlot
    until_s: float


class MemorySlots(Slots):
    """All slots in memory. One with a lifetime is free when the event loop's time has reached its end."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        """By subject."""
        self._newest = 0

    async def list_held(self, tenant: Tenant, owner: str, what: str) -> list[HeldSlot]:
        prefix = subjects.slots(tenant, owner, what)[:-1]
        return [slot for subject in [*self._held] if subject.startswith(prefix) and (slot := self._find(subject))]

    async def acquire(
        self, tenant: Tenant, owner: str, what: str, most: int, holder: str, *, life_s: int | None = None
    ) -> Slot | None:
        taken = {slot.subject for slot in await self.list_held(tenant, owner, what)}
        free = (name for number in range(most) if (name := subjects.slot(tenant, owner, what, number)) not in taken)
        return self._hold(next(free), holder, life_s) if len(taken) < most else None

    async def renew(self, slot: Slot, holder: str, life_s: int) -> Slot | None:
        held = self._find(slot.subject)
        return self._hold(slot.subject, holder, life_s) if held is not None and held.seq == slot.seq else None

    async def release(self, seq: Seq) -> None:
        self._held = {subject: held for subject, held in self._held.items() if held.slot.seq != seq}

    def _hold(self, subject: str, holder: str, life_s: int | None) -> Slot:
        self._newest += 1
        until_s = math.inf if life_s is None else asyncio.get_running_loop().time() + life_s
        self._held[subject] = _Held(HeldSlot(subject, Seq(self._newest), holder, datetime.now(UTC)), until_s)
        return Slot(subject, Seq(self._newest))

    def _find(self, subject: str) -> HeldSlot | None:
        held = self._held.get(subject)
        return held.slot if held is not None and held.until_s > asyncio.get_running_loop().time() else None
