"""HTTP/1.1 on the wire: body sizes and timeouts, chunks, trailers, upgrades, pipelining and invalid heads."""

import asyncio
import gc
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import pytest_asyncio
from starlette.types import Receive, Scope, Send

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.http import fd_limit, http_protocol, server
from tailrace.gateway.http.admission_queue import refuse_connection
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.flag import Flag
from tests.harness.raw_http import RawConnection, error_of
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, on_shared_loop

pytestmark = on_shared_loop

POST = f"POST /v1/turns HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n"
GET = "GET /healthz HTTP/1.1\r\nhost: x\r\n"
CHUNKED = "transfer-encoding: chunked\r\n"
TURN = json.dumps({"message": "#sim words=1 rate=0"})
# What the buffers of two sockets hold, and more than a gateway may keep in memory for one client.
BUFFERED_BYTES_MAX = 20_000_000


def post(body: str, headers: str = "", head: str = POST) -> str:
    return f"{head}{headers}content-length: {len(body)}\r\n\r\n{body}"


@asynccontextmanager
async def running_gateway(nats_server: NatsServer, **given: object) -> AsyncIterator[Gateway]:
    gateway = Gateway(nats_server.url, Tenant("wire"), given)
    await gateway.answers()
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def plain_gateway(nats_server: NatsServer) -> AsyncIterator[Gateway]:
    """A gateway with the default limits."""
    async with running_gateway(nats_server) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small_gateway(nats_server: NatsServer) -> AsyncIterator[Gateway]:
    """A gateway that accepts 10 kB within 0.2 seconds."""
    async with running_gateway(nats_server, body_bytes_max=10_000, body_timeout_s=0.2) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="session")
async def small(small_gateway: Gateway) -> AsyncIterator[RawConnection]:
    async with RawConnection.open(small_gateway.port) as raw:
        yield raw


@pytest_asyncio.fixture(loop_scope="session")
async def raw(plain_gateway: Gateway) -> AsyncIterator[RawConnection]:
    async with RawConnection.open(plain_gateway.port) as raw:
        yield raw


@pytest_asyncio.fixture(loop_scope="session")
async def four_connections(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway that keeps four connections open."""
    monkeypatch.setattr(fd_limit, "connections_max", lambda: 4)
    async with running_gateway(nats_server) as gateway:
        yield gateway


@pytest.mark.parametrize(
    "sent",
    [
        (POST, "content-length: 10001\r\n\r\n"),
        (POST, "expect: 100-continue\r\ncontent-length: 10001\r\n\r\n"),
        (POST, CHUNKED, "\r\n", f"1388\r\n{'a' * 5000}\r\n" * 3),
    ],
    ids=["by its length before it is sent", "with 100-continue", "in chunks"],
)
async def test_a_body_that_is_too_large_is_413(small: RawConnection, sent: tuple[str, ...]) -> None:
    await small.send(*sent)
    assert error_of(await small.answer())[:2] == (413, "body_too_large")


@pytest.mark.parametrize("padding", [0, 300_000], ids=["small", "large"])
async def test_a_length_may_begin_with_many_zeros(raw: RawConnection, padding: int) -> None:
    """HTTP allows any number of digits; int() accepts 4300."""
    body = TURN + " " * padding
    await raw.send(f"{POST}content-length: {'0' * 5000}{len(body)}\r\n\r\n", body)
    assert (await raw.answer()).status_code == 202


async def test_an_incomplete_body_is_408_after_the_timeout(small: RawConnection) -> None:
    await small.send(POST, "content-length: 100\r\n\r\n", '{"mess')
    answer = await small.answer()
    assert error_of(answer)[:2] == (408, "body_timeout")
    assert answer.headers["connection"] == "close"
    assert await small.is_closed()


async def test_a_connection_is_usable_after_a_refusal(small: RawConnection) -> None:
    """The unread body of the refused request is not parsed as the next request."""
    body = json.dumps({"message": f"{GET}\r\n"})
    await small.send(post(body, head=POST.replace("application/json", "text/plain")))
    assert error_of(await small.answer())[0] == 415
    await small.send(post(body))
    assert (await small.answer()).status_code == 202


async def test_a_refusal_in_place_of_100_continue_closes_the_last_connection(small: RawConnection) -> None:
    """RFC 9112, 9.6: the client sends neither the body nor another request."""
    await small.send(POST, "connection: close\r\nexpect: 100-continue\r\ncontent-length: 10001\r\n\r\n")
    assert error_of(await small.answer())[0] == 413
    assert await small.is_closed()


UPGRADE = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"


@pytest.mark.parametrize("is_split", [False, True], ids=["one piece", "two pieces"])
@pytest.mark.parametrize("framing", [f"content-length: {len(TURN)}\r\n", CHUNKED], ids=["length", "chunked"])
async def test_an_upgrade_is_ignored(small: RawConnection, framing: str, is_split: bool) -> None:
    """RFC 9110, 7.8. Java's HttpClient sends an upgrade with its first request, with the body."""
    sent = f"{len(TURN):x}\r\n{TURN}\r\n0\r\n\r\n" if framing == CHUNKED else TURN
    head = f"{POST}{UPGRADE}{framing}\r\n"
    for _ in range(2):
        await small.send(*([head, sent] if is_split else [head + sent]))
        assert (await small.answer()).status_code == 202


@pytest.mark.rule("S14")
async def test_pipelined_upgrades_are_answered_in_order(small: RawConnection) -> None:
    await small.send(f"{GET}{UPGRADE}\r\n" * 1500 + "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    statuses = [(await small.answer()).status_code for _ in range(1501)]
    assert (set(statuses[:1500]), statuses[1500]) == ({200}, 404)


@pytest.mark.rule("S14")
@pytest.mark.parametrize(("chars", "count"), [(5000, 10), (5, 100)], ids=["cut in bodies", "cut in headers"])
async def test_requests_behind_a_stream_are_answered_in_order_and_are_not_late(
    monkeypatch: pytest.MonkeyPatch, plain_gateway: Gateway, raw: RawConnection, chars: int, count: int
) -> None:
    body = json.dumps({"message": "a" * chars})
    now = asyncio.get_running_loop().time
    async with asyncio.timeout(10):
        with monkeypatch.context() as late:
            late.setattr(http_protocol, "HEADERS_TIMEOUT_S", 0.1)
            await raw.send(post(body, "accept: text/event-stream\r\n") + post(body) * count)
            began = now()
            head = (await raw.reader.readuntil(b"\r\n\r\n")).decode()
            turn = head.partition("tailrace-turn: ")[2].partition("\r\n")[0]
            await until(lambda: now() > began + 0.3)
        await plain_gateway.client.post(f"/v1/turns/{turn}/cancel")
        await raw.reader.readuntil(b"\r\n0\r\n\r\n")
    assert [(await raw.answer()).status_code for _ in range(count)] == [202] * count


@pytest.mark.rule("S14")
@pytest.mark.parametrize(
    ("head", "line"),
    [
        (GET, f"x: {'a' * 10_000}\r\n"),
        (f"{POST}{CHUNKED}\r\n0\r\n", f"x: {'a' * 10_000}\r\n"),
        (f"{POST}{CHUNKED}\r\n0\r\nx: ".replace(KEY, "invalid"), "a" * 10_000),
        (f"{POST}{CHUNKED}\r\n2;", "a" * 10_000),
        (f"{POST}{CHUNKED}\r\n2;".replace(KEY, "invalid"), "a" * 10_000),
    ],
    ids=["headers", "trailers", "one trailer without a key", "chunk extension", "chunk extension without a key"],
)
async def test_endless_headers_and_trailers_are_not_kept(raw: RawConnection, head: str, line: str) -> None:
    """httptools would keep them without a bound, also for an unauthenticated client."""
    await raw.send(head)
    sent = 0
    with suppress(ConnectionError):
        while sent < 2 * BUFFERED_BYTES_MAX:
            await raw.send(line)
            sent += len(line)
    assert sent < BUFFERED_BYTES_MAX


async def test_a_body_in_many_small_chunks_is_read(raw: RawConnection) -> None:
    """The chunk sizes have more bytes than headers may have, and do not count as headers."""
    body = json.dumps({"message": "a" * 30_000})
    chunks = ["".join(f"1\r\n{char}\r\n" for char in body[at : at + 100]) for at in range(0, len(body), 100)]
    await raw.send(POST, "Transfer-Encoding: Chunked \r\n\r\n", *chunks, "0\r\n\r\n")
    assert (await raw.answer()).status_code == 202


async def test_trailers_are_not_headers(raw: RawConnection) -> None:
    """RFC 9110, 6.5.1."""
    trailers = "host: evil.example\r\nidempotency-key: no key\r\nx-api-key: invalid\r\n"
    await raw.send(f"{POST}{CHUNKED}\r\n{len(TURN):x}\r\n{TURN}\r\n0\r\n{trailers}\r\n")
    assert (await raw.answer()).status_code == 202


async def test_an_invalid_pipelined_request_is_not_answered_before_the_valid_one(raw: RawConnection) -> None:
    """The client would take the refusal for that of its first request, which is stored."""
    await raw.send(post(TURN) + "GET /healthz HTTP/1.1\r\n\r\n")
    assert await raw.is_closed()


@pytest.mark.parametrize(
    ("length", "late", "timeout"),
    [(100, "a", "ANSWERED_TIMEOUT_S"), (0, "\r\n", "IDLE_TIMEOUT_S")],
    ids=["body", "empty line"],
)
async def test_a_refused_connection_is_closed_although_bytes_arrive(
    monkeypatch: pytest.MonkeyPatch, raw: RawConnection, length: int, late: str, timeout: str
) -> None:
    monkeypatch.setattr(http_protocol, timeout, 0.2)
    await raw.send(POST.replace(KEY, "invalid"), f"content-length: {length}\r\n\r\n")
    assert (await raw.answer()).status_code == 401
    await raw.send(late)
    assert await raw.is_closed()


async def test_an_idle_connection_stays_open_longer_than_a_refused_one(
    monkeypatch: pytest.MonkeyPatch, raw: RawConnection
) -> None:
    """A proxy sends a request on a connection that was idle for minutes. If it is closed then, the request fails."""
    monkeypatch.setattr(http_protocol, "ANSWERED_TIMEOUT_S", 0.2)
    for wait_s in (0, 0.5):
        await asyncio.sleep(wait_s)
        await raw.send(post(TURN))
        assert (await raw.answer()).status_code == 202


async def test_the_connection_that_is_idle_for_longest_is_closed_when_no_place_is_left(
    four_connections: Gateway,
) -> None:
    """Otherwise a client that leaves its connections idle would keep all others out."""
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(8):
            opened.append(await stack.enter_async_context(RawConnection.open(four_connections.port)))
            await opened[-1].send(post(TURN))
            assert (await opened[-1].answer()).status_code == 202
        for raw in opened[:4]:
            assert await raw.is_closed()
        for raw in opened[-2:]:
            await raw.send(post(TURN))
            assert (await raw.answer()).status_code == 202


async def test_a_connection_that_still_sends_a_refused_body_is_not_closed_for_another(
    four_connections: Gateway,
) -> None:
    """It would be reset, and the client might lose the answer."""
    async with AsyncExitStack() as stack:
        sending = await stack.enter_async_context(RawConnection.open(four_connections.port))
        await sending.send(POST.replace(KEY, "invalid"), f"content-length: {len(TURN)}\r\n\r\n")
        assert (await sending.answer()).status_code == 401
        for _ in range(4):
            other = await stack.enter_async_context(RawConnection.open(four_connections.port))
            await other.send(post(TURN))
            assert (await other.answer()).status_code == 202
        await sending.send(TURN, post(TURN))
        assert (await sending.answer()).status_code == 202


async def test_a_slow_download_does_not_keep_an_idle_connection_open_when_no_place_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closing the connection of the download, which began to wait first, would free no place until it is read."""
    monkeypatch.setattr(fd_limit, "connections_max", lambda: 3)

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        size = BUFFERED_BYTES_MAX if scope["path"] == "/large" else 0
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    listening, stop = socket.create_server(("127.0.0.1", 0)), asyncio.Event()
    port = listening.getsockname()[1]
    serving = asyncio.create_task(server.serve(app, refuse_connection, listening, stop, Flag()))
    async with AsyncExitStack() as stack:
        download = await stack.enter_async_context(RawConnection.open(port))
        await download.send("GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        await download.reader.readuntil(b"\r\n\r\n")
        others = []
        for _ in range(4):
            others.append(await stack.enter_async_context(RawConnection.open(port)))
            await others[-1].send(GET, "\r\n")
            assert (await others[-1].answer()).status_code == 200
        assert await others[0].is_closed()
        download.writer.transport.abort()
    stop.set()
    await serving


async def test_a_refused_connection_is_idle_when_its_body_has_arrived(
    monkeypatch: pytest.MonkeyPatch, raw: RawConnection
) -> None:
    monkeypatch.setattr(http_protocol, "ANSWERED_TIMEOUT_S", 0.2)
    await raw.send(POST.replace(KEY, "invalid"), f"content-length: {len(TURN)}\r\n\r\n")
    assert (await raw.answer()).status_code == 401
    await raw.send(TURN)
    await asyncio.sleep(0.5)
    await raw.send(post(TURN))
    assert (await raw.answer()).status_code == 202


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_the_last_request_of_a_connection_is_refused_without_a_reset(raw: RawConnection, version: str) -> None:
    """Many clients send `Connection: close`. If it was closed before the body has arrived, they would get no answer."""
    body = "a" * 5_000_000
    head = POST.replace(KEY, "invalid").replace("HTTP/1.1", f"HTTP/{version}")
    await raw.send(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n", body)
    assert (await raw.answer()).status_code == 401
    assert await raw.is_closed()


async def test_a_connection_that_was_reset_is_not_kept_in_memory(plain_gateway: Gateway) -> None:
    """As of a client that was killed. A timer of an hour, as long as a connection may be idle, would keep it."""

    def count_connections() -> int:
        return sum(isinstance(one, http_protocol.ClientConnection) for one in gc.get_objects())

    before = count_connections()
    for _ in range(20):
        async with RawConnection.open(plain_gateway.port) as raw:
            await raw.send(GET, "\r\n")
            assert (await raw.answer()).status_code == 200
            raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: count_connections() <= before)


async def test_a_large_body_in_one_piece_with_its_headers_is_read(raw: RawConnection) -> None:
    """It does not count as headers, for the next request neither."""
    for _ in range(2):
        await raw.send(post(json.dumps({"message": "a" * 200_000})))
        assert (await raw.answer()).status_code == 202


@pytest.mark.rule("S14")
@pytest.mark.parametrize(
    ("before", "sent"),
    [("", ""), ("", "GET /healthz HT"), ("", GET), (f"{GET}\r\n", "GET /healthz HT"), (f"{GET}\r\n", GET)],
    ids=["nothing", "half a line", "headers", "half a line of the second", "headers of the second"],
)
async def test_incomplete_headers_are_408_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch, plain_gateway: Gateway, before: str, sent: str
) -> None:
    """A connection on which nothing was sent is closed without a response."""
    monkeypatch.setattr(http_protocol, "HEADERS_TIMEOUT_S", 0.1)
    async with RawConnection.open(plain_gateway.port) as raw:
        if before:
            await raw.send(before)
            assert (await raw.answer()).status_code == 200
        await raw.send(sent)
        if sent:
            assert error_of(await raw.answer())[:2] == (408, "headers_timeout")
        assert await raw.is_closed()


HEADS = {
    "99 headers": (GET + "a: b\r\n" * 99, 200, ""),
    "100 headers": (GET + "a: b\r\n" * 100, 431, "headers_too_large"),
    "long header": (f"{GET}a: {'b' * 400_000}", 431, "headers_too_large"),
    "long URL": ("GET /healthz?" + "b" * 400_000, 431, "headers_too_large"),
    "folded header": (GET + "a: b\r\n c\r\n", 400, "http_invalid"),
    "NUL": (GET + "a\x00: b\r\n", 400, "http_invalid"),
    "no slash": ("GET healthz HTTP/1.1\r\nhost: x\r\n", 400, "http_invalid"),
    "unknown method": ("WHAT /healthz HTTP/1.1\r\nhost: x\r\n", 400, "http_invalid"),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "http_invalid"),
    "no host": ("GET /healthz HTTP/1.1\r\n", 400, "http_invalid"),
    "two hosts": (GET + "host: x\r\n", 400, "http_invalid"),
    "TRACE": ("TRACE / HTTP/1.1\r\nhost: x\r\n", 405, ""),
    "CONNECT": ("CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\n", 400, ""),
    "absolute URL": ("GET http://evil.example/v1/sessions HTTP/1.1\r\nhost: x\r\n", 401, ""),
    "fragment": ("GET /metrics#a HTTP/1.1\r\nhost: x\r\n", 400, "http_invalid"),
    "bare newlines": ("GET /healthz HTTP/1.1\nhost: x\n", 400, "http_invalid"),
    "HTTP/9.9": ("GET /healthz HTTP/9.9\r\nhost: x\r\n", 400, "http_invalid"),
    "HTTP/1.0": ("GET /healthz HTTP/1.0\r\n", 200, ""),
    "HTTP/1.0, two hosts": ("GET /healthz HTTP/1.0\r\nhost: x\r\nhost: x\r\n", 400, "http_invalid"),
    # A proxy may read it differently: request smuggling.
    "two lengths": (f"{POST}content-length: 5\r\n{CHUNKED}", 400, "http_invalid"),
    "gzip": ("POST /v1/turns HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n", 400, "http_invalid"),
}


@pytest.mark.parametrize(("head", "status", "code"), HEADS.values(), ids=HEADS)
async def test_an_invalid_request_head_is_refused_and_the_connection_closed(
    small: RawConnection, head: str, status: int, code: str
) -> None:
    await small.send(f"{head}\r\n")
    answer = await small.answer()
    assert answer.status_code == status
    if code:
        assert error_of(answer)[1] == code
        assert answer.headers["connection"] == "close"
        assert await small.is_closed()


@pytest.mark.parametrize(("version", "first"), [("1.0", b"HTTP/1.1 202"), ("1.1", b"HTTP/1.1 100")])
async def test_100_continue_is_not_sent_to_http_1_0(raw: RawConnection, version: str, first: bytes) -> None:
    """RFC 9110, 10.1.1: a client of HTTP/1.0 would take it for the response."""
    await raw.send(post(TURN, "expect: 100-continue\r\n").replace("HTTP/1.1", f"HTTP/{version}", 1))
    assert (await raw.reader.readline()).startswith(first)
