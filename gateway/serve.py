"""Makes all services of a gateway from its settings, and serves HTTP."""

import asyncio
import gc
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tailrace.gateway.app import app, dialects_of, overflow_app
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_key_store import ApiKeyStore
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.auth.signing_secret import signing_secret
from tailrace.gateway.feature import Features, Started
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http import fd_limit, server
from tailrace.gateway.http.http_protocol import ClientConnection
from tailrace.gateway.http.large_bodies import LargeBodies
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.http.waiting_answers import serve_meanwhile
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.log.health import LogHealth
from tailrace.gateway.log.restores import read_restores
from tailrace.gateway.metrics import create_series
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.resources.health import HealthChecks
from tailrace.gateway.services import Gateway
from tailrace.gateway.settings import Settings
from tailrace.gateway.startup_checks import build_authenticator, check, check_address, networks
from tailrace.gateway.streaming.feed import FanOut
from tailrace.gateway.streaming.reader import StreamContext
from tailrace.gateway.streaming.reader_counts import ReaderCounts, ReaderLimits
from tailrace.gateway.streaming.stream_record import StreamRecords
from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.deleted_parent import ParentCheck
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.queue_estimate import QueueEstimate
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.gateway.turns.repeats import Repeats
from tailrace.gateway.turns.respond import Responder
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.gateway.turns.store_trace import with_trace
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto import service
from tailrace.proto.models import parse_aliases
from tailrace.proto.nats import BlobPins, BlobStore, Claims, Connection, Rpc, Tombstones, TurnLog
from tailrace.proto.restores import Restores
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.feature_parts import at_most_one
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.runtime.listen_error import listen_error
from tailrace.proto.runtime.settings import select
from tailrace.proto.waiting import wait_for

# Thresholds of the garbage collector's three generations; Python's defaults are (700, 10, 10). A full collection takes
# most of a second with 5,000 streams, in which none is served, and finds little: mostly errors, such as the timeout of
# a request to NATS, which are in reference cycles.
GARBAGE_AFTER = (10_000, 10, 20)


async def preflight(settings: Settings, *, features: Features = ()) -> None:
    """Checks the settings before the process connects to NATS. Raises SettingsInvalid."""
    await check(settings, features)
    check_address(settings)


async def probe(settings: Settings, *, features: Features = ()) -> None:
    """Raises SettingsInvalid for an address other than loopback without any credential."""
    await load_authenticator(settings, features)


async def meanwhile(settings: Settings, over: asyncio.Event) -> None:
    """Answers on the gateway's port until `over` is set.

    An inherited socket is left alone: its clients wait in its queue, or another gateway answers them.
    """
    if not settings.listen_fd:
        await serve_meanwhile(settings.host, settings.port, over)


async def load_authenticator(settings: Settings, features: Features) -> Authenticator:
    """Returns the authenticator with the API keys that NATS has at this moment."""
    connection = await Connection.open(settings.nats_url, "tailrace-probe")
    try:
        key_cache = ApiKeyCache(settings.first_key_file)
        await key_cache.load(ApiKeyStore(connection))
    finally:
        await connection.close()
    authenticator = build_authenticator(settings, features, key_cache)
    authenticator.require_credentials()
    return authenticator


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event, *, features: Features = ()) -> None:
    """Serves HTTP with `features` until `stop` is set. Open streams are closed shortly afterwards."""
    draining = Flag()
    gc.set_threshold(*GARBAGE_AFTER)
    keys, key_cache = ApiKeyStore(connection), ApiKeyCache(settings.first_key_file)
    authenticator = build_authenticator(settings, features, key_cache)

    async def load_keys() -> bool:
        await key_cache.load(keys)
        authenticator.require_credentials()
        return True

    if not await wait_for(load_keys, stop, partial(meanwhile, settings)):
        return
    # Not in the group below: a traceback would hide the message of an error in the group.
    signer = TokenSigner(await signing_secret(connection))
    fd_limit.raise_limit(settings.streams_max)
    try:
        listening = server.listen(settings.host, settings.port, settings.listen_fd)
    except OSError as error:
        raise listen_error("TAILRACE_PORT", settings.host, settings.port, error) from error
    async with asyncio.TaskGroup() as group:
        gateway = build(settings, connection, group, draining, authenticator, signer=signer)
        gateway.log.restores = Restores(await read_restores(connection))
        await gateway.rpc.serve_presence(gateway.streams.fan_out.has_readers, gateway.streams.records.encode_readers)
        await gateway.rpc.serve_reader_queries(gateway.streams.records.encode_readers)
        started = start(gateway, settings, features)
        for _, parts in started:
            if parts.prepare is not None:
                await parts.prepare()
        background = [
            group.create_task(gateway.log_fullness.watch()),
            group.create_task(gateway.log_health.watch()),
            group.create_task(gateway.queue_estimate.watch()),
            group.create_task(key_cache.follow(keys, connection)),
            *(group.create_task(run()) for _, parts in started for run in parts.background),
        ]
        host, port = listening.getsockname()[:2]
        service.mark_ready(url=f"http://{host}:{port}")
        await server.serve(
            app(gateway, started),
            overflow_app(gateway, started),
            listening,
            stop,
            draining,
            proxies=networks(settings.proxies),
            connection=at_most_one((parts.connection for _, parts in started), "connection") or ClientConnection,
        )
        for task in background:
            task.cancel()
        gateway.catalogue.close()
        gateway.streams.fan_out.close()


def start(gateway: Gateway, settings: Settings, features: Features) -> Started:
    """Makes the services of the features, and adds their steps of submissions and their limits.

    Raises ValueError if two features provide the same step, or both a limiter.
    """
    started = [(feature, feature.start(gateway, select(settings, feature.settings))) for feature in features]
    create_series(dialects_of(features))
    for _, parts in started:
        gateway.submitter.add_steps(parts.steps)
        if parts.on_disconnect is not None:
            gateway.streams.departures.append(parts.on_disconnect)
        if parts.go_on is not None:
            gateway.streams.successions.append(parts.go_on)
        if parts.deletion is not None:
            gateway.deleter.steps.append(parts.deletion)
    if (limiter := at_most_one((parts.limiter for _, parts in started), "limiter")) is not None:
        gateway.admissions.limiter = limiter
    return started


class Storage(NamedTuple):
    """The services that read and store large data."""

    blobs: BlobStore
    request_blobs: RequestBlobs
    bodies: BodyReader
    fullness: LogFullness


def build(
    settings: Settings,
    connection: Connection,
    group: asyncio.TaskGroup,
    draining: Flag,
    authenticator: Authenticator | None = None,
    *,
    signer: TokenSigner,
) -> Gateway:
    """Returns the services of a gateway. Each is made from those before it."""
    log = TurnLog(connection)
    rpc = Rpc(connection)
    claims = Claims(connection)
    authenticator = authenticator or Authenticator(settings, ApiKeyCache())
    admissions = Admissions()
    history = HistoryClient(rpc, settings.query_timeout_s)
    log.ask_recorder = history.has_end
    fan_out = FanOut(log, group, linger_s=settings.linger_s, heartbeat_s=settings.heartbeat_s)
    counts = ReaderCounts(reader_limits(settings))
    records = StreamRecords(settings.log_streams)
    presence = ReaderPresence(log, rpc, fan_out, group, draining)
    streams = StreamContext(
        settings, log, history, fan_out, authenticator, counts, admissions, records, draining, [], []
    )
    storage = build_storage(settings, connection, admissions)
    deleter = Deleter(connection, log, history)
    catalogue = Catalogue(rpc, group, settings.query_timeout_s, parse_aliases(settings.model_aliases))
    queue = QueueEstimate(connection, rpc, settings.queue_max)
    health = LogHealth(connection)
    submitter = TurnSubmitter(
        log,
        Repeats(log, claims, Tombstones(connection)),
        Conversations(log, history),
        catalogue,
        settings,
        storage.fullness,
        queue,
        storage.request_blobs,
        ParentCheck(log, history, deleter),
        draining,
        admissions,
        streams.fan_out.expect,
        signer.pseudonym,
    )
    if tracing.is_on():
        submitter.add_steps(OptionalSteps(add_trace=with_trace))
    return Gateway(
        settings=settings,
        connection=connection,
        rpc=rpc,
        log=log,
        history=history,
        claims=claims,
        blob_store=storage.blobs,
        request_blobs=storage.request_blobs,
        admissions=admissions,
        log_fullness=storage.fullness,
        log_health=health,
        queue_estimate=queue,
        authenticator=authenticator,
        signer=signer,
        bodies=storage.bodies,
        catalogue=catalogue,
        streams=streams,
        turns=TurnReader(log, history),
        submitter=submitter,
        responder=Responder(submitter, streams),
        deleter=deleter,
        presence=presence,
        health_checks=HealthChecks(connection, rpc, health, storage.fullness, draining),
    )


def reader_limits(settings: Settings) -> ReaderLimits:
    """Returns the limits of open streams: the setting, or less if the process may open fewer sockets."""
    total = min(settings.streams_max, fd_limit.streams_max())
    return ReaderLimits(total, of_tenant=settings.streams_tenant_max, of_address=settings.streams_address_max)


def build_storage(settings: Settings, connection: Connection, admissions: Admissions) -> Storage:
    bytes_max = settings.body_bytes_max
    fullness = LogFullness(connection, settings.full_at, Path(settings.disk) if settings.disk else None)
    blobs = BlobStore(connection)
    request_blobs = RequestBlobs(blobs, BlobPins(connection), admissions, bytes_max)
    large_bodies = LargeBodies(bytes_max=settings.large_bytes_max, timeout_s=settings.large_timeout_s)
    bodies = BodyReader(
        large_bodies, bytes_max=bytes_max, timeout_s=settings.body_timeout_s, rate_min=settings.body_rate_min
    )
    return Storage(blobs, request_blobs, bodies, fullness)
