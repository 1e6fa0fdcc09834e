"""Messages that are put into running answers, on the simulator: several clients, gateways and generators, and kills.

The gateways run the product's Steering, the generators its Worker with queued turns. Each turn has a simulated server
with the faults of a real one. Claims and history answer late, but right.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import replace

from tailrace.features.common.line import Line
from tailrace.features.queued_turns.gateway import check_queue
from tailrace.features.queued_turns.generator import prepare_queued
from tailrace.features.steer.endings import Endings
from tailrace.features.steer.service import At
from tailrace.features.steer.steering import Steering
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.draft import TurnDraft
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import Put
from tailrace.generators.turn_runner import PrepareTurn
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogFull, LogUnavailable, Refused, TurnUnknown
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.testing import MemoryClaims, MemoryTombstones
from tests.harness.memory_history import MemoryHistory, NoBlobs, NoParentCheck
from tests.harness.service_builders import UNUSED, build_turn_submitter
from tests.harness.turn_builder import request
from tests.promises import KEPT, Verdict
from tests.schedules.consumer import SimulatedConsumer
from tests.schedules.faults import Faults
from tests.schedules.generator import Generator, GeneratorLog
from tests.schedules.model import SCRIPTS, SimulatedBackend
from tests.schedules.process import Process
from tests.schedules.quiet import only_failures
from tests.schedules.server import SimulatedLog, SimulatedServer
from tests.schedules.world import World

FIRST = TurnKey(LOCAL.access.tenant, TurnId("turn-0"))
CLIENTS, MESSAGES = 3, 2
HANDLES_MAX = 400_000
ANSWER_S_MAX = 0.003
RESTART_S = 0.05
# A client that gets no answer sends the request again, with the same key.
PATIENCE_S = 20.0
REPEAT_S_MAX = 0.5
# The share of requests during which their gateway is killed.
KILLED = 0.15


class Remote:
    """A service that all processes share, for one of them: requests and answers take a random time."""

    def __init__(self, service: object, process: Process) -> None:
        self._service = service
        self._process = process

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **given: Any) -> Any:
            world = self._process.world
            self._process.require_alive()
            await world.wait(world.chance() * ANSWER_S_MAX)
            answer = await getattr(self._service, name)(*arguments, **given)
            if world.trace is not None:
                world.record(self._process.name, f"{name}{arguments} -> {answer}"[:200])
            await world.wait(world.chance() * ANSWER_S_MAX)
            return answer

        return call


class TurnsLog(SimulatedLog):
    """The logs of all turns, as one process uses them."""

    def __init__(self, schedule: "SteerSchedule", process: Process) -> None:
        super().__init__(schedule.server, process)
        self._schedule = schedule

    def server_of(self, key: TurnKey) -> SimulatedServer:
        return self._schedule.server_of(key)


class Gateway:
    """A supervised gateway: after a kill it is started again."""

    def __init__(self, schedule: "SteerSchedule", name: str) -> None:
        self._schedule = schedule
        self.name = name
        self._open()

    def _open(self) -> None:
        schedule = self._schedule
        process = self.process = Process(schedule.world, self.name)
        log = self.log = TurnsLog(schedule, process)
        claims: Any = Remote(schedule.claims, process)
        tombstones: Any = Remote(schedule.tombstones, process)
        history: Any = Remote(schedule.history, process)
        line = Line(log, claims, tombstones, UNUSED, wait_s=2 * Settings().accept_timeout_s)
        submitter = build_turn_submitter(
            log,
            claims,
            tombstones,
            steps=OptionalSteps(check_queue=check_queue, take_place=line.take_place),
            history=history,
            parents=NoParentCheck(),
            blobs=NoBlobs(),
        )
        endings = Endings()
        self._steering = Steering(log, claims, line, UNUSED, history, submitter, endings)
        process.start(endings.run())

    def kill(self) -> None:
        self._schedule.world.record(self.name, "is killed")
        self.process.kill()
        self.name += "'"
        self._open()

    def steer(self, draft: TurnDraft, turn: TurnKey, at: At) -> "asyncio.Future[TurnId | Refused | None]":
        """Returns a future of the successor, of a refusal, or of None: there is no answer."""
        process, answer = self.process, self._schedule.world.create_future()

        async def respond() -> None:
            result: TurnId | Refused | None = None
            try:
                result = (await self._steering.steer(draft, ScopedKey.whole(turn), at)).key.turn
            except Refused as refused:
                result = refused
            except (LogUnavailable, LogFull):
                pass
            finally:
                if not answer.done():
                    answer.set_result(None if process.is_dead else result)

        process.start(respond())
        return answer


class Acknowledged(NamedTuple):
    """A message that a gateway has accepted."""

    message: str
    turn: TurnId


class Client:
    """Puts messages into the answer, one after the other, each until a gateway has accepted it."""

    def __init__(self, schedule: "SteerSchedule", name: str) -> None:
        self.process = Process(schedule.world, name)
        self._schedule = schedule

    def start(self) -> None:
        self.process.start(self._steer_each())

    async def _steer_each(self) -> None:
        world, schedule = self.process.world, self._schedule
        turn = FIRST
        for number in range(MESSAGES):
            text = f"{self.process.name} says {number}"
            new_turn = NewTurn(messages=[MessageParam("user", text)])
            draft = TurnDraft(LOCAL, text.encode(), f"key {text}", new_turn=new_turn)
            at: At = "now" if world.chance() < 0.7 else "boundary"
            await world.wait(world.chance() ** 2 * 0.2)
            while True:
                gateway = schedule.gateways[world.below(len(schedule.gateways))]
                answer = gateway.steer(draft, turn, at)
                if not schedule.is_faultless and world.chance() < KILLED:
                    world.call_after(world.chance() * 0.05, gateway.kill)
                await asyncio.wait((answer,), timeout=PATIENCE_S)
                result = answer.result() if answer.done() else None
                if isinstance(result, Refused):
                    schedule.refused.append(f"{text}: {result}")
                    return
                if result is not None:
                    world.record(self.process.name, f"has {text!r} accepted as {result}")
                    schedule.acknowledged.append(Acknowledged(text, result))
                    break
                await world.wait(world.chance() * REPEAT_S_MAX)
            # The next one goes to the same turn or to the newest one that the client knows.
            turn = TurnKey(FIRST.tenant, result) if world.chance() < 0.5 else turn


class SteeredBackend(SimulatedBackend):
    """Answers the last question. It knows the conversation before it, whose answers are not its own."""

    async def stream(self, call: Call, put: Put) -> None:
        await super().stream(replace(call, messages=call.messages[-1:]), put)


class SteeredGenerator(Generator):
    """A generator with queued turns."""

    def __init__(self, schedule: "SteerSchedule", name: str) -> None:
        self._schedule = schedule
        super().__init__(schedule.server, schedule.requests, schedule.script, name)

    def new_backend(self, process: Process) -> SteeredBackend:
        return SteeredBackend(self._server, process, self._script)

    def new_log(self, process: Process) -> GeneratorLog:
        log = GeneratorLog(self._schedule.server, process, self.acknowledged)
        log.server_of = self._schedule.server_of  # type: ignore[method-assign]
        return log

    def new_prepare(self, log: GeneratorLog) -> Sequence[PrepareTurn]:
        return (partial(prepare_queued, log),)


class SteerSchedule:
    """One session whose first turn is steered by several clients at once."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.seed = seed
        world = self.world = World(seed, is_traced=is_traced)
        self._faults = Faults(world)
        self.script = SCRIPTS[world.below(4)]
        self._servers: dict[TurnKey, SimulatedServer] = {}
        self.claims, self.tombstones = MemoryClaims(), MemoryTombstones()
        self.history = MemoryHistory(FIRST.tenant, lambda: self.turns, self._read)
        self.acknowledged: list[Acknowledged] = []
        self.refused: list[str] = []
        self.server = self._new_server(FIRST)
        self.requests = SimulatedConsumer(
            self.server, FIRST, lambda one: isinstance(one.entry, Request), lambda _: None
        )
        self.server.store(request())
        self.generators = [SteeredGenerator(self, f"generator-{number}") for number in range(2)]
        self.gateways = [Gateway(self, f"gateway-{number}") for number in range(2)]
        self.clients = [Client(self, f"client-{number}") for number in range(CLIENTS)]

    def play(self) -> None:
        """Runs the schedule until all clients have their answers and all turns have ended."""
        world, faults = self.world, self._faults
        for generator in self.generators:
            generator.start()
        for client in self.clients:
            client.start()
        for moment in faults.kills:
            world.call_after(moment * 0.02, self._kill_generator)
        for moment in faults.changes:
            world.call_after(moment * 0.02, self._change_leader)
        for moment in faults.cancels:
            world.call_after(moment * 0.02, self._cancel)
        with only_failures(world.failures):
            self.is_over = world.run_while(self._is_running, HANDLES_MAX)
            for process in world.processes:
                process.kill()
            world.run_while(lambda: any(process.is_busy for process in world.processes), 2 * HANDLES_MAX)

    @property
    def is_faultless(self) -> bool:
        return all(server.is_faultless for server in self._servers.values())

    @property
    def turns(self) -> dict[TurnKey, SimulatedServer]:
        """The turns that are stored, oldest first."""
        return {key: server for key, server in self._servers.items() if server.stored}

    def turn(self, key: TurnKey) -> Turn:
        return fold(self.server_of(key).stored)

    def server_of(self, key: TurnKey) -> SimulatedServer:
        if key not in self._servers:
            self.requests.watch(self._new_server(key), key)
        return self._servers[key]

    def _new_server(self, key: TurnKey) -> SimulatedServer:
        server = self._servers[key] = SimulatedServer(self.world, self._faults)
        return server

    async def _read(self, key: TurnKey) -> Turn:
        return self.turn(key)

    def _kill_generator(self) -> None:
        self.generators[self.world.below(len(self.generators))].kill()

    def _change_leader(self) -> None:
        for server in self._servers.values():
            server.change_leader()

    def _cancel(self) -> None:
        gateway = self.gateways[0]

        async def cancel_first() -> None:
            try:
                await cancel(gateway.log, ScopedKey.whole(FIRST), "request")
            except (LogUnavailable, LogFull, TurnUnknown):
                self.world.record("client", "cannot cancel the turn")

        gateway.process.start(cancel_first())

    def _is_running(self) -> bool:
        if self.world.failures:
            return False
        return any(client.process.is_busy for client in self.clients) or not self.requests.is_done


def judge(schedule: SteerSchedule) -> Verdict:
    """Each accepted message is in the conversation once, in one order. The evidence begins with the seed."""
    evidence = _find_fault(schedule)
    return KEPT if evidence is None else Verdict(False, f"seed {schedule.seed}: {evidence}")


def _find_fault(schedule: SteerSchedule) -> str | None:
    if schedule.world.failures:
        return f"{schedule.world.failures[0]!r} was not expected"
    if not schedule.is_over:
        return f"it is not over after {schedule.world.handled} happenings"
    if schedule.refused:
        return f"refused: {schedule.refused[0]}"
    turns = {key.turn: schedule.turn(key) for key in schedule.turns}
    following: dict[TurnId, list[TurnId]] = {}
    for name, turn in turns.items():
        if turn.end is None:
            return f"{name} has not ended"
        if turn.request is not None and turn.request.parent is not None:
            following.setdefault(turn.request.parent, []).append(name)
    order = [FIRST.turn]
    while found := following.get(order[-1]):
        if len(found) > 1:
            return f"{found} follow {order[-1]}: readers see different conversations"
        order += found
    if len(order) != len(turns):
        return f"only {len(order)} of {len(turns)} turns are in the conversation"
    for name, after in itertools.pairwise(order):
        end = turns[name].end
        if end is not None and end.successor not in (None, after):
            return f"readers of {name} go on into {end.successor}, and the conversation into {after}"
    said = [_message(turns[name]) for name in order[1:]]
    for message, turn_id in schedule.acknowledged:
        if said.count(message) != 1:
            return f"{message!r} was accepted, and is {said.count(message)} times in the conversation"
        if order[1 + said.index(message)] != turn_id:
            return f"{message!r} was accepted as {turn_id}, which has another message"
    wanted = CLIENTS * MESSAGES
    return None if len(said) == wanted else f"{len(said)} turns for {wanted} messages"


def _message(turn: Turn) -> str:
    assert turn.request is not None
    return str(turn.request.messages[-1].content)
