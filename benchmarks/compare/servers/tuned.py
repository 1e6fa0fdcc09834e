"""The tutorial's server, tuned: the SDK's raw response over aiohttp, each delta decoded once by msgspec, raw ASGI.

`uvicorn tuned:app`. It has no broker. A lost connection loses the answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anthropic
import msgspec

client = anthropic.AsyncAnthropic(http_client=anthropic.DefaultAioHttpClient(), max_retries=0)
HEADERS = [(b"content-type", b"text/event-stream")]


class Delta(msgspec.Struct):
    text: str = ""


class Event(msgspec.Struct):
    type: str
    delta: Delta = msgspec.field(default_factory=Delta)


class Out(msgspec.Struct, tag_field="type", tag="delta"):
    text: str


class Question(msgspec.Struct):
    message: str


decoder, encoder = msgspec.json.Decoder(Event), msgspec.json.Encoder()
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def delta_texts(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[str]]:
    """Yields the texts of the deltas of each chunk of the model's stream, if it has any."""
    rest = b""
    async for data in chunks:
        *lines, rest = (rest + data).split(b"\n")
        events = [decoder.decode(line[6:]) for line in lines if line.startswith(b"data: ")]
        if texts := [event.delta.text for event in events if event.type == "content_block_delta"]:
            yield texts


async def read_question(receive: Receive) -> str:
    """Returns the message in the body of a request."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message.get("more_body"):
            break
    return msgspec.json.decode(body, type=Question).message


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        with contextlib.suppress(asyncio.CancelledError):
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        return
    question = await read_question(receive)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    async with client.messages.with_streaming_response.create(
        model="claude-sonnet-5-5",
        max_tokens=4096,
        stream=True,
        messages=[{"role": "user", "content": question}],
    ) as response:
        async for texts in delta_texts(response.http_response.aiter_raw()):
            frames = b"".join([b"data: %b\n\n" % encoder.encode(Out(text)) for text in texts])
            await send({"type": "http.response.body", "body": frames, "more_body": True})
    await send({"type": "http.response.body", "body": b'data: {"type":"done"}\n\n', "more_body": False})
