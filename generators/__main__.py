"""`python -m generators`: one process that turns requests into events."""

import asyncio
import sys

import structlog

from generators.attempt import Carrier
from generators.backends.claude import Claude
from generators.blobs import Blobs
from generators.questions import Questions
from generators.retry import Retry
from generators.settings import Settings, unique_name
from generators.worker import Worker
from proto import process
from proto.errors import BackendError, SettingsInvalid
from proto.log import Bodies, Connection, Deliveries, Services, TurnLog
from proto.room import Room
from proto.subjects import GENERATORS

logger = structlog.get_logger()

VERSION = "0.1.0"


async def preflight(settings: Settings) -> None:
    if not settings.anthropic_api_key:
        raise SettingsInvalid(
            "ANTHROPIC_API_KEY is not set: give a key, or start `tailrace up`, which simulates Claude"
        )


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event) -> None:
    """Carries turns until `stop` is set."""
    name = unique_name(settings)
    log = TurnLog(connection)
    deliveries = await Deliveries.open(connection, GENERATORS)
    retry = Retry(tries_max=settings.call_tries_max, wait_s=settings.call_wait_s, wait_max_s=settings.call_wait_max_s)
    backend = claude(settings)
    blobs = Blobs(Bodies(connection), Room(settings.large_bytes_max))
    worker = Worker(
        log,
        deliveries,
        Carrier(log, blobs, backend, retry, name=name, attempts_max=settings.attempts_max),
        concurrency=settings.concurrency,
        deadline_s=settings.deadline_s,
        grace_s=settings.grace_s,
    )
    services = Services(connection)
    try:
        service = await services.answer(GENERATORS, VERSION, Questions(backend).answers)
        await services.report_health(GENERATORS, worker.report)
        logger.info("ready", generator=name, concurrency=settings.concurrency)
        try:
            await worker.run(stop)
        finally:
            if not connection.closed.is_set():
                await service.stop()
    finally:
        await backend.close()


async def probe(settings: Settings) -> None:
    """Raises BackendError, with the address, when the model does not answer there or refuses the key."""
    backend = claude(settings)
    try:
        await backend.models()
    except BackendError as error:
        raise BackendError(error.code, f"{settings.anthropic_base_url}: {error.message} ({error.code})") from error
    finally:
        await backend.close()


def claude(settings: Settings) -> Claude:
    return Claude(
        settings.anthropic_api_key,
        settings.anthropic_base_url,
        connect_timeout_s=settings.connect_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
    )


if __name__ == "__main__":
    sys.exit(process.main("generators", "Turns requests into events.", Settings, preflight, serve, probe))
