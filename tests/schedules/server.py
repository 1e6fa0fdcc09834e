"""SimulatedServer: a model of one turn's stream on a NATS cluster that misbehaves as real ones do.

A publish is applied, or not, at the moment of the call; the answer comes later, or never. The faults are those that
were seen on real servers: lost acknowledgements, late writes, stale reads, and forks after a change of leader.
"""

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tailrace.proto.entries import Attempt, End, Entry, Event, Request, StoredEntry
from tailrace.proto.errors import LogFull, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats.log_server import PAGE_MAX, Count, EntryPage, LiveFeed, PublishUnclear
from tailrace.testing import MemoryCounters, MemoryLog, MemorySlots, TurnEntries
from tailrace.testing.log import TYPES
from tests.harness.turn_builder import NOON
from tests.schedules.faults import FAULTLESS_AFTER_PUBLISHES, FAULTLESS_AFTER_S, Faults
from tests.schedules.process import Process
from tests.schedules.world import World

PUBLISH_TIMEOUT_S = 2.0
READ_GIVES_UP_S = 1.75
LATE_MAX_S = 4.0
CHANGE_MAX_S = 6.0
LAG_MAX_S = 0.004
# How long a former leader that wakes up answers as if it led, and how long it may have been frozen.
WOKEN_S = 0.02
SLEPT_MAX_S = 3.0
# How long one server may be behind the others: as long as its connection to them is slow (`make chaos` has seen 7 s).
BEHIND_MAX_S = 8.0
# How many of the last writes a new leader may not know when it checks a fence.
UNKNOWN_MAX = 3

Answer = tuple[float, Any]
"""In how many seconds the answer comes, and the answer; an exception is raised at the caller."""


class SimulatedServer(TurnEntries):
    """`stored` is the log. Clients and processes read it with requests and with the live feed."""

    def __init__(self, world: World, faults: Faults) -> None:
        super().__init__()
        self.world = world
        self.faults = faults
        self.publishes = 0
        self.has_end = False
        """Whether an end is stored, valid or not."""
        self.is_faultless = False
        """Whether faults are over."""
        self.happened: list[str] = []
        """The faults that have happened."""
        self.counters = MemoryCounters()
        self.slots = MemorySlots()
        self.at_publish: dict[int, list[Callable[[], Any]]] = {}
        """What to do at the publish of that number, from 1."""
        self._times: list[float] = []
        self._last = BEFORE_FIRST
        """The last sequence, also of a lost entry."""
        self.damaged: dict[TurnKey, bool] = {}
        """The notes of all processes (R144)."""
        self._changing_since_s = 0.0
        self._changing_until_s = 0.0
        self._woken_until_s = 0.0
        self._slept_since_s = 0.0
        self._behind_until_s = 0.0
        self._behind_since_s = 0.0

    def change_leader(self) -> None:
        """For a while there is no leader, or one that does not know the last writes."""
        wait_s = self.world.chance() ** 2 * CHANGE_MAX_S
        self.happened.append("change")
        self._changing_since_s, self._changing_until_s = self.world.time(), self.world.time() + wait_s
        self.world.record("server", f"changes its leader, for {wait_s:.2f} s")

    def wake_former_leader(self) -> None:
        """For a moment a former leader that was frozen answers from its own past, as if it led."""
        self._woken_until_s = self.world.time() + WOKEN_S
        self._slept_since_s = self.world.time() - self.world.chance() * SLEPT_MAX_S
        self.world.record("server", f"a former leader wakes up that was frozen at {self._slept_since_s:.4f}")

    def fall_behind(self) -> None:
        """For seconds one server answers reads from its past. It leads nothing."""
        self._behind_since_s = self.world.time()
        self._behind_until_s = self.world.time() + self.world.chance() * BEHIND_MAX_S
        self.world.record("server", f"one falls behind, until {self._behind_until_s:.4f}")

    def store(self, entry: Entry) -> Seq:
        """Stores an entry, whatever its fence, and republishes it."""
        # Between two entries of a turn stand entries of other turns.
        seq = self._last = Seq(self._last + (1 if self.world.chance() < 0.7 else 3))
        self._times.append(self.world.time())
        self.has_end |= isinstance(entry, End)
        if self.world.trace is not None:
            self.world.record("server", f"stores {seq}: {describe(entry)}")
        self.add(StoredEntry(seq, NOON, entry))
        return seq

    def lose(self, number: int) -> StoredEntry:
        lost = super().lose(number)
        del self._times[number]
        self.happened.append("lost entry")
        self.world.record("server", f"loses {lost.seq}: {describe(lost.entry)}")
        return lost

    def publish(self, entry: Entry, fence: Seq) -> Answer:
        self.publishes += 1
        self.is_faultless |= self.publishes > FAULTLESS_AFTER_PUBLISHES or self.world.time() > FAULTLESS_AFTER_S
        for do in self.at_publish.pop(self.publishes, ()):
            do()
        world, faults = self.world, self.faults
        soon_s = 0.0001 + world.chance() * 0.002
        if self.is_faultless:
            return self.apply(entry, fence, soon_s)
        if world.time() < self._changing_until_s:
            return self._publish_amid_change(entry, fence)
        u = world.chance()
        if (u := u - faults.lost_request) < 0:
            self.happened.append("lost request")
            return PUBLISH_TIMEOUT_S, PublishUnclear("lost", is_answered=False)
        if (u := u - faults.lost_ack) < 0:
            self.happened.append("lost acknowledgement")
            self.apply(entry, fence, 0)
            return PUBLISH_TIMEOUT_S, PublishUnclear("acknowledgement lost", is_answered=False)
        if (u := u - faults.late) < 0:
            self.happened.append("late write")
            world.call_after(world.chance() * LATE_MAX_S, self._apply_late, entry, fence)
            return PUBLISH_TIMEOUT_S, PublishUnclear("late", is_answered=False)
        if (u := u - faults.unsettled) < 0:
            self.happened.append("unsettled")
            if world.chance() < 0.5:
                world.call_after(world.chance() * 0.1, self._apply_late, entry, fence)
            return soon_s, PublishUnclear("10164")
        if u < faults.full:
            self.happened.append("full")
            return soon_s, LogFull("full")
        return self.apply(entry, fence, soon_s)

    def apply(self, entry: Entry, fence: Seq, wait_s: float) -> Answer:
        """Stores the entry behind the fence; the answer comes in `wait_s`."""
        if fence != self.tail:
            return wait_s, PublishUnclear("10071")
        return wait_s, self.store(entry)

    def _apply_late(self, entry: Entry, fence: Seq) -> None:
        self.world.record("server", "a write comes late")
        self.apply(entry, fence, 0)

    def _publish_amid_change(self, entry: Entry, fence: Seq) -> Answer:
        """The former leader stores nothing; the new one does not know the last writes yet and may store a fork."""
        world = self.world
        if world.chance() < 0.5:
            return PUBLISH_TIMEOUT_S, PublishUnclear("no leader", is_answered=False)
        known = [BEFORE_FIRST, *(stored.seq for stored in self.stored)][-UNKNOWN_MAX:]
        if fence not in known:
            return 0.001, PublishUnclear("10071")
        seq = self.store(entry)
        return (
            (0.001, seq)
            if world.chance() < 0.7
            else (PUBLISH_TIMEOUT_S, PublishUnclear("acknowledgement lost", is_answered=False))
        )

    def read(self, after: Seq, limit: int) -> Answer:
        return self._answer_read(lambda upto, most: self.page(after, min(limit, most), upto))

    def read_first(self) -> Answer:
        return self._answer_read(lambda upto, _: self.first_page(upto))

    def _answer_read(self, page: Callable[[int, int], EntryPage]) -> Answer:
        """`page` has two arguments: how many entries the server that answers has, and how many it returns at most."""
        world, faults = self.world, self.faults
        soon_s = 0.0001 + world.chance() * 0.002

        def seen_at(seen_s: float, most: int = PAGE_MAX) -> Answer:
            return soon_s, page(bisect_right(self._times, seen_s), most)

        if self.is_faultless:
            return seen_at(world.time())
        u = world.chance()
        if (u := u - faults.unreadable) < 0:
            self.happened.append("unreadable")
            return READ_GIVES_UP_S, LogUnavailable("no server answers")
        if (u := u - faults.stale) < 0:
            self.happened.append("stale read")
            return seen_at(world.time() - world.chance() * LAG_MAX_S)
        if self._reaches_former_leader():
            return seen_at(self._slept_since_s)
        if world.time() < self._behind_until_s and world.chance() < 0.5:
            self.happened.append("read of one that is behind")
            return seen_at(self._behind_since_s)
        if u < faults.short:
            self.happened.append("short read")
            return seen_at(world.time(), 1 + world.below(4))
        return seen_at(world.time())

    def last_seq(self, kind: Any = None) -> Answer:
        if kind is not None:
            return self._ask_leader(lambda stored: isinstance(stored.entry, kind))
        if self._is_changing() and self.world.chance() < 0.5:
            # A leader that has lost its followers does not know that yet.
            return self._ask_leader(lambda _: True, self._changing_since_s)
        return self._ask_leader(lambda _: True)

    def has_entry(self, seq: Seq) -> Answer:
        wait_s, found = self._ask_leader(lambda stored: stored.seq == seq)
        return wait_s, found if isinstance(found, Exception) else found == seq

    def count(self) -> Answer:
        """How many entries the leader knows, and up to which one; it may have lost its followers."""
        is_changing = self._is_changing() and self.world.chance() < 0.5
        wait_s, known = self._known_to_leader(self._changing_since_s if is_changing else None)
        return wait_s, known if isinstance(known, Exception) else Count(len(known), known[-1].seq if known else Seq(0))

    def _ask_leader(self, is_wanted: Callable[[StoredEntry], bool], seen_s: float | None = None) -> Answer:
        """The sequence of the last entry that is wanted, among those stored by `seen_s` (None: by now)."""
        wait_s, known = self._known_to_leader(seen_s)
        if isinstance(known, Exception):
            return wait_s, known
        return wait_s, next((stored.seq for stored in reversed(known) if is_wanted(stored)), BEFORE_FIRST)

    def _known_to_leader(self, seen_s: float | None) -> tuple[float, list[StoredEntry] | Exception]:
        """The entries stored by `seen_s` (None: by now), or by the time at which a former leader was frozen."""
        if seen_s is None and self._is_changing():
            return PUBLISH_TIMEOUT_S, LogUnavailable("no leader")
        seen_s = self.world.time() if seen_s is None else seen_s
        if self._reaches_former_leader():
            self.happened.append("old leader")
            seen_s = self._slept_since_s
        return 0.001, self.stored[: bisect_right(self._times, seen_s)]

    def _is_changing(self) -> bool:
        return self.world.time() < self._changing_until_s and not self.is_faultless

    def _reaches_former_leader(self) -> bool:
        return self.world.time() < self._woken_until_s and not self.is_faultless and self.world.chance() < 0.5

    def republish(self, stored: StoredEntry) -> None:
        world, faults = self.world, self.faults
        for feed in self.feeds:
            if not isinstance(stored.entry, feed.kind):
                continue
            u = 1.0 if self.is_faultless else world.chance()
            if u < faults.dropped:
                self.happened.append("dropped hint")
                continue
            wait_s = 0.0005 + (world.chance() * 0.01 if faults.reordered else 0)
            world.call_after(wait_s, feed.add, stored)
            if 1 - faults.repeated < u < 1:
                self.happened.append("repeated hint")
                world.call_after(wait_s + world.chance() * 0.1, feed.add, stored)


class SimulatedLog(MemoryLog):
    """The product's TurnLog over a SimulatedServer, as one process uses it. There is one turn."""

    def __init__(self, server: SimulatedServer, process: Process) -> None:
        super().__init__()
        self.damaged = server.damaged
        self._server = server
        self._process = process

    def server_of(self, key: TurnKey) -> SimulatedServer:  # noqa: ARG002  # for logs of several turns
        """Returns the server of the turn's stream."""
        return self._server

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        self._process.require_alive()
        answer = self.server_of(key).publish(entry, fence)
        seq: Seq = await self._answer("publishes", (fence, entry), answer)
        return seq

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        self._process.require_alive()
        page: EntryPage = await self._answer("reads after", after, self.server_of(key).read(after, limit))
        return page

    async def read_first(self, key: TurnKey) -> EntryPage:
        self._process.require_alive()
        page: EntryPage = await self._answer("reads", "the first entries", self.server_of(key).read_first())
        return page

    async def last_seq(self, key: TurnKey, kind: str | None = None) -> Seq:
        self._process.require_alive()
        answer = self.server_of(key).last_seq(TYPES[kind] if kind else None)
        seq: Seq = await self._answer("asks the leader for the last", kind or "entry", answer)
        return seq

    async def has_entry(self, key: TurnKey, seq: Seq) -> bool:
        self._process.require_alive()
        there: bool = await self._answer("asks the leader for", seq, self.server_of(key).has_entry(seq))
        return there

    async def count(self, key: TurnKey) -> Count:
        self._process.require_alive()
        count: Count = await self._answer("asks the leader for the number of", "entries", self.server_of(key).count())
        return count

    def is_forkless(self, key: TurnKey, request: Seq) -> bool:  # noqa: ARG002  # no turn is older than its server
        """Returns whether the log has one replica, so that each read has all entries (PROTOCOL R80)."""
        return self.server_of(key).faults.has_one_server

    @asynccontextmanager
    async def subscribe(self, key: TurnKey, kind: str = ">") -> AsyncIterator[LiveFeed]:
        self._process.require_alive()
        async with self.server_of(key).subscribe(kind, self._process) as feed:
            yield feed

    async def _answer(self, what: str, argument: object, answer: Answer) -> Any:
        wait_s, result = answer
        world = self._process.world
        if world.trace is not None:
            world.record(self._process.name, f"{what} {describe(argument)} -> {describe(result)}, in {wait_s:.4f} s")
        await world.wait(wait_s)
        if isinstance(result, Exception):
            raise result
        return result


def describe(what: object) -> str:
    """Describes an argument, an answer or an entry in one line of the trace."""
    match what:
        case EntryPage(stored, is_last):
            return f"[{' '.join(str(one.seq) for one in stored)}]{'' if is_last else ' and more'}"
        case (fence, entry):
            return f"behind {fence}: {describe(entry)}"
        case BaseException():
            return f"{type(what).__name__}({what})"
        case Request():
            return "request"
        case Event():
            return f"event of {what.attempt} after {what.prev} {bytes(what.event).decode():.90}"
        case Attempt():
            return f"attempt {what.attempt} after {what.prev}, {what.mode}"
        case End():
            return f"end of {what.attempt} after {what.prev}, {what.outcome}"
        case _:
            return str(what)
