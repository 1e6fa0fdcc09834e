"""A server whose answers are stored and sent by nchan, a module of nginx: `uvicorn nchan_app:app`.

nginx passes the questions to it. It publishes each delta through a WebSocket of the turn, and redirects the reader to
the channel by `X-Accel-Redirect`. nginx resumes a reader that reconnects with Last-Event-ID. If this process ends, its
calls of the model are lost and not repeated.
"""

import asyncio
import os
import secrets
from collections.abc import MutableMapping
from typing import Any

import aiohttp
import anthropic
import msgspec
from tuned import Out, Receive, Send, delta_texts, read_question

client = anthropic.AsyncAnthropic(http_client=anthropic.DefaultAioHttpClient(), max_retries=0)
encoder = msgspec.json.Encoder()
running: set[asyncio.Task[None]] = set()


async def publish(session: aiohttp.ClientSession, channel: str, question: str) -> None:
    """Calls the model, and publishes its deltas as messages of `channel`."""
    async with (
        session.ws_connect(f"{os.environ['NCHAN_URL']}/publish/{channel}") as socket,
        client.messages.with_streaming_response.create(
            model="claude-sonnet-5-5", max_tokens=4096, stream=True, messages=[{"role": "user", "content": question}]
        ) as response,
    ):
        async for texts in delta_texts(response.http_response.aiter_raw()):
            for text in texts:
                await socket.send_bytes(encoder.encode(Out(text)))
        await socket.send_str('{"type":"done"}')


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        while (message := await receive())["type"] != "lifespan.shutdown":
            scope["state"]["session"] = aiohttp.ClientSession()
            await send({"type": f"{message['type']}.complete"})
        await scope["state"]["session"].close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    question = await read_question(receive)
    channel = secrets.token_hex(16)
    task = asyncio.create_task(publish(scope["state"]["session"], channel, question))
    running.add(task)
    task.add_done_callback(running.discard)
    headers = [(b"x-accel-redirect", b"/subscribe/" + channel.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
