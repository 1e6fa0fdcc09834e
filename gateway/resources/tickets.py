"""Route that creates tickets: links to one turn's events that need no key."""

import msgspec
from starlette.responses import Response

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.tickets import SHARED_S, SHARED_S_MAX, SHARED_S_MIN, Tickets
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import TURNS, Route
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.errors import Refused


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
        token, ticket = tickets.create_shared(request.principal, key.turn, life_s)
    else:
        token, ticket = tickets.create_single_use(request.principal, key.turn)
    events = f"/v1/turns/{key.turn}/events?ticket={token}"
    made = MadeTicket(ticket=token, events=events, begin_by=ticket.begin_by, until=ticket.until)
    return json_response(made)


ROUTES = [
    Route("POST", "/v1/turns/{turn}/tickets", post, "read", TURNS, body=NewTicket, result=MadeTicket),
]
