"""What every route is given: the doors of this gateway, opened once, and nothing of any request."""

import asyncio
from typing import NamedTuple

from starlette.requests import Request

from tailrace.gateway.auth.authenticate import Authenticator, credential_invalid
from tailrace.gateway.auth.login import Logins
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.tickets import Tickets
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.log_fullness import LogFullness
from tailrace.gateway.http.log_health import LogHealth
from tailrace.gateway.limits.limiter import Limiter
from tailrace.gateway.limits.stream_slots import StreamSlots
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.prompts.templates import Prompts
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.fanout import FanOut
from tailrace.gateway.turns.on_disconnect import DisconnectPolicy
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, is_token
from tailrace.proto.nats import BlobPins, BlobStore, Claims, Connection, Rpc, TurnLog
from tailrace.proto.runtime.json_schema import SchemaChecker
from tailrace.proto.subjects import TurnKey


class Gateway(NamedTuple):
    settings: Settings
    connection: Connection
    door: Authenticator
    tickets: Tickets
    logins: Logins
    log: TurnLog
    bodies: BlobStore
    holds: BlobPins
    claims: Claims
    services: Rpc
    history: HistoryClient
    catalogue: Catalogue
    lives: FanOut
    departures: DisconnectPolicy
    fullness: LogFullness
    pulse: LogHealth
    limits: Limiter
    streams: StreamSlots
    judge: SchemaChecker
    prompts: Prompts
    draining: asyncio.Event


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: Request) -> Principal:
    """Who asks, as the guard of the route has found out. Raises Refused where nobody has been asked."""
    caller: Principal | None = getattr(request.state, "caller", None)
    if caller is None:
        raise credential_invalid()
    return caller


def tenant_of(request: Request) -> Tenant:
    """Whose turns are asked for; raises Refused."""
    return caller_of(request).tenant


async def offer_to(request: Request) -> Offer:
    """The models that whoever asks can ask; raises Refused for a stranger."""
    return await gateway_of(request).catalogue.offer(tenant_of(request))


def turn_of(request: Request) -> TurnKey:
    """The turn that the path names, as the tenant's who asks; raises Refused.

    Whose turn it is comes from the credential alone, so another tenant's cannot be named: it is not there.
    """
    return turn_named(request, "turn")


def turn_named(request: Request, parameter: str) -> TurnKey:
    """The same, where the path calls it something else."""
    tenant = tenant_of(request)
    turn = request.path_params[parameter]
    if not is_token(turn):
        raise no_turn()
    return TurnKey(tenant, TurnId(turn))


def no_turn() -> Refused:
    """The same for a turn that never was, one of somebody else, and what cannot be a turn's id."""
    return Refused("turn_not_found", "there is no such turn")


def refuse_when_draining(gateway: Gateway) -> None:
    """Before anything begins here: what was accepted is answered, or the client would ask for it twice."""
    if gateway.draining.is_set():
        raise Refused("draining", "this gateway is going away: ask again", retry_after_s=1)
