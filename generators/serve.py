"""Wires a generator together from its settings, and runs turns."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog

from tailrace.generators import metrics
from tailrace.generators.backend_order import CLAUDE, BackendOrders, parse_backends
from tailrace.generators.backends import Backend, FactsReporter
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.registry import Kinds, open_backend
from tailrace.generators.call_limits import CallLimits
from tailrace.generators.feature import Features, Generator, join_handlers, join_hooks, kinds_of
from tailrace.generators.key_health import KeyHealth
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller, OneBackend
from tailrace.generators.peer_watch import PeerWatch
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.generators.rpc import cancel_turn, end_damaged_turn, list_models
from tailrace.generators.settings import Settings, parse_tenants, unique_name
from tailrace.generators.turn_runner import TurnRunner
from tailrace.generators.worker import Worker
from tailrace.proto import service
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.model_records import CANCEL_TURN, END_DAMAGED_TURN, MODELS
from tailrace.proto.models import extend_models
from tailrace.proto.nats import BlobStore, Connection, Counters, Deliveries, Rpc, Slots, TurnLog
from tailrace.proto.nats.peers import PeerLink
from tailrace.proto.nats.rpc import Handler
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.runtime.feature_parts import at_most_one
from tailrace.proto.subjects import GENERATORS
from tailrace.proto.version import VERSION

logger = structlog.get_logger()


async def preflight(settings: Settings, *, features: Features = ()) -> None:
    """Checks models, tenants and backends before the process connects to NATS. Raises SettingsInvalid."""
    extend_models(settings.models_file)
    parse_tenants(settings.metrics_tenants)
    async with open_backends(settings, kinds_of(features)):
        pass


async def serve(settings: Settings, connection: Connection, stop: service.Stop, *, features: Features = ()) -> None:
    """Runs turns with `features` until `stop` is set."""
    hooks = join_hooks(features)
    name = unique_name(settings)
    log = TurnLog(connection)
    deliveries = await Deliveries.open(connection, GENERATORS)
    retry = Retry(
        tries_max=settings.call_tries_max,
        wait_s=settings.call_wait_s,
        wait_max_s=settings.call_wait_max_s,
        unreachable_s=settings.unreachable_wait_s,
    )
    blobs = BlobLoader(BlobStore(connection), FairSemaphore(settings.large_bytes_max))
    rpc = Rpc(connection)
    settlement = Settlement(Counters(connection), Slots(connection))
    async with open_backends(settings, kinds_of(features)) as (orders, backends):
        claude = find_anthropic_api(backends)
        generator = Generator(settings, connection, name, log, blobs, orders, claude, hooks)
        parts = [feature.start(generator) for feature in features]
        routing = at_most_one((part.routing for part in parts), "routing")
        if routing is None:
            routing = OneBackend(orders)
            warn_of_others(orders)
        observers = [part.observe_call for part in parts if part.observe_call is not None]
        caller = ModelCaller(backends, routing, retry, blobs, observers)
        checks = [new_check() for new_check in hooks.checks]
        limits = at_most_one((part.limits for part in parts), "limits of calls") or CallLimits()
        planner = Planner(settings.attempts_max, limits, hooks.obstacles, checks)

        async def settle(key: TurnKey, turn: Turn) -> None:
            await settlement.settle(key, turn, await limits.steps_of(key, turn))

        runner = TurnRunner(
            log,
            caller,
            planner,
            name=name,
            filters=hooks.all_filters,
            sinks=hooks.sinks,
            limits=limits,
            prepare=[prepare for part in parts for prepare in part.prepare],
            observe=at_most_one((part.observe_attempt for part in parts), "observer of attempts"),
            deadline_s=settings.deadline_s,
            delta_interval_s=settings.delta_interval_s,
        )
        worker = Worker(
            log,
            deliveries,
            runner,
            settle,
            [lane for part in parts for lane in part.lanes],
            concurrency=settings.concurrency,
            grace_s=settings.grace_s,
            tenant_share=settings.tenant_share,
            on_left=limits.forget,
        )
        worker.facts = caller.keys.facts
        of_core: dict[str, Handler] = {
            CANCEL_TURN: partial(cancel_turn, log),
            END_DAMAGED_TURN: partial(end_damaged_turn, log, settle),
        }
        if claude is not None:
            of_core[MODELS] = partial(list_models, claude)
        handlers = join_handlers(of_core, parts)
        endpoints = await rpc.serve(GENERATORS, VERSION, handlers)
        await rpc.serve_health(GENERATORS, worker.report_health)
        metrics.TENANTS.update(parse_tenants(settings.metrics_tenants))
        metrics.SLOTS.set(settings.concurrency)
        service.mark_ready(generator=name, concurrency=settings.concurrency)
        reports = [asyncio.create_task(report_facts(backends, worker))]
        reports += [asyncio.create_task(check_key(claude, caller.keys))] if claude is not None else []
        watch = PeerWatch(PeerLink(connection, name), name, log, worker)
        reports.append(asyncio.create_task(watch.run()))
        try:
            await worker.run(stop, stop.now)
            await watch.leave()
        finally:
            for report in reports:
                report.cancel()
            if not connection.closed.is_set():
                await endpoints.stop()


def warn_of_others(orders: BackendOrders) -> None:
    """Logs a warning if the setting `backends` names backends that no turn begins with: there is no failover."""
    first = {candidates[0].backend for candidates in (orders.common, *orders.by_model.values())}
    if others := [name for name in orders.backends if name not in first]:
        logger.warning("backends without effect", backends=others, why="this generator runs without failover")


async def report_facts(backends: Mapping[str, Backend], worker: Worker) -> None:
    """Adds the fields of the backends to the health report."""
    for backend in backends.values():
        if isinstance(backend, FactsReporter):
            worker.facts.update(await backend.facts())


async def check_key(claude: AnthropicApi, keys: KeyHealth) -> None:
    """Notes in the health report whether the key is refused, by a request that is free of charge."""
    try:
        await claude.models()
    except BackendError as error:
        keys.note_call(CLAUDE, error)
        if error.code != "backend_refused_key":
            logger.info("the model key could not be checked", **error.log_fields)


async def probe(settings: Settings, *, features: Features = ()) -> bool:
    """Raises BackendError, with the address, if Anthropic's API does not answer or refuses the key.

    Returns whether that API was asked: other backends have no request that is free of charge.
    """
    async with open_backends(settings, kinds_of(features)) as (_, backends):
        claude = find_anthropic_api(backends)
        try:
            if claude is not None:
                await claude.models()
        except BackendError as error:
            why = ": ".join(error.log_fields.values())
            raise BackendError(error.code, f"{settings.anthropic_base_url}: {error.message} ({why})") from error
    return claude is not None


@asynccontextmanager
async def open_backends(settings: Settings, kinds: Kinds) -> AsyncIterator[tuple[BackendOrders, dict[str, Backend]]]:
    """Yields the orders of backends, and the backends in them, by name; each is of the core or of `kinds`.

    Raises SettingsInvalid.
    """
    orders = parse_backends(settings.backends)
    async with AsyncExitStack() as stack:
        backends = {}
        for name in orders.backends:
            backends[name] = open_backend(name, settings, kinds)
            stack.push_async_callback(backends[name].close)
        yield orders, backends


def find_anthropic_api(backends: Mapping[str, Backend]) -> AnthropicApi | None:
    """Returns the backend that can list models and count tokens, if `backends` has it."""
    return next((backend for backend in backends.values() if isinstance(backend, AnthropicApi)), None)
