"""`python -m tailrace.persistence`: the process that records turns in SQLite, answers queries and sends webhooks."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog

from tailrace.persistence.batch_queries import BatchQueries
from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.catch_up import catch_up
from tailrace.persistence.commands import Commands
from tailrace.persistence.database import move_aside
from tailrace.persistence.file_queries import FileQueries
from tailrace.persistence.queries import Queries
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.resource_queries import ResourceQueries
from tailrace.persistence.retention import Retention
from tailrace.persistence.settings import Settings
from tailrace.persistence.store import Store
from tailrace.persistence.webhooks import sender as webhooks
from tailrace.persistence.webhooks import signature
from tailrace.persistence.webhooks.http import WebhookClient
from tailrace.proto import service
from tailrace.proto.errors import SettingsInvalid, StoreCorrupt
from tailrace.proto.nats import BlobPins, BlobStore, Connection, Deliveries, Rpc, Tombstones, TurnLog
from tailrace.proto.ssrf import parse_private_hosts
from tailrace.proto.subjects import PERSISTENCE, WEBHOOKS
from tailrace.proto.version import VERSION

logger = structlog.get_logger()


async def preflight(settings: Settings) -> None:
    """Raises StoreError if the database cannot be opened, except a damaged one, which `serve` moves aside.

    Raises SettingsInvalid if the path is a directory, and for invalid webhook settings.
    """
    webhooks.check(settings)
    if settings.database.is_dir():
        raise SettingsInvalid(f"TAILRACE_DATABASE: {str(settings.database)!r} is a directory; set it to a file")
    with suppress(StoreCorrupt):
        async with _open_store(settings):
            pass


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event) -> None:
    """Runs until `stop` is set. A damaged database is moved aside; the next start makes a new one from the log."""
    try:
        async with _open_store(settings) as store:
            await _serve(settings, connection, store, stop)
    except StoreCorrupt as error:
        aside = move_aside(settings.database)
        moved = "the file does not exist any more" if aside is None else f"it was renamed to {aside}"
        raise StoreCorrupt(
            f"{error}; {moved}. The next start makes a new database from the log, which keeps recent turns only; "
            "restore older turns from a backup (docs/RUNBOOK.md)"
        ) from error


async def _serve(settings: Settings, connection: Connection, store: Store, stop: asyncio.Event) -> None:
    turns, services = TurnLog(connection), Rpc(connection)
    deliveries = await Deliveries.open(connection, PERSISTENCE)
    if store.needs_replay:
        # Before the migration, which raises the version: a process that is killed in between restarts it again.
        await deliveries.reset()
        logger.info("replaying the log from its beginning", why="new database" if store.is_new else "older database")
    await store.migrate()
    if not await deliveries.may_have_ended_at(await store.recorded_upto()):
        await deliveries.reset()
        await store.reset_recorded_upto()
        logger.info("replaying the log from its beginning", why="restored database")
    tombstones = Tombstones(connection)
    recorder = Recorder(
        turns, tombstones, deliveries, store, batch_max=settings.batch_max, retry_wait_s=settings.retry_wait_s
    )
    caught_up = partial(catch_up, deliveries, lambda: recorder.failure, settings.catch_up_timeout_s)
    queries = Queries(store, settings.session_idle_s)
    resources = ResourceQueries(store, queries)
    blobs = BlobCollector(store, BlobStore(connection), BlobPins(connection), caught_up)
    commands = Commands(store, tombstones, blobs, queries, resources)
    handlers = {
        name: handler
        for part in (queries, resources, BatchQueries(store), FileQueries(store, blobs), commands)
        for name, handler in part.handlers(caught_up).items()
    }
    endpoints = await services.serve(PERSISTENCE, VERSION, handlers)
    await services.serve_health(PERSISTENCE, recorder.report)
    service.mark_ready(database=str(settings.database))
    answered = asyncio.Event()

    async def answer_until_stop() -> None:
        """Queries need the recorder: it stops when those that have arrived are answered."""
        await stop.wait()
        try:
            if not connection.closed.is_set():
                await endpoints.stop()
        finally:
            answered.set()

    answering = asyncio.create_task(answer_until_stop())
    try:
        async with (
            _sending_webhooks(settings, connection, turns, stop),
            _beside(blobs.run, stop),
            _beside(Retention(store, deliveries.first, settings.history_days).run, stop),
        ):
            await recorder.run(answered)
    finally:
        stop.set()
        await answering


@asynccontextmanager
async def _sending_webhooks(
    settings: Settings, connection: Connection, turns: TurnLog, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Sends webhooks while the block runs, if a signing key is set. An unexpected error ends the process."""
    if not (keys := signature.parse_keys(settings.webhook_key)):
        yield
        return
    private = parse_private_hosts(settings.webhook_private_hosts)
    deliveries = await Deliveries.open(connection, WEBHOOKS)
    async with WebhookClient(private, timeout_s=settings.webhook_timeout_s) as client:
        sender = webhooks.WebhookSender(
            turns,
            deliveries,
            client,
            keys=keys,
            urls=webhooks.parse_urls(settings.webhook_urls, private),
            first_wait_s=settings.webhook_wait_s,
            give_up_s=settings.webhook_give_up_s,
        )
        sending = asyncio.create_task(sender.run(stop))
        sending.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            stop.set()
            await sending


@asynccontextmanager
async def _beside(
    run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], stop: asyncio.Event
) -> AsyncIterator[None]:
    """Runs `run` while the block runs, and cancels it then. An unexpected error ends the process."""
    running = asyncio.create_task(run(stop))
    running.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        stop.set()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def _open_store(settings: Settings) -> AsyncIterator[Store]:
    store = await Store.open(settings.database, busy_timeout_s=settings.busy_timeout_s)
    try:
        yield store
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(service.main("persistence", "Records turns in SQLite and answers queries.", Settings, preflight, serve))
