"""`python -m tailrace.gateway`: makes all services of a gateway from its settings and serves HTTP."""

import asyncio
import gc
import sys

from tailrace.gateway.app import app
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.login import Logins
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.auth.tickets import Tickets
from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http import fd_limit, server
from tailrace.gateway.http.large_bodies import LargeBodies
from tailrace.gateway.http.log_fullness import LogFullness
from tailrace.gateway.http.log_health import LogHealth
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.limits.limiter import Limiter
from tailrace.gateway.limits.reader_counts import ReaderCounts, ReaderLimits
from tailrace.gateway.limits.stream_slots import StreamSlots
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.prompts.templates import Prompts
from tailrace.gateway.settings import Settings
from tailrace.gateway.startup_checks import check, check_address, common_limits, networks
from tailrace.gateway.streaming.fanout import FanOut
from tailrace.gateway.turns.on_disconnect import DisconnectPolicy
from tailrace.proto import service
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.models import parse_aliases
from tailrace.proto.nats import BlobPins, BlobStore, Claims, Connection, Counters, Rpc, Slots, TurnLog
from tailrace.proto.nats.api_keys import ApiKeyStore
from tailrace.proto.nats.logins import Logins as StoredLogins
from tailrace.proto.nats.signing_secret import signing_secret
from tailrace.proto.nats.used_tickets import UsedTickets
from tailrace.proto.runtime.json_schema import SchemaChecker

# How long the check of a schema, or the rendering of a prompt, waits for a free subprocess.
CHECK_WAIT_S = 10.0
# Thresholds of the garbage collector's three generations; Python's defaults are (700, 10, 10). A full collection takes
# most of a second with 5,000 streams, in which none is served, and finds nothing: there are no reference cycles.
GARBAGE_AFTER = (10_000, 10, 20)


async def preflight(settings: Settings) -> None:
    await check(settings)
    check_address(settings)


async def probe(settings: Settings) -> None:
    """Raises SettingsInvalid for an address other than loopback without any credential."""
    await door_of(settings)


async def door_of(settings: Settings) -> Authenticator:
    """Returns the authenticator with the API keys that NATS has at this moment."""
    connection = await Connection.open(settings.nats_url, "tailrace-probe")
    try:
        ring = ApiKeyCache()
        await ring.load(ApiKeyStore(connection))
    finally:
        await connection.close()
    door = Authenticator(settings, ring)
    door.require_credentials()
    return door


async def serve(settings: Settings, connection: Connection, stop: asyncio.Event) -> None:
    """Serves HTTP until `stop` is set, which is also when open streams are closed."""
    gc.set_threshold(*GARBAGE_AFTER)
    keys, ring = ApiKeyStore(connection), ApiKeyCache()
    await ring.load(keys)
    door = Authenticator(settings, ring)
    door.require_credentials()
    try:
        listening = server.listen(settings.host, settings.port, settings.listen_fd)
    except OSError as error:
        raise SettingsInvalid(f"TAILRACE_PORT: cannot listen on {settings.host}:{settings.port}: {error}") from error
    fd_limit.raise_limit(settings.streams_max)
    prompts = Prompts(settings.prompts, wait_s=CHECK_WAIT_S)
    await prompts.load()
    async with asyncio.TaskGroup() as group:
        signature = TokenSigner(await signing_secret(connection))
        gateway = build(settings, connection, group, stop, door, signature=signature)._replace(prompts=prompts)
        await gateway.rpc.announce_readers(gateway.fan_out.is_read)
        watching = [
            group.create_task(gateway.log_fullness.watch()),
            group.create_task(gateway.log_health.watch()),
            group.create_task(gateway.stream_slots.renew_periodically()),
            group.create_task(ring.follow(keys, connection)),
            group.create_task(door.jwts.refresh_periodically()),
        ]
        host, port = listening.getsockname()[:2]
        service.mark_ready(url=f"http://{host}:{port}")
        await server.serve(app(gateway), listening, stop, proxies=networks(settings.proxies))
        for task in watching:
            task.cancel()
        gateway.catalogue.close()
        gateway.fan_out.close()


def build(
    settings: Settings,
    connection: Connection,
    group: asyncio.TaskGroup,
    draining: asyncio.Event,
    door: Authenticator | None = None,
    *,
    signature: TokenSigner,
) -> Gateway:
    turns, services = TurnLog(connection), Rpc(connection)
    door = door or Authenticator(settings, ApiKeyCache())
    tickets = Tickets(signature, UsedTickets(connection), door.find_key)
    logins = Logins(signature, StoredLogins(connection), door.find_key)
    door.add_verifier(logins)
    door.sources += [tickets.source, logins.source]
    lives = FanOut(turns, group, linger_s=settings.linger_s, heartbeat_s=settings.heartbeat_s)
    limits = limiter(settings, connection, turns)
    room = ReaderLimits(
        total=min(settings.streams_max, fd_limit.streams_max()),
        of_tenant=settings.streams_tenant_max,
        of_address=settings.streams_address_max,
    )
    return Gateway(
        settings=settings,
        connection=connection,
        authenticator=door,
        tickets=tickets,
        logins=logins,
        log=turns,
        blobs=BlobStore(connection),
        blob_pins=BlobPins(connection),
        claims=Claims(connection),
        rpc=services,
        history=HistoryClient(services, settings.query_timeout_s),
        catalogue=Catalogue(services, group, settings.query_timeout_s, parse_aliases(settings.model_aliases)),
        fan_out=lives,
        disconnects=DisconnectPolicy(turns, services, lives, group, draining),
        log_fullness=LogFullness(connection, settings.full_at),
        log_health=LogHealth(connection),
        limiter=limits,
        stream_slots=StreamSlots(limits, ReaderCounts(room)),
        schema_checker=SchemaChecker(wait_s=CHECK_WAIT_S),
        prompts=Prompts(settings.prompts, wait_s=CHECK_WAIT_S),
        bodies=BodyReader(
            LargeBodies(bytes_max=settings.large_bytes_max, timeout_s=settings.large_timeout_s),
            bytes_max=settings.body_bytes_max,
            timeout_s=settings.body_timeout_s,
            rate_min=settings.body_rate_min,
        ),
        draining=draining,
    )


def limiter(settings: Settings, connection: Connection, turns: TurnLog) -> Limiter:
    of_keys, of_tenants = common_limits(settings)
    return Limiter(
        Counters(connection), Slots(connection), turns, of_keys, of_tenants, is_hedged=settings.hedge_after_s > 0
    )


if __name__ == "__main__":
    about = "Turns HTTP into entries, and entries into bytes."
    sys.exit(service.main("gateway", about, Settings, preflight, serve, probe))
