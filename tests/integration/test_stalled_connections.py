"""Connections that do not read, have vanished, or send more behind a stream: each has a bounded cost for a gateway."""

import asyncio
import socket
from pathlib import Path

import pytest

from benchmarks.slow import Beside, measure_rounds
from tailrace.gateway import metrics
from tailrace.gateway.http import http_protocol, server
from tailrace.proto.ids import TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness.dropped_packets import drop_packets
from tests.harness.readers import is_read, read, story_of
from tests.harness.turn_writer import Writer
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway

MB = 2**20


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n".encode()


def open_stalled(port: int, path: str) -> socket.socket:
    """Opens a connection that sends a request and does not read; its receive buffer is small."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.connect(("127.0.0.1", port))
    client.sendall(request(path))
    return client


@pytest.mark.rule("F24")
@pytest.mark.rule("S14")
async def test_a_connection_that_does_not_read_is_closed(
    monkeypatch: pytest.MonkeyPatch, lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """Its buffer stays full. A reader that has received everything is not closed, however long the turn is silent."""
    monkeypatch.setattr(http_protocol, "UNREAD_TIMEOUT_S", 0.3)
    writer, other = Writer(log, key), TurnKey(key.tenant, TurnId(new_id()))
    await writer.open("a")
    await Writer(log, other).open("a")
    silent = open_stalled(lone_gateway.port, f"/v1/turns/{key.turn}/events")
    quiet = open_stalled(lone_gateway.port, f"/v1/turns/{other.turn}/events")
    await until(lambda: is_read(log, key))
    await until(lambda: is_read(log, other))
    for _ in range(80):
        await writer.store_texts("a" * 100_000)
    await until_equal(lambda: is_read(log, key), False)
    assert await is_read(log, other)
    await writer.end()
    assert len(story_of(frame.sent for frame in (await read(lone_gateway.client, key.turn)).frames).text) == 8_000_001
    silent.close()
    quiet.close()


@pytest.mark.rule("F25")
@pytest.mark.rule("S14")
@pytest.mark.parametrize("path", ["/v1/turns/{turn}/events", "/v1/turns/{turn}/events?dialect=text"])
async def test_a_connection_that_has_vanished_is_closed(
    monkeypatch: pytest.MonkeyPatch, nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey, path: str
) -> None:
    """A laptop that was closed sends no FIN: a heartbeat, or a keepalive probe without one, is not acknowledged.

    Of twenty connections no stream, no reader and no descriptor is left (fault F25).
    """
    monkeypatch.setitem(server.KEPT, "TCP_USER_TIMEOUT", 500)
    monkeypatch.setitem(server.KEPT, "TCP_KEEPIDLE", 1)
    monkeypatch.setitem(server.KEPT, "TCP_KEEPINTVL", 1)
    gateway = await new_gateway(nats_url, heartbeat_s=0.1)
    await Writer(log, key).open("a")
    open_before, descriptors_before = open_streams(), descriptors()
    clients = [open_stalled(gateway.port, path.format(turn=key.turn)) for _ in range(20)]
    await until(lambda: open_streams() == open_before + 20)
    for client in clients:
        await asyncio.to_thread(client.recv, 65536)
        drop_packets(client)
    await until(lambda: open_streams() == open_before)
    await until_equal(lambda: is_read(log, key), False)
    for client in clients:
        client.close()
    await until(lambda: descriptors() <= descriptors_before)


@pytest.mark.rule("F24")
@pytest.mark.timeout(120)
async def test_a_connection_that_does_not_read_costs_less_than_a_megabyte_and_no_cpu(tmp_path: Path) -> None:
    """200 readers of an answer of 8 MB. Entries of other turns cause no work for them (fault F24)."""
    silent, reading = await measure_rounds(tmp_path, [Beside(silent=200), Beside(reading=200)], entries=50)
    assert silent.each_bytes[0] < MB
    # The expected ratio is a fifth, because twenty readers read beside both.
    assert silent.entry_cpu_s[0] < reading.entry_cpu_s[0] / 3


def open_streams() -> float:
    return sum(sample.value for family in metrics.STREAMS.collect() for sample in family.samples)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.rule("S14")
async def test_a_disconnect_with_a_pipelined_request_ends_the_stream(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey, caplog: pytest.LogCaptureFixture
) -> None:
    """uvicorn reports it only to the last request; the stream before it would go on until a write fails."""
    gateway = await new_gateway(nats_url, heartbeat_s=0.1)
    await Writer(log, key).open("a")
    client = socket.create_connection(("127.0.0.1", gateway.port))
    client.sendall(request(f"/v1/turns/{key.turn}/events") + request("/healthz"))
    await until(lambda: is_read(log, key))
    client.close()
    await until_equal(lambda: is_read(log, key), False)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []
