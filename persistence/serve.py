"""Records turns and answers queries, with the given features."""

import asyncio
from contextlib import AsyncExitStack, suppress
from functools import partial

import msgspec
import structlog

from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.catch_up import SharedCatchUp
from tailrace.persistence.commands import Commands, delete_again
from tailrace.persistence.damaged_turns import DamagedTurns
from tailrace.persistence.database import Database, move_aside
from tailrace.persistence.delivery_queue import DeliveryQueue
from tailrace.persistence.feature import Features, Services, check, databases_of, join_handlers, tables_of
from tailrace.persistence.health import PersistenceHealth
from tailrace.persistence.queries import Queries
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.rpc import handler
from tailrace.persistence.run_every import run_beside
from tailrace.persistence.settings import Settings
from tailrace.persistence.store import Store
from tailrace.proto import service
from tailrace.proto.errors import StoreCorrupt, StoreNotShared
from tailrace.proto.nats import BlobPins, BlobStore, Connection, Deliveries, Rpc, Tombstones, TurnLog
from tailrace.proto.runtime.feature_parts import join_distinct
from tailrace.proto.runtime.settings import select
from tailrace.proto.subjects import PERSISTENCE
from tailrace.proto.version import VERSION
from tailrace.proto.waiting import wait_for

logger = structlog.get_logger()

# How long a start waits for health reports, if other persistence processes run.
OTHERS_WAIT_S = 0.5


async def preflight(settings: Settings, *, features: Features = ()) -> None:
    """Raises StoreError if the database cannot be opened, but not if it is damaged: `serve` moves it aside.

    Raises SettingsInvalid for a database that can never be used, and for invalid settings of a feature.
    """
    check(settings, features)
    with suppress(StoreCorrupt):
        await probe(settings, features=features)


async def probe(settings: Settings, *, features: Features = ()) -> None:
    """Raises StoreError if the database cannot be opened, also if it is damaged."""
    await (await _open(settings, features)).close()


async def _open(settings: Settings, features: Features) -> Database:
    return await databases_of(features).open(settings.database, busy_timeout_s=settings.busy_timeout_s)


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event, *, features: Features = ()) -> None:
    """Runs with `features` until `stop` is set.

    A damaged database is moved aside; the next start makes a new one from the log. Raises StoreError, and StoreCorrupt
    with the new name of the damaged database.
    """
    try:
        database = await wait_for(partial(_open, settings, features), stop)
        if database is None:
            return
        store = Store(database, tables_of(features))
        try:
            await _serve(settings, connection, store, stop, features)
        finally:
            await store.close()
    except StoreCorrupt as error:
        raise StoreCorrupt(
            f"{error}; {move_aside(settings.database)}. The next start makes a new database from the log, which "
            "keeps recent turns only; restore older turns from a backup (docs/RUNBOOK.md)"
        ) from error


async def _serve(
    settings: Settings, connection: Connection, store: Store, stop: asyncio.Event, features: Features
) -> None:
    log, rpc = TurnLog(connection), Rpc(connection)
    databases = databases_of(features)
    name = databases.global_name(settings.database)
    await require_one_database(rpc, store, name)
    deliveries = await Deliveries.open(connection, PERSISTENCE)
    if store.needs_replay:
        # Before the migration, which raises the version: after a kill in between, the next process resets again.
        await deliveries.reset()
        logger.info("replaying the log from its beginning", why="new database" if store.is_new else "older database")
    await wait_for(store.migrate, stop)
    if stop.is_set():
        return
    tombstones = Tombstones(connection)
    if not await deliveries.can_continue_after(store.read_recorded_upto):
        # Before the reset: after a kill in between, the next process does both again.
        await delete_again(store, tombstones, log)
        await deliveries.reset()
        await store.reset_recorded_upto()
        logger.info("replaying the log from its beginning", why="restored database")
    queue = DeliveryQueue()
    caught_up = SharedCatchUp(
        deliveries, queue.has_recorded, lambda: recorder.failure, settings.catch_up_timeout_s
    ).wait
    queries = Queries(store, settings.session_idle_s)
    blobs = BlobCollector(store, BlobStore(connection), BlobPins(connection), caught_up)
    services = Services(
        connection, log, deliveries, tombstones, store, queries, blobs, caught_up, settings.retry_wait_s
    )
    started = [feature.start(services, select(settings, feature.settings)) for feature in features]
    unrecorded = [parts.unrecorded for parts in started if parts.unrecorded is not None]
    erase_tenant = [parts.erase_tenant for parts in started if parts.erase_tenant is not None]
    recorder = Recorder(
        log,
        tombstones,
        deliveries,
        store.without_queue(),
        unrecorded,
        queue,
        batch_max=settings.batch_max,
        retry_wait_s=settings.retry_wait_s,
    )
    recorder.has_recorded = await store.has_recorded()
    require_exists = join_distinct((item for parts in started for item in parts.require_exists.items()), "check of a")
    commands = Commands(store, log, tombstones, blobs, queries, caught_up, unrecorded, erase_tenant, require_exists)
    of_core = [*queries.handlers(), *commands.handlers()]
    handlers = dict(
        handler(query, run, caught_up, queries.require_owned) for query, run in join_handlers(of_core, started)
    )
    endpoints = await rpc.serve(PERSISTENCE, VERSION, handlers)
    damaged = DamagedTurns(log, store, rpc)
    report = partial(recorder.report_health, name, await store.read_id(), lambda: damaged.number)
    await rpc.serve_health(PERSISTENCE, report)
    service.mark_ready(database=databases.display(settings.database))
    answered = asyncio.Event()

    async def answer_until_stop() -> None:
        """Queries need the recorder: it stops when all arrived queries are answered."""
        await stop.wait()
        try:
            if not connection.closed.is_set():
                await endpoints.stop()
        finally:
            answered.set()

    answering = asyncio.create_task(answer_until_stop())
    try:
        async with AsyncExitStack() as beside:
            for run in (part for parts in started for part in parts.beside):
                await beside.enter_async_context(run(stop))
            await beside.enter_async_context(run_beside(blobs.run, stop))
            await beside.enter_async_context(run_beside(damaged.run, stop))
            await recorder.run(answered)
    finally:
        stop.set()
        await answering


async def require_one_database(rpc: Rpc, store: Store, name: str) -> None:
    """Raises StoreNotShared if another persistence process replies that its database is not that of `store`.

    `name` is the name of the database, which is compared if `store` has no id yet.
    """
    for report in await rpc.every_health(PERSISTENCE, wait_s=OTHERS_WAIT_S):
        other = msgspec.json.decode(report, type=PersistenceHealth)
        is_same = other.database_id == await store.read_id() if store.has_id else other.database == name
        if not is_same:
            raise StoreNotShared(
                f"another persistence process uses {other.database}, and this one {name}: each would record a part of "
                "the turns. Set TAILRACE_DATABASE to the same database, or stop the other process first"
            )
