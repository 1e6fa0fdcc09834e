"""The tutorial's server: the answer is generated inside the request. The baseline of the latency benchmark.

`python benchmarks/relay.py FD` serves `POST /chat` on an inherited socket. It loses the answer with the connection.
"""

import json
import socket
import sys
from collections.abc import AsyncIterator

import anthropic
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

client = anthropic.AsyncAnthropic(max_retries=0)


async def chat(request: Request) -> StreamingResponse:
    body = await request.json()

    async def answer() -> AsyncIterator[str]:
        async with client.messages.stream(
            model="claude-sonnet-5-5", max_tokens=4096, messages=[{"role": "user", "content": body["message"]}]
        ) as stream:
            async for text in stream.text_stream:
                yield f"data: {json.dumps({'type': 'delta', 'text': text})}\n\n"
        yield f"data: {json.dumps({'type': 'done'})}\n\n"

    return StreamingResponse(answer(), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.Server(uvicorn.Config(Starlette(routes=[Route("/chat", chat, methods=["POST"])]), log_level="warning")).run(
        sockets=[socket.socket(fileno=int(sys.argv[1]))]
    )
