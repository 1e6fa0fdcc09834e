"""One schedule: a turn is asked, carried, cancelled, read and recorded while things go wrong. Nobody judges here."""

from collections.abc import Callable
from functools import partial

from tailrace.proto import chain as proto_chain
from tailrace.proto import events
from tailrace.proto.chain import START
from tailrace.proto.entries import Event
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.subjects import TurnKey
from tests.schedules import answers
from tests.schedules.client import Asking, Cancelling, Looking
from tests.schedules.faults import Faults
from tests.schedules.generator import Worker
from tests.schedules.lease import Queue
from tests.schedules.reader import Reading
from tests.schedules.recorder import Recording
from tests.schedules.stream import Stream
from tests.schedules.world import World

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))
# What takes longer never ends: the longest of 20,000 took 625.
HAPPENINGS_MAX = 3000
SOON_S = 0.0005
FREEZE_MAX_S = 6.0
# How often there is a second reader, who is never cut.
SECOND = 0.3
POLICIES = ("continue", "restart", "fail")
STRAY = events.BlockDelta(0, events.TextDelta("a stray's"))
# Strays go by the rule as it is written, whatever a mutant has made of everybody else's.
link = proto_chain.link


class Schedule:
    """Everybody who takes part, and what they will have seen."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.seed = seed
        world = self.world = World(seed, is_traced=is_traced)
        faults = self.faults = Faults(world)
        stream = self.stream = Stream(world, faults)
        self.script = answers.SCRIPTS[world.below(len(answers.SCRIPTS))]
        self.policy = POLICIES[world.below(len(POLICIES))]
        request = answers.question(self.script, self.policy)
        self.askers = [Asking(stream, KEY, f"asking-{n}", request) for n in range(1 + faults.is_asked_twice)]
        self.workers = [Worker(stream, KEY, self.script, f"worker-{n}") for n in range(2)]
        cuts: list[list[int]] = [sorted(faults.cuts), []]
        self.readers = [Reading(stream, KEY, f"reader-{n}", cuts[n]) for n in range(1 + (world.chance() < SECOND))]
        for reader in self.readers:
            reader.is_known = self._is_acknowledged
        self.recorder = Recording(stream, KEY)
        self.cancels = [Cancelling(stream, KEY, f"cancel-{n}") for n, _ in enumerate(faults.cancels)]
        self.looker = Looking(stream, KEY, "looking", self.readers[0])
        self.queue = Queue(stream, self.workers)
        stream.on_request = self.queue.stored
        stream.on_end = self.recorder.told
        stream.end_feeds += [worker.hear for worker in self.workers]
        if faults.is_hedged:
            stream.race_feeds += [worker.hear for worker in self.workers]
        self.is_over = False

    def play(self) -> None:
        world, faults = self.world, self.faults
        for asker in self.askers:
            world.after(world.chance() * 0.004, asker.post)
        for reader in self.readers:
            world.after(world.chance() ** 2 * 0.2, reader.connect)
        self._at(faults.kills, lambda: self.queue.kill(self._somebody()))
        self._at(faults.freezes, self._freeze)
        self._at(faults.thefts, self.queue.steal)
        self._at(faults.changes, self.stream.change_leader)
        self._at(faults.wakings, self.stream.wake)
        self._at(faults.lags, self.stream.fall_behind)
        self._at(faults.strays, self._stray)
        self._at(faults.doubts, self.readers[-1].doubt)
        self._at(faults.looks, self.looker.look)
        for cancel, moment in zip(self.cancels, faults.cancels, strict=True):
            self._at([moment], partial(world.after, SOON_S, cancel.cancel))
        self.is_over = world.run(self._is_over, HAPPENINGS_MAX)

    def _at(self, moments: list[int], do: Callable[[], None]) -> None:
        for moment in moments:
            self.stream.at_publish.setdefault(moment, []).append(do)

    def _somebody(self) -> Worker:
        """Rather one who has the turn."""
        busy = [worker for worker in self.workers if worker.is_busy] or self.workers
        return busy[self.world.below(len(busy))]

    def _freeze(self) -> None:
        worker = self._somebody()
        worker.freeze(self.world.chance() * FREEZE_MAX_S)
        self.queue.lapse(worker)

    def _stray(self) -> None:
        """Somebody, of whatever version, writes on under an attempt that is over."""
        chain = START
        for stored in self.stream.stored:
            chain = link(chain, stored.seq, stored.entry) or chain
        if chain.attempt and not chain.is_ended:
            self.world.tell("a stray", f"writes under attempt {chain.attempt - 1}")
            self.stream.store(Event(prev=chain.last, attempt=chain.attempt - 1, event=events.encode(STRAY)))

    def _is_acknowledged(self) -> bool:
        return any(asker.acknowledged for asker in self.askers)

    def _is_over(self) -> bool:
        if not self.queue.is_done or not self.recorder.is_done:
            return False
        for one in (*self.askers, *self.cancels, self.looker):
            if one.is_busy:
                return False
        return all(reader.is_over for reader in self.readers)
