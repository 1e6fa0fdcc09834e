"""A connection on which a test writes bytes that no HTTP library would send, and a check of error responses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from tailrace.proto.errors import CODES


class RawConnection:
    """`async with RawConnection.open(port) as raw:` connects to a gateway on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int) -> AsyncIterator["RawConnection"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, *pieces: str) -> None:
        for piece in pieces:
            self.writer.write(piece.encode())
            await self.writer.drain()

    async def answer(self) -> httpx2.Response:
        """Returns the next response. Its body must have a Content-Length."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return httpx2.Response(int(head[0].split()[1]), headers=headers, content=body)

    async def is_closed(self) -> bool:
        """Waits until the gateway closes; fails earlier than an idle kept-alive connection is closed."""
        async with asyncio.timeout(3):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


def error_of(answer: httpx2.Response) -> tuple[int, str, str]:
    """Returns status, code and message; fails if the body is not the error body of the table of errors."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"type", "error"}
    error = body["error"]
    assert set(error) == {"message", "type", "code", "param"}
    # Anthropic's clients read `type`, OpenAI's clients read `param`.
    assert body["type"] == "error"
    assert error["param"] is None or isinstance(error["param"], str)
    assert (CODES[error["code"]].status, CODES[error["code"]].type) == (answer.status_code, error["type"])
    assert "Traceback" not in error["message"]
    assert 0 < len(error["message"]) < 600
    return answer.status_code, error["code"], error["message"]
