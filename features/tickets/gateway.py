"""Tickets: links to the events of one turn that need no key. One route creates them, and the events take them."""

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.features.tickets.older_gateways import OlderGateways
from tailrace.features.tickets.tickets import PARAMETER, SHARED_S, SHARED_S_MAX, SHARED_S_MIN, Tickets
from tailrace.features.tickets.used_tickets import UsedTickets
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.clients.native import routes
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import LAST_RECEIVED
from tailrace.gateway.http.route import TURNS, Route, header, query
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.dialect import Dialects
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.settings import NoSettings

TICKET = query(PARAMETER, "A ticket from `POST /v1/turns/{turn}/tickets`, instead of a key.")
# The ids of the stream of a single-use ticket begin with a proof (TokenSigner.proof).
PROVEN_CURSOR = header("Last-Event-ID", LAST_RECEIVED, type="string", pattern=r"^([A-Za-z0-9_-]{22}\.)?[0-9]{1,19}$")


class NewTicket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/turns/{turn}/tickets`. `life_s`: the lifetime of a shared ticket, in seconds."""

    is_shared: bool = False
    """Whether several readers may use the ticket; otherwise it opens one stream."""
    life_s: int | None = None
    """The lifetime of a shared ticket, in seconds."""


class MadeTicket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket, and the URL that it opens. Times are Unix seconds."""

    ticket: str
    """The ticket."""
    events: str
    """The path of the turn's events, with the ticket."""
    begin_by: int
    """The time until which a stream may begin, in Unix seconds."""
    until: int
    """The time at which a stream ends, in Unix seconds."""


async def post(request: ApiRequest, tickets: Tickets, turns: TurnReader) -> Response:
    """`POST /v1/turns/{turn}/tickets`: a link to the turn's events, for one reader or to share.

    For readers that cannot send a key, such as an `EventSource` in a browser. A ticket opens only this turn.
    """
    key = request.turn()
    new, _ = await request.read(NewTicket)
    if new.life_s is not None and not new.is_shared:
        raise Refused("request_invalid", "`life_s` needs `is_shared: true`.")
    life_s = SHARED_S if new.life_s is None else new.life_s
    if not SHARED_S_MIN <= life_s <= SHARED_S_MAX:
        raise Refused("request_invalid", f"`life_s` must be from {SHARED_S_MIN} to {SHARED_S_MAX} seconds.")
    await turns.read(key)
    if new.is_shared:
        token, ticket = await tickets.create_shared(request.principal, key.turn, life_s)
    else:
        token, ticket = await tickets.create_single_use(request.principal, key.turn)
    events = f"/v1/turns/{key.turn}/events?ticket={token}"
    made = MadeTicket(ticket=token, events=events, begin_by=ticket.begin_by, until=ticket.until)
    return json_response(made)


async def get_events(request: ApiRequest, streams: StreamContext, dialects: Dialects, tickets: Tickets) -> ASGIApp:
    key = request.turn()
    ticket = await tickets.read_single_use(request, key) if PARAMETER in request.query_params else None
    if ticket is None:
        return await routes.get_events(request, streams, dialects)
    proof, use = tickets.stream_terms(ticket, request)
    reader = Reader(streams, request, id_prefix=proof, accept=use)
    dialect = routes.dialect_of(request, dialects)
    return routes.stream_of(reader, request, key, routes.cursor_of(request, proof), dialect)


get_events.__doc__ = routes.get_events.__doc__


def wrap(route: Route) -> Route:
    """Returns the route of a turn's events with the parameter `ticket`, and any other route as it is."""
    if route.endpoint is not routes.get_events:
        return route
    others = (one for one in route.parameters if one.name != PROVEN_CURSOR.name or one.place != "header")
    return msgspec.structs.replace(route, endpoint=get_events, parameters=(PROVEN_CURSOR, *others, TICKET))


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the gateway accept tickets."""
    older_gateways = OlderGateways(gateway.rpc)
    tickets = Tickets(gateway.signer, UsedTickets(gateway.connection), gateway.authenticator.find_key, older_gateways)
    gateway.authenticator.sources.append(tickets.source)
    return Parts(services=(tickets,), background=(older_gateways.watch,))


ROUTES = [
    Route("POST", "/v1/turns/{turn}/tickets", post, "read", TURNS, body=NewTicket, result=MadeTicket),
]

FEATURE = Feature(NoSettings, start, routes=ROUTES, wrap=wrap)
