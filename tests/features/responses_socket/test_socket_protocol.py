"""WebSockets on the wire: which upgrades are accepted, refusals as HTTP responses, limits of handshakes and readers."""

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tailrace.features.responses_socket import socket_protocol
from tailrace.features.responses_socket.socket_protocol import (
    FRAME_BYTES_MAX,
    PING_TIMEOUT_S,
    TOO_SLOW,
    ClientSocket,
    accept_sockets,
    is_handshake,
    limit_memory,
)
from tailrace.features.responses_socket.upgrade import UpgradableConnection
from tailrace.gateway.http import http_protocol, server
from tailrace.gateway.http.error_responses import NO_MEMORY
from tailrace.gateway.http.http_protocol import ClientConnection
from tailrace.proto.runtime.flag import Flag
from tests.harness.raw_http import RawConnection

PATH = "/v1/responses"
HANDSHAKE = (
    "host: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
KEY = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
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
async def serving(
    app: ASGIApp = echo, connection: type[ClientConnection] = UpgradableConnection
) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Serves `app` behind a proxy of this machine; yields the port and what stops it."""
    listening, stop = socket.create_server(("127.0.0.1", 0)), asyncio.Event()
    port = listening.getsockname()[1]
    task = asyncio.create_task(
        server.serve(app, app, listening, stop, Flag(), proxies=["127.0.0.1"], connection=connection)
    )
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
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_handshake_that_comes_to_nothing_writes_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """It needs no key: otherwise any client fills the log, and `tailrace status` with "Last problems"."""
    has_left, is_over = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"] == b"slow":
            await has_left.wait()
        await PlainTextResponse("not you", 401)(scope, receive, send)
        asyncio.get_running_loop().call_later(0.05, is_over.set)

    async with serving(app) as (port, _):
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{port}{PATH}")
        async with RawConnection.open(port) as raw:
            await raw.send(f"GET {PATH}?slow HTTP/1.1\r\n{HANDSHAKE}\r\n")
            is_over.clear()
            raw.writer.transport.abort()
        has_left.set()
        await is_over.wait()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


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
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}".replace(KEY, ""),
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}{KEY}",
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}".replace("dGhl", "dGh!"),
        f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}".replace("version: 13", "version: 8"),
    ],
    ids=[
        "path",
        "slash",
        "protocol",
        "no connection",
        "old",
        "method",
        "body",
        "chunked",
        "no key",
        "two keys",
        "wrong key",
        "version",
    ],
)
async def test_any_other_upgrade_is_ignored(port: int, head: str) -> None:
    async with RawConnection.open(port) as raw:
        await raw.send(f"{head}\r\n", *(["0\r\n\r\n"] if "chunked" in head else []))
        answer = await raw.answer()
        assert (answer.status_code, answer.text) == (200, "no handshake")


async def test_without_the_feature_a_handshake_is_a_get_request() -> None:
    """As in uvicorn with `ws="none"`: a server may ignore an upgrade (RFC 9110, 7.8), and serves the next request."""
    async with serving(connection=ClientConnection) as (port, _):
        async with RawConnection.open(port) as raw:
            for upgrade in (HANDSHAKE, "host: localhost\r\n"):
                await raw.send(f"GET {PATH} HTTP/1.1\r\n{upgrade}\r\n")
                answer = await raw.answer()
                assert (answer.status_code, answer.text) == (200, "no handshake")
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}{PATH}")
        assert (refused.value.response.status_code, refused.value.response.body) == (200, b"no handshake")


@pytest.mark.parametrize("forwarded", ["https", "wss"])
async def test_a_handshake_over_tls_of_a_proxy_has_the_scheme_https(forwarded: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(scope["scheme"], 401)(scope, receive, send)

    async with serving(app) as (port, _):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}{PATH}", additional_headers={"x-forwarded-proto": forwarded})
        assert refused.value.response.body == b"https"


async def test_an_upgrade_behind_another_request_is_ignored(port: int) -> None:
    """Its response would come before that of the request."""
    async with RawConnection.open(port) as raw:
        plain = "GET /other HTTP/1.1\r\nhost: x\r\n\r\n"
        await raw.send(f"{plain}GET {PATH} HTTP/1.1\r\n{HANDSHAKE}\r\n")
        assert [(await raw.answer()).text for _ in range(2)] == ["no handshake"] * 2


async def test_an_upgrade_behind_a_response_that_is_not_read_is_ignored() -> None:
    """The time limit of that response would end the WebSocket."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/large":
            await PlainTextResponse("x" * 16 * 1024 * 1024)(scope, receive, send)
        else:
            await echo(scope, receive, send)

    async with serving(app) as (port, _), RawConnection.open(port) as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send("GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.3)
        await raw.send(f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}\r\n")
        await asyncio.sleep(0.3)
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await raw.answer()).content) == 16 * 1024 * 1024
        assert (await raw.answer()).text == "no handshake"


async def test_text_that_is_not_utf_8_closes_the_connection_without_an_error_in_the_log(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(f"ws://127.0.0.1:{port}{PATH}") as client:
        await client.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(("query", "value"), [("", "x" * 9000), ("x" * 9000, "")], ids=["header", "query"])
async def test_a_line_that_the_library_cannot_parse_is_refused(port: int, query: str, value: str) -> None:
    async with RawConnection.open(port) as raw:
        await raw.send(f"GET {PATH}?{query} HTTP/1.1\r\n{HANDSHAKE}x: {value}\r\n\r\n")
        answer = await raw.answer()
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
        assert await raw.is_closed()


async def test_a_handshake_with_too_many_bytes_of_headers_does_not_reach_the_application() -> None:
    called: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope)
        await echo(scope, receive, send)

    head = f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}"
    # The headers end in the piece that has the first byte too many. The first piece is not counted.
    most = http_protocol.HEADERS_BYTES_MAX + http_protocol.PIECE_BYTES
    for number in range(9):
        missing = most + 1 - len(head) - len("\r\n")
        head += f"x-{number}: {'x' * min(7900, missing - len('x-0: ') - 2)}\r\n"
    assert len(head) + 2 == most + 1
    async with serving(app) as (port, _), RawConnection.open(port) as raw:
        await raw.send(f"{head}\r\n")
        answer = await raw.answer()
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
        assert await raw.is_closed()
    assert called == []


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.has_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.has_closed

    def close(self) -> None:
        self.has_closed = True

    def abort(self) -> None:
        self.has_closed = True

    def pause_reading(self) -> None:
        """Reads on."""

    def resume_reading(self) -> None:
        """Reads on."""


class Accepted:
    """An application that has accepted a WebSocket, and its connection without a network."""

    def __init__(self) -> None:
        config = uvicorn.Config(
            self._serve, interface="asgi3", lifespan="off", log_config=None, **UpgradableConnection.SETTINGS
        )
        config.load()
        self.wire = Wire()
        self.connection = ClientSocket(config, ServerState(), {})
        self.connection.connection_made(self.wire)

    async def _serve(self, _scope: Scope, receive: Receive, send: Send) -> None:
        self.receive, self.send = receive, send
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    async def open(self) -> "Accepted":
        self.connection.data_received(f"GET {PATH} HTTP/1.1\r\n{HANDSHAKE}\r\n".encode())
        async with asyncio.timeout(5):
            while b"101" not in self.wire.written:  # noqa: ASYNC110  # a few steps of the loop
                await asyncio.sleep(0)
        return self


def frame(opcode: int, data: bytes, *, is_last: bool = True) -> bytes:
    """Returns a client's frame, masked with zeros."""
    assert len(data) < 126
    return bytes([opcode | 0x80 * is_last, 0x80 | len(data)]) + b"\0\0\0\0" + data


async def test_an_application_that_sends_after_a_wrong_frame_has_lost_its_client() -> None:
    made = await Accepted().open()
    made.connection.data_received(frame(3, b""))
    with pytest.raises(ClientDisconnected):
        await made.send({"type": "websocket.send", "text": "x"})


async def test_pings_of_a_client_that_does_not_read_take_no_memory() -> None:
    made = await Accepted().open()
    made.connection.data_received(frame(9, b"p"))
    assert made.wire.written.endswith(b"\x8a\x01p")
    made.connection.pause_writing()
    before = made.wire.written
    made.connection.data_received(frame(9, b"x" * 100) * 100)
    assert made.wire.written == before
    made.connection.resume_writing()
    made.connection.data_received(frame(9, b"q"))
    assert made.wire.written == before + b"\x8a\x01q"


async def test_fragments_of_a_message_take_as_much_memory_as_their_bytes() -> None:
    made = await Accepted().open()
    tracemalloc.start()
    try:
        made.connection.data_received(frame(1, b"a", is_last=False))
        for data in (b"", b"b"):
            for _ in range(200):
                made.connection.data_received(frame(0, data, is_last=False) * 100)
        # The list of uvicorn takes 320 kB and more.
        assert tracemalloc.get_traced_memory()[0] < 150_000
    finally:
        tracemalloc.stop()
    made.connection.data_received(frame(0, b"c"))
    assert await made.receive() == {"type": "websocket.receive", "text": "a" + "b" * 20_000 + "c"}


async def test_all_bytes_that_the_application_has_not_answered_are_held() -> None:
    made, held = await Accepted().open(), list[int]()

    def hold(size: int) -> bool:
        held.append(size)
        return True

    limit_memory(made.receive, hold)
    made.connection.data_received(frame(1, b"x" * 10, is_last=False))
    made.connection.data_received(frame(0, b"x" * 5) + frame(1, b"x" * 100)[:56])
    assert held == [10, 65]
    await made.receive()
    # The message is being answered.
    assert held.pop() == 65
    waiting = asyncio.ensure_future(made.receive())
    await asyncio.sleep(0)
    assert held.pop() == 50
    made.connection.data_received(frame(1, b"x" * 100)[56:])
    assert (held.pop(), len((await waiting)["text"])) == (100, 100)


async def test_a_message_without_room_closes_the_connection() -> None:
    made = await Accepted().open()
    limit_memory(made.receive, lambda size: size < 10)
    made.connection.data_received(frame(1, b"x" * 9)[:-1])
    assert not made.wire.has_closed
    made.connection.data_received(frame(1, b"x" * 9)[-1:] + frame(1, b"xx")[:-1])
    assert made.wire.has_closed
    # A close frame with its code.
    assert made.wire.written[-60:].count(
        b"\x88" + bytes([2 + len(NO_MEMORY)]) + (1013).to_bytes(2) + NO_MEMORY.encode()
    )


@pytest.mark.parametrize("is_last", [True, False], ids=["half of a frame", "a fragment"])
async def test_a_message_that_takes_too_long_to_arrive_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch, is_last: bool
) -> None:
    """Its memory is held meanwhile."""
    made = await Accepted().open()
    # Complete messages, and the whole frames of a ping, set no time limit.
    made.connection.data_received(frame(1, b"x") + frame(9, b""))
    monkeypatch.setattr(socket_protocol, "MESSAGE_TIMEOUT_S", 0.01)
    begun = frame(1, b"x" * 9, is_last=is_last)
    made.connection.data_received(begun[:-1] if is_last else begun)
    async with asyncio.timeout(5):
        while not made.wire.has_closed:  # noqa: ASYNC110  # a few steps of the loop
            await asyncio.sleep(0.01)
    assert (1008).to_bytes(2) + TOO_SLOW.encode() in made.wire.written
    assert (await made.receive())["text"] == "x"
    assert (await made.receive())["code"] == 1008


async def test_a_message_that_has_arrived_ends_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made, timers = await Accepted().open(), list[asyncio.TimerHandle]()
    call_later = made.connection.loop.call_later

    def note_timer(*given: Any) -> asyncio.TimerHandle:
        timers.append(call_later(*given))
        return timers[-1]

    monkeypatch.setattr(made.connection.loop, "call_later", note_timer)
    for sent in (frame(1, b"xyz"), frame(9, b"ping"), frame(1, b"xyz")):
        made.connection.data_received(sent[:-1])
        made.connection.data_received(sent[-1:])
    # The end of one message, and the beginning of the next one.
    made.connection.data_received(frame(1, b"xyz")[:-1])
    made.connection.data_received(frame(1, b"xyz")[-1:] + frame(1, b"xyz")[:-1])
    assert [timer.cancelled() for timer in timers] == [True] * 4 + [False]


async def test_a_client_that_sends_a_long_frame_is_alive_without_a_pong() -> None:
    made = await Accepted().open()
    made.connection.send_keepalive_ping()
    begun = bytes([0x81, 0xFE, 0xFF, 0xFF]) + b"\0\0\0\0"
    made.connection.data_received(begun)
    made.connection.keepalive_timeout()
    assert not made.wire.has_closed
    timer = made.connection.pong_timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() == pytest.approx(PING_TIMEOUT_S, abs=1)
    made.connection.keepalive_timeout()
    assert made.wire.has_closed


@pytest.mark.parametrize("status", [101, 401])
async def test_a_client_that_leaves_during_the_handshake_is_no_error(status: int) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        if status != 101:
            await send({"type": "http.response.body", "body": b"no"})
            return
        assert (await receive())["type"] == "websocket.disconnect"
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "x"})

    async def receive() -> Message:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(_: Message) -> None:
        raise ClientDisconnected

    await accept_sockets(app)({"type": "websocket", "scheme": "ws", "headers": []}, receive, send)


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
