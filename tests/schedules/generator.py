"""Generators: the product's Worker and TurnRunner, in processes that are killed and started again."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from tailrace.features.failover.circuit_breaker import CircuitBreakers
from tailrace.features.generators import FEATURES
from tailrace.features.limits.cost_limits import CostLimits
from tailrace.features.traces.attempt_span import attempt_span
from tailrace.generators.backend_order import BackendOrders, Candidate
from tailrace.generators.feature import join_hooks
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.generators.settings import Settings
from tailrace.generators.turn_runner import PrepareTurn, TurnRunner
from tailrace.generators.worker import Lane, Worker
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Event
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats.log_server import Published
from tailrace.proto.nats.settlement import Settlement
from tests.schedules.consumer import SimulatedConsumer, SimulatedDeliveries
from tests.schedules.model import Script, SimulatedBackend
from tests.schedules.process import Process
from tests.schedules.server import SimulatedLog, SimulatedServer

# What operators get who set nothing.
DEFAULTS = Settings()
CONCURRENCY = 2
# One call an attempt; a further attempt follows at once.
RETRY = Retry(tries_max=1, wait_s=0.01, wait_max_s=0.01)
ORDERS = BackendOrders((Candidate("claude"), Candidate("bedrock")))
RESTART_S = 0.05
DRAIN_S = 3.0
HOOKS = join_hooks(FEATURES)
UNUSED: Any = None
"""In the place of services that these turns do not need: batches, blobs, and steps, because no budget is near."""
LIMITS = CostLimits(UNUSED, UNUSED)


class GeneratorLog(SimulatedLog):
    """Records the appends that were acknowledged to a generator."""

    def __init__(self, server: SimulatedServer, process: Process, acknowledged: list[tuple[str, Chain]]) -> None:
        super().__init__(server, process)
        self.server = server
        self.name = process.name
        self._acknowledged = acknowledged

    async def append(self, key: TurnKey, chain: Chain, entry: Entry, **options: Any) -> Chain:
        extended = await super().append(key, chain, entry, **options)
        self._acknowledged.append((self.name, extended))
        return extended

    def publish_soon(self, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        def note(outcome: Seq | Exception) -> None:
            if not isinstance(outcome, Exception):
                self._acknowledged.append((self.name, Chain(outcome, entry.attempt)))
            done(outcome)

        return super().publish_soon(key, entry, fence, note)


class Generator:
    """A supervised generator: after a kill it is started again, under another name."""

    def __init__(self, server: SimulatedServer, consumer: SimulatedConsumer, script: Script, name: str) -> None:
        self.name = name
        self.acknowledged: list[tuple[str, Chain]] = []
        """Each successful append: the name of the process, and the chain with the entry."""
        self._server = server
        self._consumer = consumer
        self._script = script
        self._backends: list[SimulatedBackend] = []
        self._stop = asyncio.Event()
        self._open()

    @property
    def calls(self) -> int:
        """The number of its model calls."""
        return sum(backend.calls for backend in self._backends)

    def _open(self) -> None:
        self._is_started = False
        process = self.process = Process(self._server.world, self.name)
        backend = self.new_backend(process)
        self._backends.append(backend)
        log = self.log = self.new_log(process)
        self.settlement = Settlement(self._server.counters, self._server.slots)
        breakers = CircuitBreakers(ORDERS)
        caller = ModelCaller(dict.fromkeys(ORDERS.backends, backend), breakers, RETRY, BlobLoader(UNUSED, UNUSED))
        runner = TurnRunner(
            log,
            caller,
            Planner(DEFAULTS.attempts_max, LIMITS, HOOKS.obstacles, [new_check() for new_check in HOOKS.checks]),
            name=self.name,
            filters=HOOKS.all_filters,
            sinks=HOOKS.sinks,
            limits=LIMITS,
            prepare=self.new_prepare(log),
            observe=attempt_span,
            deadline_s=DEFAULTS.deadline_s,
            delta_interval_s=DEFAULTS.delta_interval_s,
        )
        self.worker = Worker(
            log,
            SimulatedDeliveries(self._consumer, process),
            runner,
            self.settlement.settle,
            self.new_lanes(log, process),
            concurrency=CONCURRENCY,
            grace_s=0.0,
        )

    def new_backend(self, process: Process) -> SimulatedBackend:
        return SimulatedBackend(self._server, process, self._script)

    def new_log(self, process: Process) -> GeneratorLog:
        return GeneratorLog(self._server, process, self.acknowledged)

    def new_lanes(self, log: GeneratorLog, process: Process) -> Sequence[Lane]:  # noqa: ARG002  # for subclasses
        return ()

    def new_prepare(self, log: GeneratorLog) -> Sequence[PrepareTurn]:  # noqa: ARG002  # for subclasses
        return ()

    def start(self) -> None:
        # A process that is killed while it is about to start is replaced, and started once.
        if not self.process.is_dead and not self._is_started:
            self._is_started = True
            self._stop = asyncio.Event()
            self.process.start(self.worker.run(self._stop))

    def kill(self) -> None:
        self._server.world.record(self.name, "is killed")
        self._replace()

    def drain(self) -> None:
        """Stops it as SIGTERM does, without a grace period. It is killed if that takes too long."""
        self._server.world.record(self.name, "is stopped")
        self._server.happened.append("drain")
        self._stop.set()
        process = self.process
        self._server.world.call_after(
            DRAIN_S, lambda: self._replace() if self.process is process and not process.is_dead else None
        )

    def _replace(self) -> None:
        self.process.kill()
        self.name += "'"
        self._open()
        self._server.world.call_after(RESTART_S, self.start)

    @property
    def is_busy(self) -> bool:
        """Whether it holds a turn."""
        report = self.worker.report_health()
        return report is not None and msgspec.json.decode(report)["running"] > 0
