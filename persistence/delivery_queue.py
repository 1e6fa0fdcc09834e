"""DeliveryQueue: the delivered entries that are not recorded yet, in a fair order, and which tenants are recorded."""

import asyncio
from collections.abc import Generator, Iterable
from itertools import chain

from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnKey
from tailrace.proto.nats import Delivery
from tailrace.proto.nats.leases import Progress
from tailrace.proto.runtime.race import is_set_within

# Their payloads together. The payload of a further entry is read from the log when the entry is recorded.
KEPT_BYTES_MAX = 64 * 1024 * 1024
# The turns of the smallest batch: the oldest one, and one of the next tenant, which would otherwise wait for all older
# turns of another.
TURNS_MIN = 2


class DeliveryQueue:
    """Entries wait here, so that the recorder can record the tenants in turn. All waiting entries of a turn go
    together.

    The queue also knows which tenants are recorded up to an entry, although others are not. This is certain only if
    this process has received every delivery: deliveries are numbered, and a missing number went to another process, or
    was lost. Then, and after a start, all entries that were delivered until then must be acknowledged first.
    """

    def __init__(self) -> None:
        self._waiting: dict[Tenant, dict[TurnKey, dict[Seq, Delivery]]] = {}
        self._taken: dict[Seq, Delivery] = {}
        self._added = asyncio.Event()
        self._unrecorded: dict[Tenant, set[Seq]] = {}
        """Every delivered entry that this process has not recorded, also if it has given up the lease."""
        self._number = 0
        """The number of the last delivery."""
        self._newest = BEFORE_FIRST
        """The last entry that was delivered."""
        self._others_upto: Seq | None = BEFORE_FIRST
        """Entries after this one were not delivered to another process. None: not known."""
        self._missing_number = 0
        """The number of the last delivery that did not come to this process."""
        self._recorded = BEFORE_FIRST
        """The last entry that was recorded."""
        self._kept_bytes = 0

    def __len__(self) -> int:
        """Returns how many entries this process leases."""
        return len(self._taken) + sum(len(entries) for turns in self._waiting.values() for entries in turns.values())

    async def wait(self, timeout_s: float) -> bool:
        """Returns whether an entry waits, as soon as one does, or after `timeout_s`."""
        if not self._waiting:
            self._added.clear()
            await is_set_within(self._added, timeout_s)
        return bool(self._waiting)

    def leases(self) -> Iterable[Delivery]:
        """Returns the waiting deliveries, and those that `take` has returned and that are not settled."""
        waiting = (one for turns in self._waiting.values() for entries in turns.values() for one in entries.values())
        return chain(waiting, self._taken.values())

    def begin(self, progress: Progress) -> None:
        """Notes the progress of the consumer at the start, before the first delivery to this process."""
        self._number, self._newest = progress.number, progress.delivered
        self._others_upto = progress.delivered if progress.leased else BEFORE_FIRST
        self._recorded = progress.delivered

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Adds deliveries, in the order of their numbers. A newer delivery replaces an older one of the same entry."""
        for delivery in deliveries:
            if delivery.number != self._number + 1:
                self._others_upto, self._missing_number = None, delivery.number - 1
            self._number = delivery.number
            self._newest = max(self._newest, delivery.seq)
            tenant = delivery.key.tenant
            self._unrecorded.setdefault(tenant, set()).add(delivery.seq)
            entries = self._waiting.setdefault(tenant, {}).setdefault(delivery.key, {})
            if (older := entries.get(delivery.seq)) is not None:
                self._kept_bytes -= older.kept_bytes
            entries[delivery.seq] = delivery
            if self._kept_bytes + delivery.kept_bytes > KEPT_BYTES_MAX:
                delivery.drop_entry()
            self._kept_bytes += delivery.kept_bytes
            self._added.set()

    def take(self, most: int) -> Generator[list[Delivery], None, None]:
        """Yields the waiting entries turn by turn: those of the oldest turn, then of the tenants in turn.

        At most `most` entries, or those of two turns, and no more than wait at the first step. Entries that are not
        yielded wait for the next call. Ends before a turn that it has yielded already: its end has arrived meanwhile.
        """
        self._taken = {}
        left, yielded = min(most, len(self)), set[TurnKey]()
        while self._waiting:
            # Each batch has the oldest entry, so that `reached_with` grows with each batch.
            tenant = next(iter(self._waiting)) if yielded else min(self._waiting, key=self._head)
            turns = self._waiting[tenant]
            key, entries = next(iter(turns.items()))
            if key in yielded or (len(yielded) >= TURNS_MIN and len(entries) > left):
                return
            left -= len(entries)
            yielded.add(key)
            del turns[key], self._waiting[tenant]
            if turns:
                # The tenant goes to the end of the round.
                self._waiting[tenant] = turns
            self._kept_bytes -= sum(one.kept_bytes for one in entries.values())
            self._taken |= entries
            yield list(entries.values())

    def _head(self, tenant: Tenant) -> Seq:
        """Returns the first entry of the turn of `tenant` that has waited longest."""
        return next(iter(next(iter(self._waiting[tenant].values()))))

    def reached_with(self, batch: Iterable[Delivery]) -> Seq:
        """Returns the entry up to which this process has recorded its deliveries when it has recorded `batch`."""
        self._recorded = max([self._recorded, *(one.seq for one in batch)])
        return min([self._recorded, *(Seq(self._head(tenant) - 1) for tenant in self._waiting)])

    def settle(self, batch: Iterable[Delivery]) -> None:
        """Notes that `batch` is recorded, or will never be."""
        self._taken = {}
        for delivery in batch:
            self._forget(delivery.key.tenant, {delivery.seq})

    def give_back(self) -> list[Delivery]:
        """Removes and returns all leased entries, which are to be delivered again."""
        leases = list(self.leases())
        self._waiting, self._taken, self._kept_bytes = {}, {}, 0
        return leases

    def has_recorded(self, tenant: Tenant | None, upto: Seq, progress: Progress) -> bool:
        """Returns whether all entries of `tenant` up to `upto` are recorded; None: of all tenants.

        `progress` was read after `upto` was stored.
        """
        for one in list(self._unrecorded):
            # Another process may have recorded them.
            self._forget(one, {seq for seq in self._unrecorded[one] if seq <= progress.floor})
        if progress.has_acknowledged(upto):
            return True
        if self._others_upto is None and progress.number >= self._missing_number:
            # A progress that was read before that delivery does not include its entry.
            self._others_upto = progress.delivered
        has_received_all = (
            self._others_upto is not None
            and progress.reached >= upto
            and progress.floor >= self._others_upto
            and self._number >= progress.number
            and self._newest >= progress.delivered
        )
        if tenant is None or not has_received_all:
            return False
        return not any(seq <= upto for seq in self._unrecorded.get(tenant, ()))

    def _forget(self, tenant: Tenant, recorded: set[Seq]) -> None:
        left = self._unrecorded.get(tenant, set())
        left -= recorded
        if not left:
            self._unrecorded.pop(tenant, None)
