"""`POST /v1/messages`: Anthropic's own protocol. It makes a question of the body, and calls no model."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.clients.anthropic import claude_code
from tailrace.gateway.clients.anthropic.request import MessagesRequest, ask_of
from tailrace.gateway.clients.anthropic.stream import ANTHROPIC
from tailrace.gateway.dependencies import gateway_of, tenant_of
from tailrace.gateway.turns import read_body
from tailrace.gateway.turns.respond import answer, asked


async def post(request: Request) -> ASGIApp:
    """The answer in the dialect `anthropic`, or as one Message. Raises Refused."""
    given, raw = await asked(request, MessagesRequest)
    ask = ask_of(given, read_body.decode(raw, dict[str, Any]), request.headers)
    session = claude_code.session_of(request)
    if session is None:
        return await answer(request, ask, raw, ANTHROPIC, is_streamed=given.stream)
    ask = msgspec.structs.replace(ask, session=session, on_disconnect=claude_code.ON_DISCONNECT)
    key = await claude_code.key_of(gateway_of(request), tenant_of(request), ask, raw)
    return await answer(request, ask, raw, ANTHROPIC, is_streamed=given.stream, idempotency_key=key)


ROUTES = [Route("/v1/messages", post, methods=["POST"])]
