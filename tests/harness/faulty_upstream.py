"""A proxy between a generator and Claude that corrupts the first answers and passes on the others.

It reads an answer completely before it sends any of it, so only the content is tested, not the timing.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

import httpx2

from tests.harness.proxy import LINGER_0
from tests.harness.stop_server import stop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
HOP_BY_HOP = ("host", "content-length", "connection", "transfer-encoding", "accept-encoding")


@dataclass
class BrokenAnswer:
    """The bytes to send instead of an answer, and whether the connection is reset after them."""

    sent: bytes
    is_reset: bool = False


Break = Callable[[list[bytes]], BrokenAnswer]
"""Takes the answer's events, each as bytes with its empty line; returns what is sent instead."""
GARBAGE: Break = lambda _: BrokenAnswer(HEAD + b"data: no JSON\n\n")  # noqa: E731  # a constant of the type


@dataclass
class Between:
    url: str = ""
    calls: int = 0


@asynccontextmanager
async def faulty_claude(claude_url: str, spoil: Break, times: int = 1) -> AsyncIterator[Between]:
    """Corrupts the first `times` answers of the Claude at `claude_url`."""
    between = Between()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            line, _, rest = (await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")
            headers = dict(row.lower().split(": ", 1) for row in rest.splitlines() if row)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            method, path, _ = line.split(" ")
            # A generator checks its key with a GET when it starts.
            between.calls += method == "POST"
            is_spoiled = method == "POST" and between.calls <= times
            async with httpx2.AsyncClient(base_url=claude_url, trust_env=False) as client:
                kept = {name: value for name, value in headers.items() if name not in HOP_BY_HOP}
                answer = await client.request(method, path, content=body, headers=kept)
            frames = [event + b"\n\n" for event in answer.content.split(b"\n\n") if event]
            broken = spoil(frames) if is_spoiled else BrokenAnswer(HEAD + answer.content)
            if broken.is_reset:
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            writer.write(broken.sent)
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    between.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield between
    finally:
        await stop(server)
