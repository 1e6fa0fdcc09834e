"""MemoryDeliveries: a durable pull consumer in memory, whose leases expire unless they are renewed."""

import asyncio
import math
from collections.abc import Callable, Iterable

from tailrace.proto.entries import KINDS, StoredEntry, encode
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats.leases import PULL_S, Backlog, Deliveries, Delivery, Mark, Progress

ACK_WAIT_S = 30.0


class MemoryDelivery(Delivery):
    """One delivery of an entry. `acked` and `released` say what its holder has done with it."""

    def __init__(
        self,
        key: TurnKey,
        stored: StoredEntry,
        times: int = 1,
        ack_wait_s: float = ACK_WAIT_S,
        mark: Mark | None = None,
    ) -> None:
        self.ack_wait_s = ack_wait_s
        self.key = key
        self.kind = KINDS[type(stored.entry)]
        self.seq = stored.seq
        self.at = stored.at
        self.times = times
        self.number = times
        self._payload = encode(stored.entry)
        self.mark = None if mark is None else mark(key.turn, self._payload)
        self.is_acked = False
        self.due_s = math.inf
        """When it is delivered again, in the time of the event loop."""

    async def renew(self) -> None:
        self.due_s = asyncio.get_running_loop().time() + self.ack_wait_s

    async def extend(self, lease_s: float) -> None:
        self.due_s = asyncio.get_running_loop().time() + lease_s

    async def ack(self) -> None:
        self.is_acked = True

    async def release(self, delay_s: float = 0.0) -> None:
        self.due_s = asyncio.get_running_loop().time() + delay_s


class MemoryDeliveries(Deliveries):
    """Delivers the entries that `add` gets, each until it is acknowledged."""

    def __init__(self, ack_wait_s: float = ACK_WAIT_S) -> None:
        self.ack_wait_s = ack_wait_s
        self.delivered: list[MemoryDelivery] = []
        """All deliveries, also repeated ones."""
        self._entries: dict[tuple[TurnKey, Seq], tuple[StoredEntry, MemoryDelivery | None]] = {}
        self._added = asyncio.Event()

    def add(self, key: TurnKey, stored: StoredEntry) -> None:
        """Adds an entry to be delivered."""
        self._entries[key, stored.seq] = (stored, None)
        self._added.set()

    def watch(self, key: TurnKey, *kinds: type) -> Callable[[StoredEntry], None]:
        """Returns a function for `TurnEntries.watches` that adds the turn's entries of `kinds`."""
        return lambda stored: self.add(key, stored) if isinstance(stored.entry, kinds) else None

    @property
    def is_done(self) -> bool:
        """Whether all entries are acknowledged."""
        return all(last is not None and last.is_acked for _, last in self._entries.values())

    async def next(self, most: int = 1, mark: Mark | None = None) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PULL_S
        while not (due := self._find_due(loop.time())) and loop.time() < deadline:
            self._added.clear()
            leased = (last for _, last in self._entries.values() if last is not None and not last.is_acked)
            soonest_s = min((last.due_s for last in leased), default=math.inf)
            waking = loop.call_at(min(deadline, soonest_s), self._added.set)
            await self._added.wait()
            waking.cancel()
        return [await self._lease(*name, mark) for name in due[:most]]

    def _find_due(self, now_s: float) -> list[tuple[TurnKey, Seq]]:
        return [
            name
            for name, (_, last) in self._entries.items()
            if last is None or (not last.is_acked and last.due_s <= now_s)
        ]

    async def _lease(self, key: TurnKey, seq: Seq, mark: Mark | None) -> Delivery:
        stored, last = self._entries[key, seq]
        delivery = MemoryDelivery(key, stored, 1 if last is None else last.times + 1, self.ack_wait_s, mark)
        delivery.number = len(self.delivered) + 1
        self._entries[key, seq] = (stored, delivery)
        self.delivered.append(delivery)
        await delivery.renew()
        return delivery

    async def resume(self, seq: Seq) -> Delivery | None:
        return next((last for (_, one), (_, last) in self._entries.items() if one == seq), None)

    async def release(self, seqs: Iterable[Seq]) -> None:
        for seq in seqs:
            if (delivery := await self.resume(seq)) is not None:
                await delivery.release()

    async def backlog(self) -> Backlog:
        waiting = sum(last is None for _, last in self._entries.values())
        open_seqs = [seq for (_, seq), (_, last) in self._entries.items() if last is None or not last.is_acked]
        leased = len(open_seqs) - waiting
        newest = max((one.seq for one in self.delivered), default=BEFORE_FIRST)
        floor = Seq(min(open_seqs) - 1) if open_seqs else newest
        return Backlog(waiting, leased, newest, floor, len(self.delivered))

    async def progress(self) -> Progress:
        last, backlog = await self.last_seq(), await self.backlog()
        reached = min((Seq(seq - 1) for (_, seq), (_, lease) in self._entries.items() if lease is None), default=last)
        return Progress(last, reached, backlog.delivered, backlog.number, backlog.floor, backlog.leased)

    async def first_seq(self) -> Seq:
        return Seq(1)

    async def last_seq(self) -> Seq:
        return max((seq for _, seq in self._entries), default=BEFORE_FIRST)

    async def reset(self) -> None:
        self._entries = {name: (stored, None) for name, (stored, _) in self._entries.items()}
        self._added.set()
