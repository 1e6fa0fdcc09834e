"""sse-starlette's `EventSourceResponse` over the SDK's stream. `uvicorn sse_starlette_app:app`."""

import json
from collections.abc import AsyncIterator

import anthropic
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

client = anthropic.AsyncAnthropic()


async def chat(request: Request) -> EventSourceResponse:
    message = (await request.json())["message"]

    async def answer() -> AsyncIterator[dict[str, str]]:
        async with client.messages.stream(
            model="claude-sonnet-5-5", max_tokens=4096, messages=[{"role": "user", "content": message}]
        ) as stream:
            async for text in stream.text_stream:
                yield {"data": json.dumps({"type": "delta", "text": text})}
        yield {"data": json.dumps({"type": "done"})}

    return EventSourceResponse(answer())


app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
