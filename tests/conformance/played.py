"""Plays a case in the simulator of tests/schedules: the product's worker, log and followers, on virtual time.

Nothing is late or lost. The generator is killed, and the reader is cut, where the test says.
"""

import random
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from tailrace.deploy.simulated_claude import conversation
from tailrace.deploy.simulated_claude.case import find_rest
from tailrace.deploy.simulated_claude.request import Message
from tailrace.generators.backends import Call
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import ModelEvent, read_event
from tailrace.proto.entries import Request, StoredEntry
from tailrace.proto.fold import Turn, contents, fold, without_mark
from tests.conformance.case import Case
from tests.harness.turn_builder import request
from tests.schedules.client import Poster
from tests.schedules.consumer import SimulatedConsumer
from tests.schedules.faults import Faults
from tests.schedules.generator import Generator
from tests.schedules.model import SCRIPTS, SimulatedBackend
from tests.schedules.process import Process
from tests.schedules.quiet import only_failures
from tests.schedules.reader import Reader
from tests.schedules.schedule import KEY
from tests.schedules.server import SimulatedServer
from tests.schedules.world import World

# Longer than an append with the time in which deltas are joined: each event is an entry.
EVENT_S = 0.1
HANDLES_MAX = 200_000


class CaseBackend(SimulatedBackend):
    """A Backend that sends the events of a case, or the rest of them after the partial answer of the call."""

    def __init__(self, server: SimulatedServer, process: Process, case: Case) -> None:
        super().__init__(server, process, SCRIPTS[0])
        self._case = case

    async def _answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        self._process.require_alive()
        self.calls += 1
        messages = msgspec.json.decode(msgspec.json.encode(call.messages), type=list[Message])
        order = EventOrder()
        for line in find_rest(tuple(self._case.lines), conversation.read(messages)):
            await self._server.world.wait(EVENT_S)
            event = read_event(line)
            for one in () if event is None else order.accept(event):
                yield one
            if event is not None and event.kind == "message_stop":
                return


class CaseGenerator(Generator):
    """A supervised generator whose model plays a case."""

    def __init__(self, server: SimulatedServer, consumer: SimulatedConsumer, case: Case, name: str) -> None:
        self._case = case
        super().__init__(server, consumer, SCRIPTS[0], name)

    def new_backend(self, process: Process) -> SimulatedBackend:
        return CaseBackend(self._server, process, self._case)


class Play:
    """One turn that a case answers. After `run`, `stored` is its log, and `received` what the reader has."""

    def __init__(self, case: Case, *, kills: tuple[int, ...] = (), cuts: tuple[int, ...] = ()) -> None:
        """`kills`: with which appends the generator is killed, from 1. `cuts`: after how many entries the reader is."""
        self.world = World(1)
        self.server = SimulatedServer(self.world, Faults(self.world))
        self.server.is_faultless = True
        self._poster = Poster(self.server, KEY, "poster", request())
        self._requests = SimulatedConsumer(self.server, KEY, lambda one: isinstance(one.entry, Request), lambda _: None)
        self._generator = CaseGenerator(self.server, self._requests, case, "generator")
        self._reader = Reader(self.server, KEY, "reader", list(cuts), lambda: False)
        for kill in kills:
            self.server.at_publish[kill] = [self._generator.kill]

    def run(self) -> None:
        """Plays it to the end of the turn, and of the reader."""
        random.seed(1)
        self._poster.post_after(0)
        self._reader.read_after(0.01)
        self._generator.start()
        with only_failures(self.world.failures):
            is_over = self.world.run_while(self._is_running, HANDLES_MAX)
            for process in self.world.processes:
                process.kill()
            self.world.run_while(lambda: any(process.is_busy for process in self.world.processes), 2 * HANDLES_MAX)
        assert not self.world.failures, self.world.failures
        assert is_over, self.turn

    def _is_running(self) -> bool:
        return not self.world.failures and not (self.server.has_end and self._reader.is_over and self._requests.is_done)

    @property
    def stored(self) -> list[StoredEntry]:
        return self.server.stored

    @property
    def received(self) -> list[StoredEntry]:
        return self._reader.received

    @property
    def turn(self) -> Turn:
        return fold(self.stored)

    @property
    def content(self) -> list[dict[str, Any]]:
        """The content of the answer, as JSON answers have it."""
        turn = self.turn
        return [without_mark(block) for block in contents(turn.blocks, turn.stop.stop_reason)]
