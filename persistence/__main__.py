"""`python -m tailrace.persistence`: the one process that writes turns into SQLite, and answers questions about them."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import structlog

from tailrace.persistence.batch_queries import Batches
from tailrace.persistence.blob_gc import Releases
from tailrace.persistence.catch_up import catch_up
from tailrace.persistence.commands import Changes
from tailrace.persistence.database import set_aside
from tailrace.persistence.queries import Queries
from tailrace.persistence.recorder import Recorder
from tailrace.persistence.resource_queries import Resources
from tailrace.persistence.settings import Settings
from tailrace.persistence.store import Store
from tailrace.persistence.webhooks import sender as webhooks
from tailrace.persistence.webhooks import signature
from tailrace.persistence.webhooks.http import Egress
from tailrace.proto.errors import SettingsInvalid, StoreCorrupt
from tailrace.proto.nats import BlobPins, Bodies, Connection, Deliveries, Services, Tombstones, TurnLog
from tailrace.proto.runtime import main
from tailrace.proto.ssrf import parse_private_hosts
from tailrace.proto.subjects import PERSISTENCE, WEBHOOKS
from tailrace.proto.version import VERSION

logger = structlog.get_logger()


async def preflight(settings: Settings) -> None:
    """Raises StoreError when the database cannot be opened; what is damaged is left for `serve` to move aside.

    SettingsInvalid for a folder in its place, and for webhooks that nobody could sign or send.
    """
    webhooks.check(settings)
    if settings.database.is_dir():
        raise SettingsInvalid(f"TAILRACE_DATABASE: {str(settings.database)!r} is a folder; expected a file")
    with suppress(StoreCorrupt):
        async with _opened(settings):
            pass


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event) -> None:
    """Records and answers until `stop` is set. A damaged database is moved aside; the next start makes a new one."""
    try:
        async with _opened(settings) as store:
            await _serve(settings, connection, store, stop)
    except StoreCorrupt as error:
        aside = set_aside(settings.database)
        left = "nothing is left of it" if aside is None else f"what was there is now {aside}"
        raise StoreCorrupt(
            f"{error}; {left}. The next start makes a new database from the log, as far as "
            "that goes back; what is older has to come from a backup (docs/RUNBOOK.md)"
        ) from error


async def _serve(settings: Settings, connection: Connection, store: Store, stop: asyncio.Event) -> None:
    turns, services = TurnLog(connection), Services(connection)
    deliveries = await Deliveries.open(connection, PERSISTENCE)
    if store.is_behind:
        # Before the step is done that says so: whoever dies between the two does the first again.
        await deliveries.restart()
        logger.info("the log is read from its beginning", why="new database" if store.is_new else "older database")
    await store.migrate()
    if not await deliveries.may_have_ended_at(await store.recorded_upto()):
        await deliveries.restart()
        await store.reach_nothing()
        logger.info("the log is read from its beginning", why="restored database")
    tombstones = Tombstones(connection)
    recorder = Recorder(
        turns, tombstones, deliveries, store, batch_max=settings.batch_max, retry_wait_s=settings.retry_wait_s
    )
    caught_up = partial(catch_up, deliveries, lambda: recorder.trouble, settings.catch_up_timeout_s)
    queries = Queries(store, settings.session_idle_s)
    resources = Resources(store, queries)
    releases = Releases(store, Bodies(connection), BlobPins(connection), caught_up)
    changes = Changes(store, tombstones, releases, queries, resources)
    answers = {
        name: answer
        for room in (queries, resources, Batches(store), changes)
        for name, answer in room.answers(caught_up).items()
    }
    service = await services.answer(PERSISTENCE, VERSION, answers)
    await services.report_health(PERSISTENCE, recorder.report)
    main.ready(database=str(settings.database))
    try:
        async with _telling(settings, connection, turns, stop), _settling(releases, stop):
            await recorder.run(stop)
    finally:
        if not connection.closed.is_set():
            await service.stop()


@asynccontextmanager
async def _telling(
    settings: Settings, connection: Connection, turns: TurnLog, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Sends webhooks while the block runs, if there is a key to sign them with. A mistake in it ends the process."""
    if not (keys := signature.keys(settings.webhook_key)):
        yield
        return
    private = parse_private_hosts(settings.webhook_private_hosts)
    deliveries = await Deliveries.open(connection, WEBHOOKS)
    async with Egress(private, timeout_s=settings.webhook_timeout_s) as egress:
        sender = webhooks.Webhooks(
            turns,
            deliveries,
            egress,
            keys=keys,
            urls=webhooks.tenants_urls(settings.webhook_urls, private),
            first_wait_s=settings.webhook_wait_s,
            give_up_s=settings.webhook_give_up_s,
        )
        telling = asyncio.create_task(sender.run(stop))
        telling.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            stop.set()
            await telling


@asynccontextmanager
async def _settling(releases: Releases, stop: asyncio.Event) -> AsyncIterator[None]:
    """Settles while the block runs what deletions have left, and breaks off then. A mistake in it ends the process."""
    settling = asyncio.create_task(releases.run(stop))
    settling.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        stop.set()
        settling.cancel()
        with suppress(asyncio.CancelledError):
            await settling


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Store]:
    store = await Store.open(settings.database, busy_timeout_s=settings.busy_timeout_s)
    try:
        yield store
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main.main("persistence", "Writes turns into SQLite, and answers from it.", Settings, preflight, serve))
