"""A batch on the simulator: generators that are killed at some entries, and a Message Batches API whose answers lag."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from tailrace.features.batches.input_lines import child_key, encode_inputs
from tailrace.features.batches.message_batches_api import Line, MessageBatch, MessageBatchesApi, SucceededResult
from tailrace.features.batches.runner import BatchLane
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Batch, Entry, Event, Progress, Request, Via
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats.log_server import Published
from tests.harness.service_builders import build_batch_runner
from tests.harness.turn_builder import MODEL, NOON, request
from tests.schedules.client import Poster
from tests.schedules.consumer import SimulatedConsumer
from tests.schedules.faults import Faults
from tests.schedules.generator import Generator, GeneratorLog
from tests.schedules.model import SCRIPTS
from tests.schedules.process import Process
from tests.schedules.quiet import only_failures
from tests.schedules.server import SimulatedServer
from tests.schedules.world import World

KEY = TurnKey(Tenant("t"), TurnId("019a0000-0000-7000-8000-000000000000"))
HANDLES_MAX = 200_000
SCRIPT = SCRIPTS[0]
# How long the API works on a message batch.
ANSWERED_S = 5.0
API_S_MAX = 0.2
# The share of answers in which the API does not know a message batch that exists.
HIDDEN = 0.3


class BatchLog(GeneratorLog):
    """The log of the batch and of its turns. Kills its generator at some appends of the schedule."""

    def __init__(self, schedule: "BatchSchedule", generator: "BatchGenerator", process: Process) -> None:
        super().__init__(schedule.server, process, generator.acknowledged)
        self._schedule = schedule
        self._generator = generator

    def server_of(self, key: TurnKey) -> SimulatedServer:
        return self._schedule.server_of(key)

    async def now(self) -> datetime:
        self._process.require_alive()
        return now(self._process.world)

    async def append(self, key: TurnKey, chain: Chain, entry: Entry, **options: Any) -> Chain:
        self._process.require_alive()
        self._schedule.appends += 1
        is_killed = self._schedule.appends in self._schedule.kills
        if is_killed and self._schedule.is_before:
            self._generator.kill()
            self._process.require_alive()
        chain = await super().append(key, chain, entry, **options)
        if is_killed:
            self._generator.kill()
        self._process.require_alive()
        return chain

    def publish_soon(self, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        if self._process.is_dead:
            return True
        self._schedule.appends += 1
        is_killed = self._schedule.appends in self._schedule.kills
        if is_killed and self._schedule.is_before:
            self._generator.kill()
            return True

        def finish(outcome: Seq | Exception) -> None:
            if is_killed:
                self._generator.kill()
            else:
                done(outcome)

        return super().publish_soon(key, entry, fence, finish)


class SimulatedMessageBatches(MessageBatchesApi):
    """The product's MessageBatchesApi in one process. All processes share the account, `made`."""

    def __init__(self, process: Process, made: list[tuple[MessageBatch, list[str]]]) -> None:
        self._process = process
        self._made = made

    async def create(self, requests: Mapping[str, bytes], headers: Mapping[str, str]) -> MessageBatch:  # noqa: ARG002
        await self._request()
        made = MessageBatch(f"msgbatch_{len(self._made)}", now(self._process.world), "in_progress", {})
        self._made.append((made, list(requests)))
        await self._request()
        return self._show(made, list(requests))

    async def retrieve(self, name: str) -> MessageBatch:
        await self._request(name)
        return next(self._show(made, ids) for made, ids in self._made if made.id == name)

    async def list_since(self, since: datetime) -> list[MessageBatch]:
        await self._request()
        found = [self._show(made, ids) for made, ids in reversed(self._made) if made.created_at >= since]
        return [one for one in found if not self._is_hidden()]

    async def results(self, name: str) -> AsyncGenerator[Line, None]:
        await self._request(name)
        content = [{"type": "text", "text": part.text} for part in SCRIPT.blocks]
        usage = {"input_tokens": 10, "output_tokens": 4}
        message = {"id": "msg_1", "model": MODEL, "content": content, "stop_reason": "end_turn", "usage": usage}
        for custom_id in next(reversed(ids) for made, ids in self._made if made.id == name):
            yield Line(custom_id, SucceededResult(message))

    def _show(self, made: MessageBatch, ids: list[str]) -> MessageBatch:
        has_ended = now(self._process.world) >= made.created_at + timedelta(seconds=ANSWERED_S)
        kind = "succeeded" if has_ended else "processing"
        return MessageBatch(made.id, made.created_at, "ended" if has_ended else "in_progress", {kind: len(ids)})

    async def _request(self, name: str = "") -> None:
        """Waits for the API, which may not know the message batch `name`."""
        self._process.require_alive()
        await self._process.world.wait(self._process.world.chance() * API_S_MAX)
        if name and self._is_hidden():
            raise BackendError("backend_refused_request", f"{name} not found")

    def _is_hidden(self) -> bool:
        return self._process.world.chance() < HIDDEN


class BatchGenerator(Generator):
    """A generator that also runs batches."""

    def __init__(self, schedule: "BatchSchedule", name: str) -> None:
        self._schedule = schedule
        super().__init__(schedule.server, schedule.requests, SCRIPT, name)

    def new_log(self, process: Process) -> BatchLog:
        return BatchLog(self._schedule, self, process)

    def new_lanes(self, log: GeneratorLog, process: Process) -> list[BatchLane]:
        services: Any = self._schedule
        api = SimulatedMessageBatches(process, self._schedule.made)
        runner = build_batch_runner(
            log, services, services, services.fullness, name=process.name, concurrency=2, message_batches=api
        )
        return [BatchLane(runner)]


class BatchSchedule:
    """One batch of `count` inputs. Generators are killed before or after the appends with the numbers `kills`."""

    def __init__(self, via: Via, count: int, kills: set[int], *, is_before: bool) -> None:
        self.kills = kills
        self.is_before = is_before
        self.appends = 0
        self.made: list[tuple[MessageBatch, list[str]]] = []
        """The message batches of the account, each with its custom ids."""
        self.inputs = encode_inputs([request(via=via, batch=None) for _ in range(count)])
        self.children = [child_key(KEY, number) for number in range(count)]
        world = self.world = World(sum(kills))
        self._faults = Faults(world)
        # Other schedules have these faults.
        self._faults.slow_s = 0.0
        self._servers: dict[TurnKey, SimulatedServer] = {}
        self.server = self._servers[KEY] = self._new_server()
        self.requests = SimulatedConsumer(self.server, KEY, lambda one: isinstance(one.entry, Request), lambda _: None)
        self.generators = [BatchGenerator(self, f"generator-{number}") for number in range(2)]
        spec = Batch("sha256", len(self.inputs), count, parallel=2)
        self._poster = Poster(self.server, KEY, "poster", request(via=via, batch=spec))

    def play(self) -> None:
        """Runs the schedule until everything is acknowledged. Raises what the product has logged as unexpected."""
        self._poster.post_after(0)
        for generator in self.generators:
            generator.start()
        with ExitStack() as stack:
            clock = type("Clock", (), {"now": lambda _: now(self.world)})
            stack.enter_context(patch("tailrace.features.batches.message_batches.datetime", clock))
            stack.enter_context(only_failures(self.world.failures))
            is_over = self.world.run_while(lambda: not self.is_acknowledged, HANDLES_MAX)
            for process in self.world.processes:
                process.kill()
            self.world.run_while(lambda: any(one.is_busy for one in self.world.processes), 2 * HANDLES_MAX)
        assert self.world.failures == []
        assert is_over

    @property
    def is_acknowledged(self) -> bool:
        return self.server.has_end and self.requests.is_done

    @property
    def calls(self) -> int:
        """The number of model calls."""
        return sum(generator.calls for generator in self.generators)

    @property
    def progress(self) -> list[tuple[int, int]]:
        """The done and failed inputs of each progress entry."""
        entries = [stored.entry for stored in self.server.stored]
        return [(entry.done, entry.failed) for entry in entries if isinstance(entry, Progress)]

    def turn(self, key: TurnKey) -> Turn:
        return fold(self.server_of(key).stored)

    def requests_of(self, key: TurnKey) -> int:
        """Returns how many request entries the turn has."""
        return sum(isinstance(stored.entry, Request) for stored in self.server_of(key).stored)

    def server_of(self, key: TurnKey) -> SimulatedServer:
        if key not in self._servers:
            self._servers[key] = self._new_server()
            self.requests.watch(self._servers[key], key)
        return self._servers[key]

    def _new_server(self) -> SimulatedServer:
        server = SimulatedServer(self.world, self._faults)
        server.is_faultless = True
        return server

    # The methods of the blob store, the tombstones and the log's size that the runner of batches calls.

    async def read(self, *_: object) -> bytes:
        return self.inputs

    async def is_deleted(self, _: TurnKey) -> bool:
        return False

    async def find_deleted(self, _: object) -> set[TurnKey]:
        return set()

    async def fullness(self) -> float:
        return 0.0


def now(world: World) -> datetime:
    return NOON + timedelta(seconds=world.time())
