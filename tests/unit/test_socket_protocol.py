"""WebSockets on the wire: which upgrades are accepted, refusals as HTTP responses, limits of handshakes and readers."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tailrace.gateway.http import http_protocol, server
from tailrace.gateway.http.socket_protocol import FRAME_BYTES_MAX, is_handshake
from tailrace.proto.runtime.flag import Flag
from tests.harness.raw_http import RawConnection

PATH = "/socket"
HANDSHAKE = (
    "host: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
LONG = "x" * 64 * 1024


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Accepts a WebSocket unless the query says no, and sends each message back; after `long`, large ones for ever."""
    if not is_handshake(scope):
        await PlainTextResponse("no handshake")(scope, receive, send)
        return
    if scope["query_string"] == b"no":
        await PlainTextResponse("not you", 401, {"www-authenticate": "Bearer"})(scope, receive, send)
        return
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "http.response.start", "status": 101, "headers": [(b"x-own", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        while message["text"] == "long":
            await send({"type": "websocket.send", "text": LONG})
        await send({"type": "websocket.send", "text": message["text"]})


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Serves `echo`; yields the port and what stops it."""
    listening, stop = socket.create_server(("127.0.0.1", 0)), asyncio.Event()
    port = listening.getsockname()[1]
    task = asyncio.create_task(server.serve(echo, echo, listening, stop, Flag(), socket_paths={PATH}))
    try:
        yield port, stop
    finally:
        stop.set()
        await task


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving() as (port, _):
        yield port


async def test_a_websocket_is_accepted_with_headers_and_echoes(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}{PATH}") as client:
        assert client.response is not None
        assert client.response.headers["x-own"] == "1"
        # Compression would take memory of each connection.
        assert "sec-websocket-extensions" not in client.response.headers
        for text in ("one", "two" * 20_000):
            await client.send(text)
            assert await client.recv() == text


async def test_a_refused_handshake_is_an_http_response(port: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{port}{PATH}?no")
    answer = refused.value.response
    assert (answer.status_code, answer.headers["www-authenticate"], answer.body) == (401, "Bearer", b"not you")


@pytest.mark.parametrize(
    "head",
    [
        f"GET /other HTTP/1.1\r\n{HANDSHAKE}",
        f"GET {PATH}/ HTTP/1.1\r\n{HANDSHAKE}",
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}".replace("websocket\r\n", "h2c\r\n", 1),
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}".replace("connection: Upgrade\r\n", ""),
        f"GET {PATH} HTTP/1.0\r\n{HANDSHAKE}connection: keep-alive\r\n",
        f"POST {PATH} HTTP/1.1\r\n{HANDSHAKE}content-length: 0\r\n",
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}content-length: 0\r\n",
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}transfer-encoding: chunked\r\n",
    ],
    ids=["path", "slash", "protocol", "no connection", "old", "method", "body", "chunked"],
)
async def test_any_other_upgrade_is_ignored(port: int, head: str) -> None:
    async with RawConnection.open(port) as raw:
        await raw.send(f"{head}\r\n", *(["0\r\n\r\n"] if "chunked" in head else []))
        answer = await raw.answer()
        assert (answer.status_code, answer.text) == (200, "no handshake")


async def test_an_upgrade_behind_another_request_is_ignored(port: int) -> None:
    """Its response would come before that of the request."""
    async with RawConnection.open(port) as raw:
        plain = "GET /other HTTP/1.1\r\nhost: x\r\n\r\n"
        await raw.send(f"{plain}GET {PATH} HTTP/1.1\r\n{HANDSHAKE}\r\n")
        assert [(await raw.answer()).text for _ in range(2)] == ["no handshake"] * 2


@pytest.mark.parametrize(("query", "value"), [("", "x" * 9000), ("x" * 9000, "")], ids=["header", "query"])
async def test_a_line_that_the_library_cannot_parse_is_refused(port: int, query: str, value: str) -> None:
    async with RawConnection.open(port) as raw:
        await raw.send(f"GET {PATH}?{query} HTTP/1.1\r\n{HANDSHAKE}x: {value}\r\n\r\n")
        answer = await raw.answer()
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
        assert await raw.is_closed()


async def test_a_handshake_without_its_key_is_400(port: int) -> None:
    async with RawConnection.open(port) as raw:
        head = HANDSHAKE.replace("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")
        await raw.send(f"GET {PATH} HTTP/1.1\r\n{head}\r\n")
        assert (await raw.reader.readline()).startswith(b"HTTP/1.1 400 ")


async def test_a_client_that_does_not_read_is_disconnected(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_TIMEOUT_S", 0.2)
    async with RawConnection.open(port) as raw:
        await raw.send(f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}\r\n")
        await raw.reader.readuntil(b"\r\n\r\n")
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.writer.write(b"\x81\x84\0\0\0\0long")
        await asyncio.sleep(1)
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await is_reset(raw)


async def is_reset(raw: RawConnection) -> bool:
    """Reads to the end; returns whether the connection has ended without a close frame within 3 s."""
    async with asyncio.timeout(3):
        try:
            while await raw.reader.read(1 << 20):
                pass
        except ConnectionError:
            return True
        return True


async def test_a_client_that_does_not_read_does_not_delay_a_stop() -> None:
    async with serving() as (port, stop), RawConnection.open(port) as raw:
        await raw.send(f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}\r\n")
        await raw.reader.readuntil(b"\r\n\r\n")
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.writer.write(b"\x81\x84\0\0\0\0long")
        await asyncio.sleep(0.3)
        stop.set()
        async with asyncio.timeout(server.GRACE_S - 1):
            raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert await is_reset(raw)


async def test_a_frame_above_the_limit_closes_the_connection(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}{PATH}", max_size=None) as client:
        # The gateway closes while the frame arrives.
        with suppress(ConnectionClosed):
            await client.send("x" * (FRAME_BYTES_MAX + 1))
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    received: Any = closed.value.rcvd
    assert received.code == 1009
