"""Records turns, answers queries and sends webhooks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import structlog

from tailrace.persistence.batch_queries import BatchQueries
from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.catch_up import SharedCatchUp
from tailrace.persistence.commands import Commands, delete_again
from tailrace.persistence.database import display, global_name, move_aside, open_database
from tailrace.persistence.file_queries import FileQueries
from tailrace.persistence.queries import Queries
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.resource_queries import ResourceQueries
from tailrace.persistence.retention import Retention
from tailrace.persistence.rpc import handler
from tailrace.persistence.run_every import run_every
from tailrace.persistence.settings import Settings
from tailrace.persistence.store import Store
from tailrace.persistence.unstored import UnstoredTurns
from tailrace.persistence.webhooks import sender as webhooks
from tailrace.persistence.webhooks import signature
from tailrace.persistence.webhooks.http import WebhookClient
from tailrace.proto import service
from tailrace.proto.errors import StoreBusy, StoreCorrupt, StoreNotShared, StoreUnwritable
from tailrace.proto.nats import BlobPins, BlobStore, Connection, Deliveries, Rpc, Tombstones, TurnLog
from tailrace.proto.persistence_health import PersistenceHealth
from tailrace.proto.runtime.logged_causes import LoggedCauses
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.ssrf import parse_private_hosts
from tailrace.proto.subjects import PERSISTENCE, WEBHOOKS
from tailrace.proto.version import VERSION

logger = structlog.get_logger()

# How long a start waits for the health reports of other persistence processes, if any runs.
OTHERS_WAIT_S = 0.5
# How often turns without stored words are looked for: an older process may record some after the migration.
INDEX_OLDER_S = 60.0


async def preflight(settings: Settings) -> None:
    """Raises StoreError if the database cannot be opened, except a damaged one, which `serve` moves aside.

    Raises SettingsInvalid for a database that can never be used, and for invalid webhook settings.
    """
    webhooks.check(settings)
    with suppress(StoreCorrupt):
        await probe(settings)


async def probe(settings: Settings) -> None:
    """Raises StoreError if the database cannot be opened, also if it is damaged."""
    await (await open_database(settings.database, busy_timeout_s=settings.busy_timeout_s)).close()


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event) -> None:
    """Runs until `stop` is set. A damaged database is moved aside; the next start makes a new one from the log.

    Raises StoreError, and StoreCorrupt with the new name of the damaged database.
    """
    try:
        store = await Store.open(settings.database, busy_timeout_s=settings.busy_timeout_s)
        try:
            await _serve(settings, connection, store, stop)
        finally:
            await store.close()
    except StoreCorrupt as error:
        raise StoreCorrupt(
            f"{error}; {move_aside(settings.database)}. The next start makes a new database from the log, which "
            "keeps recent turns only; restore older turns from a backup (docs/RUNBOOK.md)"
        ) from error


async def _serve(settings: Settings, connection: Connection, store: Store, stop: asyncio.Event) -> None:
    log, rpc = TurnLog(connection), Rpc(connection)
    name = global_name(settings.database)
    await require_one_database(rpc, store, name)
    deliveries = await Deliveries.open(connection, PERSISTENCE)
    if store.needs_replay:
        # Before the migration, which raises the version: a process that is killed in between restarts it again.
        await deliveries.reset()
        logger.info("replaying the log from its beginning", why="new database" if store.is_new else "older database")
    await store.migrate()
    tombstones = Tombstones(connection)
    if not await deliveries.can_continue_after(store.read_recorded_upto):
        # Before the reset: a process that is killed in between starts it again.
        await delete_again(store, tombstones, log)
        await deliveries.reset()
        await store.reset_recorded_upto()
        logger.info("replaying the log from its beginning", why="restored database")
    unstored = UnstoredTurns(log, tombstones, store, settings.unstored_s)
    recorder = Recorder(
        log,
        tombstones,
        deliveries,
        store.without_queue(),
        unstored.divert,
        batch_max=settings.batch_max,
        retry_wait_s=settings.retry_wait_s,
    )
    caught_up = SharedCatchUp(deliveries, lambda: recorder.failure, settings.catch_up_timeout_s).wait
    queries = Queries(store, settings.session_idle_s)
    resources = ResourceQueries(store, queries)
    blobs = BlobCollector(store, BlobStore(connection), BlobPins(connection), caught_up, connection.now)
    commands = Commands(store, log, tombstones, unstored, blobs, queries, resources, caught_up)
    handlers = dict(
        handler(query, run, caught_up)
        for part in (queries, resources, BatchQueries(store), FileQueries(store, blobs, connection.now), commands)
        for query, run in part.handlers()
    )
    endpoints = await rpc.serve(PERSISTENCE, VERSION, handlers)
    await rpc.serve_health(PERSISTENCE, partial(recorder.report_health, name, await store.read_id()))
    service.mark_ready(database=display(settings.database))
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
            _send_webhooks(settings, connection, log, store, stop),
            _run_beside(blobs.run, stop),
            _run_beside(unstored.run, stop),
            _run_beside(partial(_index_older, store), stop),
            _run_beside(Retention(store, deliveries, settings.history_days).run, stop),
        ):
            await recorder.run(answered)
    finally:
        stop.set()
        await answering


async def require_one_database(rpc: Rpc, store: Store, name: str) -> None:
    """Raises StoreNotShared if another persistence process answers that uses another database than `store`.

    `name` is that of the database. It decides if `store` has no id yet.
    """
    for report in await rpc.every_health(PERSISTENCE, wait_s=OTHERS_WAIT_S):
        other = msgspec.json.decode(report, type=PersistenceHealth)
        is_same = other.database_id == await store.read_id() if store.has_id else other.database == name
        if not is_same:
            raise StoreNotShared(
                f"another persistence process uses {other.database}, and this one {name}: each would record a part of "
                "the turns. Set TAILRACE_DATABASE to the same database, or stop the other process first"
            )


@asynccontextmanager
async def _send_webhooks(
    settings: Settings, connection: Connection, log: TurnLog, store: Store, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Sends webhooks while the block runs, if a signing key is set. An unexpected error ends the process.

    Of several processes with one database, only the one that holds the lock `webhooks` sends.
    """
    if not (keys := signature.parse_keys(settings.webhook_key)):
        yield
        return
    private = parse_private_hosts(settings.webhook_private_hosts)
    deliveries = await Deliveries.open(connection, WEBHOOKS)
    async with WebhookClient(private, timeout_s=settings.webhook_timeout_s) as client:
        build = partial(
            webhooks.WebhookSender,
            log,
            Tombstones(connection),
            deliveries,
            client,
            keys=keys,
            urls=webhooks.parse_urls(settings.webhook_urls, private),
            first_wait_s=settings.webhook_wait_s,
            give_up_s=settings.webhook_give_up_s,
        )
        is_sender, logged = asyncio.Event(), LoggedCauses()

        async def send() -> None:
            while not stop.is_set():
                try:
                    async with store.lock("webhooks"):
                        is_sender.set()
                        logged.clear()
                        await build().run(stop)
                except (StoreBusy, StoreUnwritable) as error:
                    if logged.add(str(error)):
                        logger.warning("webhooks wait for the database", why=str(error))
                    await is_set_within(stop, settings.retry_wait_s)
                finally:
                    is_sender.clear()

        sending = asyncio.create_task(send())
        sending.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            stop.set()
            if not is_sender.is_set():
                sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending


async def _index_older(store: Store, stop: asyncio.Event) -> None:
    """Stores the words of turns that older versions have recorded, so that the full text search finds them."""

    async def index_all() -> None:
        while await store.store_older_words():
            pass

    await run_every(INDEX_OLDER_S, index_all, "the search of older turns", stop)


@asynccontextmanager
async def _run_beside(
    run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], stop: asyncio.Event
) -> AsyncIterator[None]:
    """Runs `run` while the block runs, and cancels it at the end. An unexpected error in it ends the process."""
    running = asyncio.create_task(run(stop))
    running.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        stop.set()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
