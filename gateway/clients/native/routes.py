"""The routes of Tailrace's own API: create, stream, read and cancel a turn."""

from contextlib import nullcontext

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.auth.signed_tokens import Ticket
from tailrace.gateway.auth.tickets import strip_proof
from tailrace.gateway.clients.dialect import Dialect
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.gateway.dependencies import Gateway, gateway_of, refuse_when_draining, tenant_of, turn_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.streaming import sse
from tailrace.gateway.streaming.event_stream import EventStream
from tailrace.gateway.streaming.pacing import Pace, pace_of
from tailrace.gateway.streaming.wait_for_log import WaitForLog
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.read_turn import read_turn
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.respond import accepted, asked
from tailrace.gateway.turns.webhook_url import check_webhook
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, TurnId, parse_cursor
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import TurnKey


class Accepted(msgspec.Struct, frozen=True):
    """A new turn, stored in the log, and the paths for reading and cancelling it."""

    turn: TurnId
    session: SessionId
    links: dict[str, str]


async def post_turn(request: Request) -> Response | ASGIApp:
    """`POST /v1/turns`: starts a turn. Answers 202 with its id; with `Accept: text/event-stream`, the stream itself."""
    # Authenticate before validating, so that an unknown client learns nothing about dialects or prompts.
    tenant_of(request)
    dialect, pace = dialect_of(request), pace_of(request)
    new_turn, raw = await asked(request, NewTurn)
    check_webhook(new_turn.webhook, gateway_of(request).settings)
    if new_turn.prompt is not None:
        new_turn = await gateway_of(request).prompts.render(new_turn, tenant_of(request))
    is_stream = "text/event-stream" in request.headers.get("accept", "")
    async with gateway_of(request).streams.reserve(request) if is_stream else nullcontext():
        key, entry = await accepted(request, new_turn, raw)
    path = f"/v1/turns/{key.turn}"
    if is_stream:
        return EventStream(gateway_of(request), key, BEFORE_FIRST, dialect, {"location": path}, pace=pace)
    links = {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"}
    body = Accepted(turn=key.turn, session=entry.session, links=links)
    return json_response(body, status=202, headers={"location": path, "tailrace-turn": key.turn})


async def get_events(request: Request) -> ASGIApp:
    """`GET /v1/turns/{turn}/events`: streams the turn from the cursor on."""
    gateway, key = gateway_of(request), turn_of(request)
    dialect = dialect_of(request)
    ticket = await gateway.tickets.read_ticket(request, key)
    stream = stream_of(gateway, key, cursor_of(request, ticket), dialect, request.method, pace_of(request))
    if ticket is None:
        return stream
    return gateway.tickets.wrap_stream(ticket, stream, request, has_ids=dialect.media_type == sse.MEDIA_TYPE)


async def get_turn(request: Request) -> Response:
    """`GET /v1/turns/{turn}`: returns the turn as far as it is stored."""
    gateway, key = gateway_of(request), turn_of(request)
    return json_response(await read_turn(gateway, key))


async def post_cancel(request: Request) -> Response:
    """`POST /v1/turns/{turn}/cancel`: ends a running turn and returns it, also if it had ended."""
    gateway, key = gateway_of(request), turn_of(request)
    try:
        turn = await cancel(gateway.log, key)
    except TurnUnknown:
        return json_response(await read_turn(gateway, key))
    return json_response(record_from_fold(key, turn))


def stream_of(
    gateway: Gateway, key: TurnKey, cursor: Seq, dialect: Dialect, method: str, pace: Pace | None = None
) -> ASGIApp:
    """Returns the stream after `cursor`. Raises Refused when this gateway drains and the client can retry by itself."""
    stream = EventStream(gateway, key, cursor, dialect, pace=pace)
    # An EventSource that reconnects treats 503 as final: it waits inside the stream instead.
    if cursor and dialect.is_self_delimited and method == "GET":
        return WaitForLog(gateway, stream, dialect)
    refuse_when_draining(gateway)
    return stream


def cursor_of(request: Request, ticket: Ticket | None = None) -> Seq:
    """Returns the cursor from `Last-Event-ID`, which an EventSource sends when it reconnects, or from `?after=`."""
    last = strip_proof(request.headers.get("last-event-id", ""), ticket)
    return parse_cursor(last or request.query_params.get("after") or "0")


def dialect_of(request: Request) -> Dialect:
    """Returns the dialect of `?dialect=`. Raises Refused for an unknown name."""
    name = request.query_params.get("dialect", "tailrace")
    if name not in DIALECTS:
        raise Refused("dialect_unknown", f"unknown dialect; choose one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


ROUTES = [
    Route("/v1/turns", post_turn, methods=["POST"]),
    Route("/v1/turns/{turn}", get_turn, methods=["GET"]),
    Route("/v1/turns/{turn}/events", get_events, methods=["GET"]),
    Route("/v1/turns/{turn}/cancel", post_cancel, methods=["POST"]),
]
