"""The routes of Tailrace's own API: create, stream, read and cancel a turn."""

from contextlib import nullcontext

import msgspec
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.auth.signed_tokens import Ticket
from tailrace.gateway.auth.tickets import strip_proof
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.gateway.dependencies import ApiRequest, gateway_of, refuse_when_draining, turn_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.event_stream import EventStream, Terms
from tailrace.gateway.streaming.pacing import Pace, pace_of
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.read_turn import read_turn
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.respond import submit_turn
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import Seq, SessionId, TurnId, parse_cursor
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import TurnKey


class Accepted(msgspec.Struct, frozen=True):
    """A new turn, stored in the log, and the paths for reading and cancelling it."""

    turn: TurnId
    session: SessionId
    links: dict[str, str]


async def post_turn(request: ApiRequest) -> Response | ASGIApp:
    """`POST /v1/turns`: starts a turn. Answers 202 with its id; with `Accept: text/event-stream`, the stream itself."""
    dialect, pace = dialect_of(request), pace_of(request)
    new_turn, raw = await request.read(NewTurn)
    is_stream = "text/event-stream" in request.headers.get("accept", "")
    async with request.stream_permit().reserved() if is_stream else nullcontext():
        key, entry = await submit_turn(request, new_turn, raw)
    path = f"/v1/turns/{key.turn}"
    if is_stream:
        return EventStream(request, key, dialect, headers={"location": path}, pace=pace)
    links = {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"}
    body = Accepted(turn=key.turn, session=entry.session, links=links)
    return json_response(body, status=202, headers={"location": path, "tailrace-turn": key.turn})


async def get_events(request: ApiRequest) -> ASGIApp:
    """`GET /v1/turns/{turn}/events`: streams the turn from the cursor on."""
    tickets, key, dialect = request.gateway.tickets, turn_of(request), dialect_of(request)
    ticket = await tickets.read_ticket(request, key)
    terms = None if ticket is None else Terms(*tickets.stream_terms(ticket, request))
    return stream_of(request, key, cursor_of(request, ticket), dialect, pace=pace_of(request), terms=terms)


async def get_turn(request: ApiRequest) -> Response:
    """`GET /v1/turns/{turn}`: returns the turn as far as it is stored."""
    gateway, key = gateway_of(request), turn_of(request)
    return json_response(await read_turn(gateway, key))


async def post_cancel(request: ApiRequest) -> Response:
    """`POST /v1/turns/{turn}/cancel`: ends a running turn and returns it, also if it had ended."""
    gateway, key = gateway_of(request), turn_of(request)
    try:
        turn = await cancel(gateway.log, key)
    except TurnUnknown:
        return json_response(await read_turn(gateway, key))
    return json_response(record_from_fold(key, turn))


def stream_of(
    request: ApiRequest,
    key: TurnKey,
    cursor: Seq,
    dialect: Dialect,
    *,
    pace: Pace | None = None,
    terms: Terms | None = None,
) -> EventStream:
    """Returns the stream after `cursor`. Raises Refused when this gateway drains and the client can retry by itself."""
    # An EventSource that reconnects treats 503 as final: it waits inside the stream instead.
    waits_for_log = bool(cursor) and dialect.is_self_delimited and request.method == "GET"
    if not waits_for_log:
        refuse_when_draining(request.gateway)
    return EventStream(request, key, dialect, cursor, waits_for_log=waits_for_log, pace=pace, terms=terms)


def cursor_of(request: ApiRequest, ticket: Ticket | None = None) -> Seq:
    """Returns the cursor from `Last-Event-ID`, which an EventSource sends when it reconnects, or from `?after=`."""
    last = strip_proof(request.headers.get("last-event-id", ""), ticket)
    return parse_cursor(last or request.query_params.get("after") or "0")


def dialect_of(request: ApiRequest) -> Dialect:
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
