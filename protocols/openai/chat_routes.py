"""`POST /v1/chat/completions`: OpenAI's Chat Completions API."""

from typing import Any

from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.parameters import AZURE, KEY, PROJECT, SESSION
from tailrace.gateway.http.route import SSE, Route, Section
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.turns.respond import Responder
from tailrace.protocols.common.built_turn import answer
from tailrace.protocols.common.examples import ANSWER, MODEL
from tailrace.protocols.common.session_headers import apply_session_headers
from tailrace.protocols.openai.chat_request import ChatCompletionRequest, build_turn, convert
from tailrace.protocols.openai.chat_stream import OPENAI_CHAT, OPENAI_CHAT_USAGE
from tailrace.protocols.openai.session_model import read_session_model


async def post_chat_completion(
    request: ApiRequest, responder: Responder, catalogue: Catalogue, history: HistoryClient
) -> ASGIApp:
    """`POST /v1/chat/completions`: answers with a stream of chunks or with one completion.

    The response header `tailrace-ignored` names the parameters that were ignored.
    """
    fields, raw = await request.read(dict[str, Any])
    chat = apply_session_headers(convert(fields), request.headers)
    name = chat.model or await read_session_model(history, request.access, chat.session_id, None)
    offer = await catalogue.offer(request.access.tenant)
    built = await convert_body(len(raw), build_turn, chat, offer.model(name), fields, offer.models)
    include_usage = (chat.stream_options and chat.stream_options.include_usage) or (chat.usage and chat.usage.include)
    dialect = OPENAI_CHAT_USAGE if include_usage else OPENAI_CHAT
    return await answer(responder, request, built, raw, dialect, is_streamed=bool(chat.stream))


SECTION = Section("openai", "https://platform.openai.com/docs/api-reference/chat")
COMPLETION = {
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}],
}

ROUTES = [
    Route(
        "POST",
        "/v1/chat/completions",
        post_chat_completion,
        "write",
        SECTION,
        body=ChatCompletionRequest,
        result=COMPLETION,
        streams=SSE,
        events="openai-chat-usage",
        parameters=(KEY, SESSION, PROJECT, *AZURE),
    ),
]
