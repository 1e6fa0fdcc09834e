"""The route of OpenAI's clients: `POST /v1/chat/completions`, streamed or whole. It converts nothing."""

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway import answer
from gateway.context import offer_to
from gateway.dialects.openai_chat import OPENAI_CHAT, OPENAI_CHAT_USAGE
from gateway.protocols import chat_request
from gateway.protocols.chat_request import ChatRequest
from gateway.protocols.foreign import ignored_header
from gateway.protocols.session_headers import with_headers


async def post(request: Request) -> ASGIApp:
    """`POST /v1/chat/completions`: one turn. The header `tailrace-ignored` names what was asked in vain."""
    told, raw = await answer.asked(request, ChatRequest)
    chat = with_headers(told, request.headers)
    model = (await offer_to(request)).model(chat.model)
    ask, ignored = chat_request.asked(chat, model)
    is_counted = chat.stream_options is not None and bool(chat.stream_options.include_usage)
    return await answer.answer(
        request,
        ask,
        raw,
        OPENAI_CHAT_USAGE if is_counted else OPENAI_CHAT,
        is_streamed=bool(chat.stream),
        headers=ignored_header(ignored),
    )


ROUTES = [Route("/v1/chat/completions", post, methods=["POST"])]
