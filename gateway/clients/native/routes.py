"""The routes of Tailrace's own API: create, stream, read and cancel a turn."""

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.clients.native.event_types import TurnEvent
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.last_event_id import AFTER, last_event_id, split_part
from tailrace.gateway.http.media_type import accept_header
from tailrace.gateway.http.parameters import GONE, KEY, RESUMING
from tailrace.gateway.http.route import SSE, TURNS, Route, query
from tailrace.gateway.streaming.dialect import Dialect, Dialects, select_variant
from tailrace.gateway.streaming.reader import Reader, StreamContext, refuse_when_draining
from tailrace.gateway.streaming.response import EventStream, HeldStream
from tailrace.gateway.turns.draft import draft_turn
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto.errors import Refused
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, TurnId, parse_cursor
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord

# The field of the body that an error is about, by the error's code.
FIELD_OF_ERROR = {"session_not_found": "session", "parent_not_found": "parent"}


class AcceptedTurn(msgspec.Struct, frozen=True):
    """A new turn, stored in the log, and the paths for reading and cancelling it."""

    turn: TurnId
    """The id of the new turn."""
    session: SessionId
    """The session of the turn."""
    links: dict[str, str]
    """Paths by name: the turn, its events, and its cancellation."""


async def post_turn(
    request: ApiRequest, submitter: TurnSubmitter, streams: StreamContext, dialects: Dialects
) -> ASGIApp:
    """`POST /v1/turns`: starts a turn. Answers 202 with its id; with `Accept: text/event-stream`, the stream itself.

    The turn is stored before the response begins, and runs whether or not a client reads it. A repeated request
    with the same `Idempotency-Key` gets the same turn.
    """
    is_streamed = "text/event-stream" in accept_header(request.headers)
    # A name that is not known is refused, also where it changes nothing.
    dialect = dialect_of(request, dialects) if is_streamed or request.scope["query_string"] else None
    new_turn, raw = await request.read(NewTurn, has_model_output=True)
    try:
        if dialect is not None and is_streamed:
            draft, reader = draft_turn(request, new_turn, raw, is_followed=True), Reader(streams, request)
            async with reader.reserve():
                key, *_ = await submitter.submit(draft)
            headers, cursor = {"location": f"/v1/turns/{key.turn}"}, draft.cursor or BEFORE_FIRST
            response = EventStream(reader, key, dialect, cursor, headers=headers)
            response.add_headers({"tailrace-turn": key.turn})
            response.is_repeatable = draft.is_repeatable
            return response
        key, entry, _ = await submitter.submit(draft_turn(request, new_turn, raw))
    except Refused as refused:
        refused.param = refused.param or FIELD_OF_ERROR.get(refused.code)
        raise
    path = f"/v1/turns/{key.turn}"
    links = {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"}
    body = AcceptedTurn(turn=key.turn, session=entry.session, links=links)
    return json_response(body, status=202, headers={"location": path, "tailrace-turn": key.turn})


async def get_events(request: ApiRequest, streams: StreamContext, dialects: Dialects) -> ASGIApp:
    """`GET /v1/turns/{turn}/events`: streams the turn from the cursor on.

    Send the `id:` of the last received event as `Last-Event-ID` to continue without a gap. Any number of clients
    may read the same turn.
    """
    key, dialect = request.turn(), dialect_of(request, dialects)
    return stream_of(Reader(streams, request), request, key, cursor_of(request), dialect)


async def get_turn(request: ApiRequest, turns: TurnReader) -> Response:
    """`GET /v1/turns/{turn}`: returns the turn as far as it is stored.

    A turn that still runs has the outcome `running` and its text so far. A stream that starts after the turn's `cursor`
    has no gap.
    """
    return json_response(turns.with_cursor(await turns.read(request.turn())))


async def post_cancel(request: ApiRequest, turns: TurnReader) -> Response:
    """`POST /v1/turns/{turn}/cancel`: ends the turn unless it has ended, and returns it.

    The text so far is kept. A turn that no generator has begun makes no model call.
    """
    return json_response(turns.with_cursor(await turns.cancel(request.turn(), request.principal.key)))


def stream_of(reader: Reader, request: ApiRequest, key: ScopedKey, cursor: Seq, dialect: Dialect) -> EventStream:
    """Returns the stream after `cursor`. Raises Refused when this gateway drains and the client can retry by itself."""
    # A reconnecting EventSource treats 503 as final, so it waits inside the stream.
    if cursor and dialect.is_self_delimited and request.method == "GET":
        return HeldStream(reader, key, dialect, cursor)
    refuse_when_draining(reader.streams.draining)
    return EventStream(reader, key, dialect, cursor)


def cursor_of(request: ApiRequest, id_prefix: bytes = b"") -> Seq:
    """Returns the cursor from `Last-Event-ID`, which an EventSource sends when it reconnects, or from the query.

    `id_prefix` precedes the SSE ids of this stream, so it is removed from the id that came back.
    """
    return parse_cursor(split_part(last_event_id(request, AFTER).removeprefix(id_prefix.decode()))[0] or "0")


def dialect_of(request: ApiRequest, dialects: Dialects) -> Dialect:
    """Returns the dialect of `?dialect=`. Raises Refused for an unknown name."""
    name = request.query_params.get("dialect", "tailrace")
    if name not in dialects:
        raise Refused("dialect_unknown", f"`dialect` must be one of {', '.join(dialects)}")
    return select_variant(dialects[name], accept_header(request.headers))


# Without content: hey-api reads each response of an operation as an event stream if one of them is.
STREAMED = {200: "With `Accept: text/event-stream`: the events of `GET /v1/turns/{turn}/events`, each a `TurnEvent`."}


def routes(dialects: Dialects) -> list[Route]:
    """Returns the routes, which take the names of `dialects`."""
    dialect = query("dialect", "The stream's format; `tailrace` by default.", type="string", enum=list(dialects))
    posting, reading = (KEY, dialect, *RESUMING), (*RESUMING, dialect)
    return [
        Route(
            "POST",
            "/v1/turns",
            post_turn,
            "write",
            TURNS,
            NewTurn,
            result=AcceptedTurn,
            status=202,
            parameters=posting,
            statuses=STREAMED,
        ),
        Route("GET", "/v1/turns/{turn}", get_turn, "read", TURNS, result=TurnRecord),
        Route(
            "GET",
            "/v1/turns/{turn}/events",
            get_events,
            "read",
            TURNS,
            streams=SSE,
            events=TurnEvent,
            parameters=reading,
            statuses=GONE,
        ),
        Route("POST", "/v1/turns/{turn}/cancel", post_cancel, "write", TURNS, result=TurnRecord),
    ]
