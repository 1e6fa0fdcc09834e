"""Fair share: which tenant's turn may start, so that the turns of one tenant do not make all others wait.

A turn cannot be interrupted for another, and may take minutes. So a tenant may use only a share of the slots that the
other tenants leave free, and some slots always remain for a tenant without running turns. This is the rule of dynamic
thresholds for shared buffers (Choudhury and Hahne, 1998). Turns above the share wait here, in the order of arrival for
each tenant, but those that a lane places last after all others.
"""

from collections import Counter, deque
from math import floor

from tailrace.proto.ids import Tenant, TurnKey

# So many turns of a tenant wait in a generator, or as many as it has started in the last STARTED_WITHIN_S. Further
# turns of the tenant are given back to the queue, where other generators can take them.
WAITING_TENANT_MAX = 64
STARTED_WITHIN_S = 8.0


class FairShare:
    """The slots of one generator. Every method returns at once."""

    def __init__(self, slots: int, share: float) -> None:
        """A tenant may use this `share` of the slots that other tenants leave free; 1: all of them."""
        self._slots = slots
        self._share = share
        self._running: Counter[Tenant] = Counter()
        self._waiting: dict[Tenant, tuple[deque[TurnKey], deque[TurnKey]]] = {}
        """For each tenant: turns, and those that wait behind them."""
        self._starts: dict[Tenant, deque[float]] = {}
        """When the tenant's turns of the last STARTED_WITHIN_S were started."""

    @property
    def free(self) -> int:
        """The number of free slots of this process."""
        return self._slots - self._running.total()

    def may_start(self, tenant: Tenant) -> bool:
        """Returns whether the next turn of `tenant` may start. The first turn of a tenant needs only a free slot."""
        mine = self._running[tenant]
        left_free = self._slots - (self._running.total() - mine)
        return self.free > 0 and mine < max(1, floor(self._share * left_free))

    def enqueue(self, key: TurnKey, now_s: float, *, is_last: bool = False) -> bool:
        """Makes a turn wait; returns False if too many turns of its tenant and kind wait already."""
        waiting = self._waiting.get(key.tenant, (deque(), deque()))
        if len(waiting[is_last]) >= max(WAITING_TENANT_MAX, self._count_starts(key.tenant, now_s)):
            return False
        waiting[is_last].append(key)
        self._waiting[key.tenant] = waiting
        return True

    def is_waiting(self, tenant: Tenant) -> bool:
        return tenant in self._waiting

    def dequeue(self) -> TurnKey | None:
        """Removes and returns a waiting turn that may start. Its tenant goes to the end of the round."""
        for tenant in list(self._waiting):
            if not self.may_start(tenant):
                continue
            first, last = waiting = self._waiting.pop(tenant)
            key = (first or last).popleft()
            if any(waiting):
                self._waiting[tenant] = waiting
            return key
        return None

    def count_waiting(self) -> dict[Tenant, int]:
        """Returns how many turns wait, by tenant; 0 for others whose next turn would wait although a slot is free."""
        counts = {tenant: 0 for tenant in self._running if not self.may_start(tenant)} if self.free > 0 else {}
        return counts | {tenant: len(first) + len(last) for tenant, (first, last) in self._waiting.items()}

    def waiting_turns(self) -> list[TurnKey]:
        return [key for waiting in self._waiting.values() for kind in waiting for key in kind]

    def clear(self) -> list[TurnKey]:
        """Removes and returns all waiting turns."""
        keys = self.waiting_turns()
        self._waiting.clear()
        return keys

    def note_start(self, tenant: Tenant, now_s: float) -> None:
        self._running[tenant] += 1
        self._starts.setdefault(tenant, deque()).append(now_s)
        self._count_starts(tenant, now_s)

    def has_long_wait(self, tenant: Tenant, now_s: float) -> bool:
        """Returns whether a turn that was not enqueued could hardly start here within STARTED_WITHIN_S.

        As many turns wait as were started in this time. False if these are few: then nothing is known.
        """
        return self._count_starts(tenant, now_s) >= WAITING_TENANT_MAX

    def _count_starts(self, tenant: Tenant, now_s: float) -> int:
        """Returns how many turns of the tenant were started in the last STARTED_WITHIN_S."""
        starts = self._starts.get(tenant)
        while starts and starts[0] < now_s - STARTED_WITHIN_S:
            starts.popleft()
        return len(starts or ())

    def note_end(self, tenant: Tenant) -> None:
        """Gives back the slot that `note_start` took for a turn of the tenant."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
            if tenant not in self._waiting:
                self._starts.pop(tenant, None)
