"""The routes of OpenAI's Responses API: create, read, stream, cancel and delete a response.

A response is a turn; its id is `resp_` and the turn's id. Its events are numbered, so a stream that was cut can be
resumed at `GET /v1/responses/{id}?stream=true&starting_after=N`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.deferred_response import StreamedResponse
from tailrace.gateway.http.json_response import NO_STORE, json_response, large_json_response
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.parameters import AFTER_ITEM, KEY, ORDER, PROJECT, SENT_BY_SDKS, SESSION
from tailrace.gateway.http.route import SSE, Route, Section, query
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.resources.paging import is_newest_first, limit_of, list_page
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.reader import Reader, StreamContext, refuse_when_draining
from tailrace.gateway.streaming.response import EventStream, HeldStream, Start
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.draft import draft_turn
from tailrace.gateway.turns.idempotency_key import AUTO, STOPPED, idempotency_key_of
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.respond import Responder, names_of
from tailrace.proto import odd_json
from tailrace.proto.errors import CursorUnknown, Refused, TurnUnknown
from tailrace.proto.ids import parse_cursor
from tailrace.proto.nats import BlobStore
from tailrace.proto.ownership import ScopedKey
from tailrace.protocols.common.built_turn import BuiltTurn, answer
from tailrace.protocols.common.event_count import count_events, has_unsure_count
from tailrace.protocols.common.examples import MODEL, TURN
from tailrace.protocols.common.field_names import name_as_client
from tailrace.protocols.common.session_headers import apply_session_headers
from tailrace.protocols.common.stored_messages import read_texts, resolve
from tailrace.protocols.common.unsupported import ignored_header
from tailrace.protocols.openai.code_container import find_container
from tailrace.protocols.openai.item_references import INSERTED_BYTES_MAX, insert_items
from tailrace.protocols.openai.repeated_responses import Received, find_received, find_rest
from tailrace.protocols.openai.responses_input import items_of
from tailrace.protocols.openai.responses_object import PREFIX
from tailrace.protocols.openai.responses_request import ResponseRequest, build_turn, parent_of, session_of
from tailrace.protocols.openai.responses_stream import OPENAI_RESPONSES, render_snapshot, response_of
from tailrace.protocols.openai.session_model import read_session_model

TRUE = {"true": True, "1": True, "false": False, "0": False, None: False}
ITEMS_MAX = 100
TOO_LARGE = "the input is larger than {most} bytes: read /v1/turns/{turn}, which has references to its blobs"


async def post_response(
    request: ApiRequest,
    responder: Responder,
    catalogue: Catalogue,
    turns: TurnReader,
    history: HistoryClient,
    settings: Settings,
    streams: StreamContext,
) -> ASGIApp:
    """`POST /v1/responses`: answers with a stream, with the whole response, or at once with `background`.

    The response header `tailrace-ignored` names the parameters that were ignored.
    """
    body, raw = await request.read(ResponseRequest)
    body = apply_session_headers(body, request.headers)
    bytes_max = min(settings.body_bytes_max, INSERTED_BYTES_MAX)
    items, added_bytes = await insert_items(body.input, request.access, turns, bytes_max)
    body = msgspec.structs.replace(body, input=items)
    session, parent = session_of(body), parent_of(body)
    name = body.model or await read_session_model(history, request.access, session, parent)
    offer = await catalogue.offer(request.access.tenant)
    model = offer.model(name)
    container = await find_container(body, request.access, turns, history)
    if body.stream and idempotency_key_of(request) == AUTO and (received := find_received(body.input)) is not None:
        asked = msgspec.structs.replace(body, input=received.question)
        build = partial(build_turn, asked, model, offer.models, container)
        may_continue = model.supports.prefill is not False
        rest = await stream_rest(
            request, responder, streams, raw, received, build, added_bytes=added_bytes, may_continue=may_continue
        )
        if rest is not None:
            return rest
    built = await convert_body(len(raw) + added_bytes, build_turn, body, model, offer.models, container)
    if body.background and not body.stream:
        headers = ignored_header(built.ignored)
        with name_as_client(built.names):
            draft = draft_turn(request, built.turn, raw, added_bytes=added_bytes)
            return await responder.accept(draft, lambda key: StoredResponse(turns, key, headers))
    return await answer(
        responder,
        request,
        built,
        raw,
        OPENAI_RESPONSES,
        is_streamed=bool(body.stream),
        waits_for_answer=not body.background,
        added_bytes=added_bytes,
    )


async def stream_rest(
    request: ApiRequest,
    responder: Responder,
    streams: StreamContext,
    raw: bytes,
    received: Received,
    build: Callable[[], BuiltTurn],
    *,
    added_bytes: int,
    may_continue: bool,
) -> ASGIApp | None:
    """Returns the stream of a running or ended response without the items that the client has.

    None if the response does not begin with them, or answers another question than `build` returns. `may_continue`:
    whether the model can continue a message of the assistant. Raises Refused if the response was stopped,
    LogUnavailable.
    """
    # As for each other request that may get an earlier response: its client repeats it at another gateway.
    refuse_when_draining(streams.draining)
    key, size = ScopedKey(request.access, received.turn), len(raw) + added_bytes
    try:
        built = await convert_body(size, build)
        draft = draft_turn(request, built.turn, raw, added_bytes=added_bytes)
        stored = await responder.find_equal(draft, received.turn)
        rest = None
        if stored is not None:
            rest = await find_rest(streams.fan_out, key, received.items, size, may_continue=may_continue)
    except Refused as refused:
        if refused.code in STOPPED:
            raise
        # The request as it is has a mistake, which is reported with the names of its fields.
        return None
    if stored is None or rest is None:
        return None
    metrics.REPEATED.inc()
    headers = names_of(stored) | ignored_header(built.ignored)
    return EventStream(Reader(streams, request), key, OPENAI_RESPONSES, headers=headers, snapshot=rest)


class StoredResponse(StreamedResponse):
    """The response object of a turn as it is after it was stored, usually `queued`."""

    def __init__(self, turns: TurnReader, key: ScopedKey, headers: dict[str, str]) -> None:
        super().__init__(NO_STORE | headers)
        self._turns = turns
        self._key = key

    async def respond(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        record = await self._turns.read(self._key)
        await self.send_json(send, odd_json.encode(response_of(record)))


async def get_response(request: ApiRequest, streams: StreamContext, turns: TurnReader) -> ASGIApp:
    """`GET /v1/responses/{response_id}`: returns the response as far as it is stored; with `?stream=true`, its events.

    `starting_after` resumes after an event, and waits while the log is unavailable.
    """
    key = request.turn("response_id", PREFIX)
    if not flag(request, "stream"):
        return json_response(response_of(await turns.read(key)))
    # The SDK repeats a request that got 503.
    refuse_when_draining(streams.draining)
    after = request.query_params.get("starting_after")
    if after is None:
        renderer = render_snapshot if flag(request, "snapshot") else None
        return EventStream(Reader(streams, request), key, OPENAI_RESPONSES, snapshot=renderer)
    if flag(request, "snapshot"):
        raise Refused("request_invalid", "`snapshot` begins at the start: send it without `starting_after`")
    try:
        seen = parse_cursor(after) + 1
    except CursorUnknown as error:
        raise Refused("cursor_invalid", "`starting_after` is the `sequence_number` of an event, 0 or higher") from error
    start = partial(find_start, streams, key, seen)
    stream = HeldStream if request.method == "GET" else EventStream
    return stream(Reader(streams, request), start, OPENAI_RESPONSES)


async def find_start(streams: StreamContext, key: ScopedKey, seen: int) -> Start:
    """Returns the start of a stream after `seen` events. Raises Refused if there were never as many, LogUnavailable."""
    # A turn that has left the log is read from the database, where deltas are joined.
    with suppress(TurnUnknown):
        count, _ = await count_events(streams, key, OPENAI_RESPONSES, seen)
        if seen > count:
            raise Refused("cursor_invalid", f"`starting_after` is beyond the last event so far, {count - 1}")
        return Start(key, seen, is_replaced=await has_unsure_count(streams, key, OPENAI_RESPONSES, seen))
    return Start(key, seen)


async def post_cancel(request: ApiRequest, turns: TurnReader) -> Response:
    """`POST /v1/responses/{response_id}/cancel`: ends the response unless it has ended, and returns it.

    The text so far is kept.
    """
    key = request.turn("response_id", PREFIX)
    return json_response(response_of(await turns.cancel(key, request.principal.key)))


async def delete_response(request: ApiRequest, deleter: Deleter) -> Response:
    """`DELETE /v1/responses/{response_id}`: deletes the response and those that continue it.

    The text is erased from the log and the database. Sums of usage keep the tokens and the cost.
    """
    key = request.turn("response_id", PREFIX)
    await deleter.delete(key.scope, "turn", key.turn)
    return json_response({"id": f"{PREFIX}{key.turn}", "object": "response", "deleted": True})


async def get_input_items(
    request: ApiRequest, turns: TurnReader, blob_store: BlobStore, settings: Settings
) -> Response:
    """`GET /v1/responses/{response_id}/input_items`: lists the input that this response added to its conversation.

    In the format of OpenAI's API, newest first, in pages.
    """
    turn = await turns.read(request.turn("response_id", PREFIX))
    limit, after = limit_of(request, 20, ITEMS_MAX), request.query_params.get("after")
    is_reversed = is_newest_first(request, "desc")
    texts = await read_texts(blob_store, request.access.tenant, turn.input, settings.body_bytes_max)
    if texts is None:
        raise Refused("body_too_large", TOO_LARGE.format(most=settings.body_bytes_max, turn=turn.turn))
    items = await asyncio.to_thread(lambda: items_of(turn.turn, resolve(turn.input, texts)))
    if is_reversed:
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise Refused("cursor_invalid", "`after` is not the id of an item in this list")
    start = 0 if after is None else ids.index(after) + 1
    page = items[start : start + limit]
    more = start + len(page) < len(items)
    return await large_json_response({"object": "list", **list_page(page, has_more=more)})


def flag(request: ApiRequest, name: str) -> bool:
    """Returns whether a query parameter is true; False without it. Raises Refused for another value."""
    value = request.query_params.get(name)
    if value not in TRUE:
        raise Refused("request_invalid", f"`{name}` must be `true` or `false`")
    return TRUE[value]


SECTION = Section("openai", "https://platform.openai.com/docs/api-reference/responses")
RESPONSE = {"id": f"resp_{TURN}", "object": "response", "status": "completed", "model": MODEL}
CANCELLED = {**RESPONSE, "status": "cancelled"}
DELETED = {"id": RESPONSE["id"], "object": "response", "deleted": True}
ITEM_LIST = {"object": "list", "data": [], "has_more": False}
SNAPSHOT = "1: the answer so far as one delta. If the stream is cut within it, request it again: numbers are skipped."
INCLUDE = (
    query("include", "It has no effect."),
    query("include[]", "The same, as OpenAI's SDKs send it.")._replace(is_spelling=True),
)
READING = (
    query("stream", "Whether to stream the response.", type="boolean"),
    query("starting_after", "The last received `sequence_number`.", type="integer", minimum=0),
    query("snapshot", SNAPSHOT, enum=["1"]),
    *INCLUDE,
    query("include_obfuscation", "It has no effect."),
    *SENT_BY_SDKS,
)
LISTING_ITEMS = (
    AFTER_ITEM,
    query("limit", "The maximum number of items.", type="integer", minimum=1, maximum=100),
    ORDER,
    *INCLUDE,
    *SENT_BY_SDKS,
)

ONE = "/v1/responses/{response_id}"
POSTING = (KEY, SESSION, PROJECT, *SENT_BY_SDKS)

get = partial(Route, "GET", need="read", section=SECTION)
post = partial(Route, "POST", need="write", section=SECTION)
ROUTES = [
    post(
        "/v1/responses",
        post_response,
        body=ResponseRequest,
        result=RESPONSE,
        streams=SSE,
        events="openai-responses",
        parameters=POSTING,
    ),
    get(ONE, get_response, result=RESPONSE, streams=SSE, events="openai-responses", parameters=READING),
    Route("DELETE", ONE, delete_response, "manage", SECTION, result=DELETED, parameters=SENT_BY_SDKS),
    post(f"{ONE}/cancel", post_cancel, result=CANCELLED, parameters=SENT_BY_SDKS),
    get(f"{ONE}/input_items", get_input_items, result=ITEM_LIST, parameters=LISTING_ITEMS),
]
