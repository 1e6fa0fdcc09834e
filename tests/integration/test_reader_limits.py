"""Limits of readers and connections of a gateway, and the maximum age of a stream."""

import asyncio
import functools
import socket
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.http import fd_limit
from tailrace.gateway.streaming import response
from tailrace.gateway.streaming.endings import AGED
from tailrace.gateway.turns import reader_presence
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.ownership import ScopedKey
from tests.harness.processes import Process, as_user
from tests.harness.raw_http import RawConnection
from tests.harness.readers import build_reader, read, read_history
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.turn_writer import Writer, new_writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway
from tests.promises import judge, no_gap, no_repeat, one_end


async def open_stream(
    stack: AsyncExitStack, gateway: Gateway, key: TurnKey, headers: dict[str, str] | None = None
) -> httpx2.Response:
    path = f"/v1/turns/{key.turn}/events"
    response = await stack.enter_async_context(gateway.client.stream("GET", path, headers=headers))
    if response.status_code != 200:
        await response.aread()
    return response


async def gather(response: httpx2.Response, body: bytearray) -> None:
    """Adds everything received to `body`, also from a body that breaks off."""
    async for piece in response.aiter_raw():
        body += piece


def refusal(response: httpx2.Response) -> tuple[int, str, bool]:
    return response.status_code, response.json()["error"]["code"], 1 <= int(response.headers["retry-after"]) <= 10


@pytest.fixture
def start(nats_url: str, new_gateway: NewGateway) -> NewGateway:
    """Starts a gateway with the given settings."""
    return functools.partial(new_gateway, nats_url)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("streams_max", (503, "server_busy", True)),
        ("streams_tenant_max", (429, "too_many_streams", True)),
    ],
)
async def test_readers_beyond_a_limit_are_refused(
    start: NewGateway, writer: Writer, setting: str, expected: tuple[int, str, bool]
) -> None:
    """With and without a cursor, and also a POST that requests its stream, which then creates no turn."""
    gateway = await start(**{setting: 2})
    await writer.open("a")
    back, streamed = {"last-event-id": str(writer.chain.last)}, {"accept": "text/event-stream"}
    async with AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(AsyncExitStack())
        assert (await open_stream(leaving, gateway, writer.key)).status_code == 200
        assert (await open_stream(stack, gateway, writer.key, back)).status_code == 200
        assert refusal(await open_stream(stack, gateway, writer.key)) == expected
        assert refusal(await open_stream(stack, gateway, writer.key, back)) == expected
        answer = await gateway.client.post("/v1/turns", json={"message": "hi"}, headers=streamed)
        assert refusal(answer) == expected
        assert "tailrace-turn" not in answer.headers
        assert (await gateway.client.post("/v1/turns", json={"message": "hi"})).status_code == 202
        await leaving.aclose()

        async def is_streamed() -> bool:
            async with gateway.client.stream("POST", "/v1/turns", json={"message": "hi"}, headers=streamed) as response:
                return response.status_code == 200

        # It takes the only free slot, and releases it.
        for _ in range(2):
            await until(is_streamed)


async def test_an_event_source_that_reconnects_to_a_full_gateway_retries_later(
    start: NewGateway, writer: Writer
) -> None:
    """A 503 would be final to it. It gets `retry:` and a body that breaks off, which is not the end of the stream."""
    gateway = await start(streams_max=1, origins="https://app.example")
    await writer.open("a")
    back = {"accept": "text/event-stream", "last-event-id": str(writer.chain.last), "origin": "https://app.example"}
    async with AsyncExitStack() as stack:
        assert (await open_stream(stack, gateway, writer.key)).status_code == 200
        response = await open_stream(stack, gateway, writer.key, back)
        body = bytearray()
        with pytest.raises(httpx2.RemoteProtocolError):
            await gather(response, body)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert 1000 <= int(body.removeprefix(b"retry: ")) <= 11_000


async def test_clients_of_a_trusted_proxy_are_counted_by_their_own_address(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """Without credentials. X-Forwarded-For of another sender is ignored: any client could send it.

    Readers with a credential are not counted by address: all users behind one proxy have its address.
    """
    writer, keyed = new_writer(own_log, Tenant("local")), new_writer(own_log, tenant)
    for one in (writer, keyed):
        await one.open("a")
    trusted = await new_gateway(own_server.url, api_keys="", streams_address_max=1, proxies="127.0.0.0/8")
    untrusted = await new_gateway(own_server.url, api_keys="", streams_address_max=1, proxies="10.0.0.1")
    for gateway, second in ((trusted, 200), (untrusted, 429)):
        del gateway.client.headers["authorization"]
        async with AsyncExitStack() as stack:
            statuses = [
                (await open_stream(stack, gateway, writer.key, {"x-forwarded-for": address})).status_code
                for address in ("192.0.2.1", "192.0.2.1", "198.51.100.7, 192.0.2.2")
            ]
        assert statuses == [200, 429, second]
    gateway = await new_gateway(own_server.url, streams_address_max=1)
    async with AsyncExitStack() as stack:
        assert [(await open_stream(stack, gateway, keyed.key)).status_code for _ in range(3)] == [200] * 3


async def test_connections_beyond_the_limit_get_503(monkeypatch: pytest.MonkeyPatch, start: NewGateway) -> None:
    """With Retry-After, also for pages of other origins; many more do before they are read. Open ones stay open."""
    monkeypatch.setattr(fd_limit, "connections_max", lambda: 3)
    monkeypatch.setattr(fd_limit, "excess_max", lambda: 2)
    page = {"origin": "https://app.example"}
    gateway = await start(origins=page["origin"])
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(RawConnection.open(gateway.port))
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))

        async def is_full() -> bool:
            async with gateway.new_client() as client:
                response = await client.get("/healthz", headers=page)
            if response.status_code == 200:
                return False
            # Without this header an EventSource of a page would not retry.
            assert response.headers["access-control-allow-origin"] == page["origin"]
            assert (refusal(response), response.headers["connection"]) == ((503, "server_busy", True), "close")
            return True

        await until(is_full)
        await opened.send("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await opened.answer()).status_code == 200
        for _ in range(4):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in head
        writer.close()


async def test_every_connection_is_answered_at_the_limit_of_file_descriptors(system: System, tmp_path: Path) -> None:
    """With 200 or 503. Without descriptors of their own, those above it would be closed or never accepted."""
    process = Process("gateway", tmp_path, TAILRACE_NATS_URL=as_user(system.nats_url, GATEWAY), TAILRACE_PORT=0)
    process.command[:0] = ["/bin/sh", "-c", 'ulimit -n 160; exec "$@"', "sh"]
    connecting = asyncio.Semaphore(10)

    async with process:
        port = int(process.url.rpartition(":")[2])

        async def connect(stack: AsyncExitStack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            async with connecting:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            return reader, writer

        async def status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return (await reader.readuntil(b"\r\n")).decode()[9:12]

        async with AsyncExitStack() as stack:
            opened = await asyncio.gather(*(connect(stack) for _ in range(300)))
            found = Counter(await asyncio.gather(*(status(*one) for one in opened)))
            assert set(found) == {"200", "503"}

        async def is_serving() -> bool:
            async with AsyncExitStack() as stack:
                return await status(*await connect(stack)) == "200"

        await until(is_serving)


@pytest.mark.parametrize("dialect", ["tailrace", "anthropic"])
async def test_a_stream_is_closed_at_its_maximum_age_and_resumes(
    start: NewGateway, writer: Writer, dialect: str
) -> None:
    """The reader receives every byte once (promises 1 to 3)."""
    gateway = await start(stream_life_s=0.2)
    await writer.open("a")
    connections = [await read(gateway.client, writer.key.turn, dialect=dialect)]
    for word in ("b", "c"):
        await writer.store_texts(word)
        cursor = connections[-1].frames[-1].seq
        connections.append(await read(gateway.client, writer.key.turn, cursor, dialect=dialect))
    await writer.end()
    connections.append(await read(gateway.client, writer.key.turn, connections[-1].frames[-1].seq, dialect=dialect))
    assert [one.over for one in connections] == ["cut", "cut", "cut", "ended"]
    aged = build_reader("aged", writer.key, *connections, dialect=dialect)
    verdict = judge(await read_history(writer.log, writer.key, aged), (no_gap, no_repeat, one_end))
    assert verdict.is_green, verdict.evidence


async def test_a_reader_whose_stream_was_closed_for_its_age_has_not_left(
    monkeypatch: pytest.MonkeyPatch, start: NewGateway, writer: Writer
) -> None:
    """A turn with on_disconnect=cancel runs on if the reader reconnects in time, and is cancelled otherwise."""
    monkeypatch.setattr(response, "AGED", AGED._replace(reconnect_window_s=1.5))
    monkeypatch.setattr(reader_presence, "PRESENCE_TIMEOUT_S", 0.01)
    gateway = await start(stream_life_s=0.2)
    await writer.store_request(on_disconnect="cancel")
    await writer.begin("a")

    async def is_cancelled() -> bool:
        return (await writer.log.read_turn(ScopedKey.whole(writer.key))).outcome == "cancelled"

    first = await read(gateway.client, writer.key.turn)
    with pytest.raises(AssertionError, match="not within"):
        await until(is_cancelled, 0.5)
    await writer.store_texts("b")
    back = await read(gateway.client, writer.key.turn, first.frames[-1].seq)
    assert [one.over for one in (first, back)] == ["cut", "cut"]
    await until(is_cancelled)


async def test_each_connection_gets_its_own_reconnect_time(lone_gateway: Gateway, writer: Writer) -> None:
    """`retry:` in its first event, also with a cursor; the other events are the same bytes for all."""
    await writer.open("a", "b")
    first = writer.chain.last
    await writer.end()
    path, waits = f"/v1/turns/{writer.key.turn}/events", set()
    for cursor in (0, 0, 0, 0, first):
        response = await lone_gateway.client.get(path, headers={"last-event-id": str(cursor)} if cursor else {})
        sent = parse(response.content)
        assert [event.retry_ms is None for event in sent] == [False] + [True] * (len(sent) - 1)
        waits.add(sent[0].retry_ms)
    assert len(waits) > 1
    assert all(500 <= (wait or 0) <= 2000 for wait in waits)
