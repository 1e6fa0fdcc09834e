"""The routes of a turn: ask, read, look, cancel. A POST becomes one entry in the log; no model is called here."""

from contextlib import nullcontext

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.auth.signed_tokens import Ticket
from tailrace.gateway.auth.tickets import strip_proof
from tailrace.gateway.clients.registry import DIALECTS, Dialect
from tailrace.gateway.dependencies import Gateway, gateway_of, refuse_when_draining, tenant_of, turn_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.streaming import sse
from tailrace.gateway.streaming.event_stream import EventStream
from tailrace.gateway.streaming.pacing import Pace, pace_of
from tailrace.gateway.streaming.wait_for_log import WaitForLog
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.respond import accepted, asked
from tailrace.gateway.turns.webhook_url import check_webhook
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, TurnId, parse_cursor
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey


class Accepted(msgspec.Struct, frozen=True):
    """A turn that is in the log, and where to go on."""

    turn: TurnId
    session: SessionId
    links: dict[str, str]


async def post(request: Request) -> Response | ASGIApp:
    """`POST /v1/turns`: 202 with the turn's id; with `Accept: text/event-stream`, the stream itself."""
    # Who it is comes first, and a stranger is not told what there is.
    tenant_of(request)
    dialect, pace = dialect_of(request), pace_of(request)
    ask, raw = await asked(request, NewTurn)
    check_webhook(ask.webhook, gateway_of(request).settings)
    if ask.prompt is not None:
        ask = await gateway_of(request).prompts.filled(ask, tenant_of(request))
    is_stream = "text/event-stream" in request.headers.get("accept", "")
    async with gateway_of(request).streams.reserved(request) if is_stream else nullcontext():
        key, asked_for = await accepted(request, ask, raw)
    path = f"/v1/turns/{key.turn}"
    if is_stream:
        return EventStream(gateway_of(request), key, BEFORE_FIRST, dialect, {"location": path}, pace=pace)
    links = {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"}
    told = Accepted(turn=key.turn, session=asked_for.session, links=links)
    return json_response(told, status=202, headers={"location": path, "tailrace-turn": key.turn})


async def events(request: Request) -> ASGIApp:
    """`GET /v1/turns/{turn}/events`: the turn from the cursor on."""
    gateway, key = gateway_of(request), turn_of(request)
    dialect = dialect_of(request)
    ticket = await gateway.tickets.read_ticket(request, key)
    stream = stream_of(gateway, key, cursor_of(request, ticket), dialect, request.method, pace_of(request))
    if ticket is None:
        return stream
    return gateway.tickets.wrap_stream(ticket, stream, request, has_ids=dialect.media_type == sse.MEDIA_TYPE)


def stream_of(
    gateway: Gateway, key: TurnKey, cursor: Seq, dialect: Dialect, method: str, pace: Pace | None = None
) -> ASGIApp:
    """The stream for a reader with `cursor`; who comes back is held while there can be none. Raises Refused."""
    stream = EventStream(gateway, key, cursor, dialect, pace=pace)
    if cursor and dialect.is_self_delimited and method == "GET":
        return WaitForLog(gateway, stream, dialect)
    # New readers, and clients of other dialects, ask again by themselves after a 503.
    refuse_when_draining(gateway)
    return stream


async def get(request: Request) -> Response:
    """`GET /v1/turns/{turn}`: the turn as far as it is, from the log or, later, the database."""
    gateway, key = gateway_of(request), turn_of(request)
    return json_response(await look(gateway, key))


async def post_cancel(request: Request) -> Response:
    """`POST /v1/turns/{turn}/cancel`: the turn with its end, whichever that is."""
    gateway, key = gateway_of(request), turn_of(request)
    try:
        turn = await cancel(gateway.log, key)
    except TurnUnknown:
        return json_response(await look(gateway, key))
    return json_response(record_from_fold(key, turn))


async def look(gateway: Gateway, key: TurnKey) -> TurnRecord:
    try:
        return record_from_fold(key, await gateway.log.turn(key))
    except TurnUnknown:
        return await gateway.history.past(key)


def cursor_of(request: Request, ticket: Ticket | None = None) -> Seq:
    """Where a reader goes on: the header that an EventSource sends when it comes back, else `?after=`."""
    last = strip_proof(request.headers.get("last-event-id", ""), ticket)
    return parse_cursor(last or request.query_params.get("after") or "0")


def dialect_of(request: Request) -> Dialect:
    name = request.query_params.get("dialect", "tailrace")
    if name not in DIALECTS:
        raise Refused("dialect_unknown", f"there is no such dialect; there are {', '.join(DIALECTS)}")
    return DIALECTS[name]


ROUTES = [
    Route("/v1/turns", post, methods=["POST"]),
    Route("/v1/turns/{turn}", get, methods=["GET"]),
    Route("/v1/turns/{turn}/events", events, methods=["GET"]),
    Route("/v1/turns/{turn}/cancel", post_cancel, methods=["POST"]),
]
