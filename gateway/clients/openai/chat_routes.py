"""The route of OpenAI's clients: `POST /v1/chat/completions`, streamed or whole. It converts nothing."""

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.clients.openai import chat_request
from tailrace.gateway.clients.openai.chat_request import ChatRequest
from tailrace.gateway.clients.openai.chat_stream import OPENAI_CHAT, OPENAI_CHAT_USAGE
from tailrace.gateway.clients.openai.unsupported import ignored_header
from tailrace.gateway.clients.session_headers import with_headers
from tailrace.gateway.dependencies import offer_to
from tailrace.gateway.turns import respond


async def post(request: Request) -> ASGIApp:
    """`POST /v1/chat/completions`: one turn. The header `tailrace-ignored` names what was asked in vain."""
    told, raw = await respond.asked(request, ChatRequest)
    chat = with_headers(told, request.headers)
    model = (await offer_to(request)).model(chat.model)
    ask, ignored = chat_request.asked(chat, model)
    is_counted = chat.stream_options is not None and bool(chat.stream_options.include_usage)
    return await respond.answer(
        request,
        ask,
        raw,
        OPENAI_CHAT_USAGE if is_counted else OPENAI_CHAT,
        is_streamed=bool(chat.stream),
        headers=ignored_header(ignored),
    )


ROUTES = [Route("/v1/chat/completions", post, methods=["POST"])]
