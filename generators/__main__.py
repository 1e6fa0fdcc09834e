"""`python -m tailrace.generators`: one process that turns requests into events."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from tailrace.generators.attempt import TurnRunner
from tailrace.generators.backends import Backend
from tailrace.generators.backends.anthropic_api import Claude
from tailrace.generators.backends.message_batches_api import MessageBatches
from tailrace.generators.backends.registry import open_backend
from tailrace.generators.batches.runner import BatchRunner
from tailrace.generators.failover import BackendOrders, parse_backends
from tailrace.generators.hedging import Hedging
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.retry import Retry
from tailrace.generators.rpc import ModelRpc
from tailrace.generators.settings import Settings, unique_name
from tailrace.generators.worker import Worker
from tailrace.proto import nats as door
from tailrace.proto.errors import BackendError
from tailrace.proto.nats import BlobStore, Connection, Counters, Deliveries, HedgeRpc, Rpc, Slots, Tombstones, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.runtime import main
from tailrace.proto.runtime.byte_semaphore import ByteSemaphore
from tailrace.proto.subjects import GENERATORS
from tailrace.proto.version import VERSION


async def preflight(settings: Settings) -> None:
    async with opened(settings):
        pass


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event) -> None:
    """Carries turns until `stop` is set."""
    name = unique_name(settings)
    log = TurnLog(connection)
    deliveries = await Deliveries.open(connection, GENERATORS)
    retry = Retry(tries_max=settings.call_tries_max, wait_s=settings.call_wait_s, wait_max_s=settings.call_wait_max_s)
    blobs = BlobLoader(BlobStore(connection), ByteSemaphore(settings.large_bytes_max))
    services, hedges = Rpc(connection), HedgeRpc(connection)
    settlement = Settlement(Counters(connection), Slots(connection))
    hedging = Hedging(hedges, settlement, after_s=settings.hedge_after_s) if settings.hedge_after_s else None
    async with opened(settings) as (rotas, backends):
        claude = informant(backends)
        worker = Worker(
            log,
            deliveries,
            TurnRunner(
                log, blobs, backends, rotas, retry, name=name, attempts_max=settings.attempts_max, hedging=hedging
            ),
            settlement,
            build_batch_runner(connection, name, settings.concurrency, blobs, claude),
            concurrency=settings.concurrency,
            deadline_s=settings.deadline_s,
            grace_s=settings.grace_s,
        )
        answers = ModelRpc(claude, MessageBatches(claude.client), blobs).answers if claude else {}
        service = await services.serve(GENERATORS, VERSION, answers)
        await services.serve_health(GENERATORS, worker.report)
        if hedging is not None:
            await hedges.serve(worker)
        main.mark_ready(generator=name, concurrency=settings.concurrency)
        try:
            await worker.run(stop)
        finally:
            if not connection.closed.is_set():
                await service.stop()


def build_batch_runner(
    connection: Connection, name: str, concurrency: int, blobs: BlobLoader, claude: Claude | None
) -> BatchRunner:
    """Who carries batches: half of the slots at most are their turns', and the rest is everybody's."""
    return BatchRunner(
        TurnLog(connection),
        BlobStore(connection),
        Tombstones(connection),
        Counters(connection),
        lambda: door.fullness(connection),
        name=name,
        places=max(1, concurrency // 2),
        message_batches=MessageBatches(claude.client) if claude is not None else None,
        blobs=blobs,
    )


async def probe(settings: Settings) -> None:
    """Raises BackendError, with the address, when Claude does not answer there or refuses the key.

    The other backends have no question that costs nothing.
    """
    async with opened(settings) as (_, backends):
        claude = informant(backends)
        try:
            if claude is not None:
                await claude.models()
        except BackendError as error:
            raise BackendError(error.code, f"{settings.anthropic_base_url}: {error.message} ({error.code})") from error


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[BackendOrders, dict[str, Backend]]]:
    """The lists of backends, and each that they name. Raises SettingsInvalid."""
    rotas = parse_backends(settings.backends)
    async with AsyncExitStack() as stack:
        backends = {}
        for name in rotas.backends:
            backends[name] = open_backend(name, settings)
            stack.push_async_callback(backends[name].close)
        yield rotas, backends


def informant(backends: Mapping[str, Backend]) -> Claude | None:
    """Who can be asked about models, if it is one of them."""
    return next((backend for backend in backends.values() if isinstance(backend, Claude)), None)


if __name__ == "__main__":
    sys.exit(main.main("generators", "Turns requests into events.", Settings, preflight, serve, probe))
