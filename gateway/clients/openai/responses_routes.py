"""The routes of OpenAI's Responses API: ask, look, read on, cancel, forget. What a body means is not decided here.

A response is a turn: `resp_` and the turn's id. Its events are counted, so a stream that was cut is taken up at
`GET /v1/responses/{id}?stream=true&starting_after=N`, while the log keeps the turn; after that the database tells it.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.clients.native.routes import look
from tailrace.gateway.clients.openai import responses_request
from tailrace.gateway.clients.openai.responses_input import items_of
from tailrace.gateway.clients.openai.responses_object import PREFIX, response_of
from tailrace.gateway.clients.openai.responses_request import ResponseRequest
from tailrace.gateway.clients.openai.responses_stream import OPENAI_RESPONSES, snapshot
from tailrace.gateway.clients.openai.unsupported import ignored_header
from tailrace.gateway.clients.session_headers import with_headers
from tailrace.gateway.dependencies import gateway_of, no_turn, offer_to, refuse_when_draining, tenant_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.resources.paging import limit_of
from tailrace.gateway.streaming.event_stream import EventStream
from tailrace.gateway.streaming.wait_for_log import WaitForLog
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.delete import delete
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.respond import accepted, answer, asked, names_of
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, TurnId, is_token, parse_cursor
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import TurnKey

TRUE = {"true": True, "1": True, "false": False, "0": False, None: False}
ITEMS_MAX = 100


async def post(request: Request) -> ASGIApp:
    """`POST /v1/responses`: one turn, streamed, whole or in the background. A header names what was asked in vain."""
    body, raw = await asked(request, ResponseRequest)
    told = with_headers(body, request.headers)
    model = (await offer_to(request)).model(told.model)
    ask, ignored = responses_request.asked(told, model)
    headers = ignored_header(ignored)
    if told.background and not told.stream:
        return await begun(request, ask, raw, headers)
    return await answer(
        request,
        ask,
        raw,
        OPENAI_RESPONSES,
        is_streamed=bool(told.stream),
        is_first_word_awaited=not told.background,
        headers=headers,
    )


async def begun(request: Request, ask: NewTurn, raw: bytes, headers: dict[str, str]) -> Response:
    """The response as it is once it is accepted: most often `queued`."""
    key, asked_for = await accepted(request, ask, raw)
    named = {"tailrace-turn": key.turn, **names_of(key, asked_for), **headers}
    return json_response(response_of(await look(gateway_of(request), key)), headers=named)


async def get(request: Request) -> ASGIApp:
    """`GET /v1/responses/{response}`: as far as it is; with `?stream=true`, its events, after `starting_after`.

    Who comes back with that is held while the log is away; a 503 of a gateway that drains its SDK repeats by itself.
    """
    gateway, key = gateway_of(request), key_of(request)
    if not flag(request, "stream"):
        return json_response(response_of(await look(gateway, key)))
    refuse_when_draining(gateway)
    after = request.query_params.get("starting_after")
    if after is None:
        taken = snapshot if flag(request, "snapshot") else None
        return EventStream(gateway, key, BEFORE_FIRST, OPENAI_RESPONSES, snapshot=taken)
    if flag(request, "snapshot"):
        raise Refused("request_invalid", "send either `snapshot` or `starting_after`: a snapshot has all that was said")
    stream = EventStream(gateway, key, BEFORE_FIRST, OPENAI_RESPONSES, seen=parse_cursor(after) + 1)
    return WaitForLog(gateway, stream, OPENAI_RESPONSES) if request.method == "GET" else stream


async def post_cancel(request: Request) -> Response:
    """`POST /v1/responses/{response}/cancel`: the response with its end, whichever that is."""
    gateway, key = gateway_of(request), key_of(request)
    try:
        told = record_from_fold(key, await cancel(gateway.log, key))
    except TurnUnknown:
        told = await look(gateway, key)
    return json_response(response_of(told))


async def delete_response(request: Request) -> Response:
    """`DELETE /v1/responses/{response}`: the response, and those that went on from it."""
    key = key_of(request)
    await delete(gateway_of(request), key.tenant, "turn", key.turn)
    return json_response({"id": f"{PREFIX}{key.turn}", "object": "response", "deleted": True})


async def input_items(request: Request) -> Response:
    """`GET /v1/responses/{response}/input_items`: what this response added to its conversation, newest first."""
    told = await look(gateway_of(request), key_of(request))
    query = request.query_params
    limit, order, after = limit_of(request, 20, ITEMS_MAX), query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise Refused("request_invalid", "`order` is `asc` or `desc`")
    items = items_of(told.turn, told.input)
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise Refused("cursor_invalid", "`after` is none of these items")
    start = 0 if after is None else ids.index(after) + 1
    page = items[start : start + limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + len(page) < len(items),
        }
    )


def key_of(request: Request) -> TurnKey:
    """The turn that the path names, as the tenant's who asks; also by its own id. Raises Refused."""
    tenant = tenant_of(request)
    turn = request.path_params["response"].removeprefix(PREFIX)
    if not is_token(turn):
        raise no_turn()
    return TurnKey(tenant, TurnId(turn))


def flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name)
    if value not in TRUE:
        raise Refused("request_invalid", f"`{name}` is `true` or `false`")
    return TRUE[value]


ROUTES = [
    Route("/v1/responses", post, methods=["POST"]),
    Route("/v1/responses/{response}", get, methods=["GET"]),
    Route("/v1/responses/{response}", delete_response, methods=["DELETE"]),
    Route("/v1/responses/{response}/cancel", post_cancel, methods=["POST"]),
    Route("/v1/responses/{response}/input_items", input_items, methods=["GET"]),
]
