"""`POST /v1/messages`: Anthropic's Messages API."""

from typing import Any

import msgspec
from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http import read_body
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.parameters import BETA, KEY, PROJECT, RESUMING, SESSION
from tailrace.gateway.http.route import SSE, Route, Section
from tailrace.gateway.turns.respond import Responder
from tailrace.proto.nats import Claims, TurnLog
from tailrace.protocols.anthropic import claude_code
from tailrace.protocols.anthropic.previous_message import map_previous_message
from tailrace.protocols.anthropic.request import CLIENT_NAMES, MessagesRequest, build_turn
from tailrace.protocols.anthropic.stream import ANTHROPIC
from tailrace.protocols.common.built_turn import BuiltTurn, answer
from tailrace.protocols.common.examples import ANSWER, MODEL, TURN
from tailrace.protocols.common.field_names import name_as_client


async def post_message(request: ApiRequest, responder: Responder, log: TurnLog, claims: Claims) -> ASGIApp:
    """`POST /v1/messages`: answers with a stream in the dialect `anthropic`, or with one Message.

    The stream can be resumed: repeat the request with the same `Idempotency-Key` and `Last-Event-ID`.
    """
    fields, raw = await request.read(dict[str, Any], has_model_output=True)
    body = read_body.convert(fields, MessagesRequest)
    new_turn = await convert_body(len(raw), build_turn, body, fields, request.headers)
    session, key = claude_code.session_of(request), None
    if session is not None:
        new_turn = msgspec.structs.replace(new_turn, session=session, on_disconnect=claude_code.ON_DISCONNECT)
        with name_as_client(CLIENT_NAMES):
            key, raw = await claude_code.idempotency_key(log, claims, request.access, new_turn, len(raw))
    new_turn, ignored = await map_previous_message(new_turn, log, request.access)
    built = BuiltTurn(new_turn, ignored, CLIENT_NAMES)
    return await answer(responder, request, built, raw, ANTHROPIC, is_streamed=body.stream, idempotency_key=key)


SECTION = Section("anthropic", "https://docs.anthropic.com/en/api/messages")
MESSAGE = {
    "id": f"msg_{TURN}",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [{"type": "text", "text": ANSWER}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 12, "output_tokens": 10},
}

ROUTES = [
    Route(
        "POST",
        "/v1/messages",
        post_message,
        "write",
        SECTION,
        body=MessagesRequest,
        result=MESSAGE,
        streams=SSE,
        events="anthropic",
        parameters=(KEY, SESSION, PROJECT, *RESUMING, BETA),
    ),
]
