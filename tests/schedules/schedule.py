"""Schedule: one turn is posted, generated, cancelled, read and recorded while faults happen. The judge is elsewhere."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec

from tailrace.features.structured_output.json_schema import SchemaChecker
from tailrace.generators import attempt_runner, delta_ticks
from tailrace.generators.backends.large_events import LARGE_BYTES
from tailrace.proto import chain as proto_chain
from tailrace.proto import events, subjects
from tailrace.proto.chain import START
from tailrace.proto.entries import End, Event, Request, Reservation
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tests.harness.virtual_time import run
from tests.schedules import model
from tests.schedules.client import Canceller, Poster, TurnPoller
from tests.schedules.consumer import SimulatedConsumer
from tests.schedules.faults import Faults
from tests.schedules.generator import Generator
from tests.schedules.quiet import only_failures
from tests.schedules.reader import Reader
from tests.schedules.recorder import SimulatedRecorder
from tests.schedules.server import SimulatedServer
from tests.schedules.world import World

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))
BUDGETS = [
    subjects.budget(KEY.tenant, "tenant", *period) for period in (("usd_day", "2026-01-01"), ("usd_month", "2026-01"))
]
# Nano-dollars, more than any answer costs.
RESERVED = 10**9
# A schedule that needs more callbacks never ends.
HANDLES_MAX = 50_000
SOON_S = 0.0005
# In every so many schedules, each event counts as large: the answer is read on when the event is stored.
LARGE_EVERY = 4
# In every so many schedules, the generators are always busy: deltas wait for the next common moment.
BUSY_EVERY = 3
FREEZE_S_MAX = 6.0
# The share of schedules with a second reader, whose connection is never cut.
SECOND_READER = 0.3
POLICIES = ("continue", "restart", "fail")
STRAY = events.BlockDelta(0, events.TextDelta("a stray's"))
# Stray writers follow the rule as it is written, also when a mutant has replaced it for all others.
link = proto_chain.link


class Schedule:
    """All processes of one schedule, and what the judge looks at."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.seed = seed
        world = self.world = World(seed, is_traced=is_traced)
        faults = self.faults = Faults(world)
        server = self.server = SimulatedServer(world, faults)
        self.script = model.SCRIPTS[world.below(len(model.SCRIPTS))]
        policy = POLICIES[world.below(len(POLICIES))]
        request = msgspec.structs.replace(model.question(self.script, policy), holds=run(self._reserve()))
        self.posters = [Poster(server, KEY, f"poster-{n}", request) for n in range(1 + faults.is_sent_twice)]
        self.requests = SimulatedConsumer(
            server, KEY, lambda one: isinstance(one.entry, Request), self._check_acknowledged
        )
        self.generators = [Generator(server, self.requests, self.script, f"generator-{n}") for n in range(2)]
        cuts: list[list[int]] = [sorted(faults.cuts), []]
        self.readers = [
            Reader(server, KEY, f"reader-{n}", cuts[n], self._is_posted)
            for n in range(1 + (world.chance() < SECOND_READER))
        ]
        self.ends = SimulatedConsumer(server, KEY, lambda one: isinstance(one.entry, Request | End), lambda _: None)
        self.recorder = SimulatedRecorder(server, self.ends)
        self.cancellers = [Canceller(server, KEY, f"canceller-{n}") for n, _ in enumerate(faults.cancels)]
        self.poller = TurnPoller(server, KEY, "poller", self.readers[0])
        self.too_early: list[str] = []
        """Acknowledgements of the request while the log had no end."""
        self.is_over = False

    async def _reserve(self) -> list[Reservation]:
        """Returns what a gateway has reserved for the turn."""
        holds = []
        for subject in BUDGETS:
            await self.server.counters.add(subject, RESERVED)
            holds.append(Reservation(subject, "nusd", RESERVED))
        slot = await self.server.slots.acquire(KEY.tenant, "tenant", "running", 1, KEY.turn)
        assert slot is not None
        return [*holds, Reservation(slot.subject, "slot", slot.seq)]

    def play(self) -> None:
        """Runs the schedule until all clients and processes have finished."""
        world, faults = self.world, self.faults
        for poster in self.posters:
            poster.post_after(world.chance() * 0.004)
        for reader in self.readers:
            reader.read_after(world.chance() ** 2 * 0.2)
        for generator in self.generators:
            generator.start()
        self.recorder.start()
        self._at(faults.kills, lambda: self._some_generator().kill())
        self._at(faults.drains, lambda: self._some_generator().drain())
        self._at(faults.freezes, self._freeze)
        self._at(faults.thefts, self.requests.lose_leases)
        self._at(faults.changes, self.server.change_leader)
        self._at(faults.wakings, self.server.wake_former_leader)
        self._at(faults.lags, self.server.fall_behind)
        self._at(faults.strays, self._store_stray)
        self._at(faults.doubts, self.readers[-1].reset_feed)
        self._at(faults.polls, self.poller.poll)
        for canceller, moment in zip(self.cancellers, faults.cancels, strict=True):
            self._at([moment], partial(canceller.cancel_after, SOON_S))
        # The jitter of the product's retries comes from here.
        random.seed(self.seed)
        with (
            patch.object(SchemaChecker, "find_mismatch", model.find_mismatch),
            patch.object(attempt_runner, "LARGE_BYTES", 0 if self.seed % LARGE_EVERY == 0 else LARGE_BYTES),
            patch.object(delta_ticks, "BUSY_DELTAS", 0 if self.seed % BUSY_EVERY == 0 else delta_ticks.BUSY_DELTAS),
            only_failures(world.failures),
        ):
            self.is_over = world.run_while(self._is_running, HANDLES_MAX)
            self._end()

    def _end(self) -> None:
        """Ends all processes, so that no task outlives the schedule."""
        self.server.is_faultless = True
        processes = self.world.processes
        for process in processes:
            process.kill()
        self.world.run_while(lambda: any(process.is_busy for process in processes), 2 * HANDLES_MAX)

    def _at(self, moments: list[int], do: Callable[[], Any]) -> None:
        for moment in moments:
            self.server.at_publish.setdefault(moment, []).append(do)

    def _some_generator(self) -> Generator:
        """One of those that hold a turn, if there is one."""
        busy = [generator for generator in self.generators if generator.is_busy] or self.generators
        return busy[self.world.below(len(busy))]

    def _freeze(self) -> None:
        self._some_generator().process.freeze(self.world.chance() * FREEZE_S_MAX)

    def _store_stray(self) -> None:
        """Stores an entry of an attempt that is over, as a writer of another version might."""
        chain = START
        for stored in self.server.stored:
            chain = link(chain, stored.seq, stored.entry) or chain
        if chain.attempt and not chain.is_ended:
            self.world.record("stray", f"writes under attempt {chain.attempt - 1}")
            self.server.store(Event(prev=chain.last, attempt=chain.attempt - 1, event=events.encode(STRAY)))

    def _check_acknowledged(self, name: str) -> None:
        if not self.server.has_end:
            self.too_early.append(f"{name} acknowledged a turn without an end")

    def _is_posted(self) -> bool:
        return any(poster.acknowledged for poster in self.posters)

    def _is_running(self) -> bool:
        if self.world.failures:
            return False
        if not self.server.has_end or not self.requests.is_done or not self.ends.is_done:
            return True
        if not all(reader.is_over for reader in self.readers):
            return True
        clients: list[Poster | Canceller | TurnPoller] = [*self.posters, *self.cancellers, self.poller]
        return any(client.process.is_busy for client in clients)
