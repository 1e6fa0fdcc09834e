"""A gateway that goes away: its readers carry on elsewhere, and a break never looks like an end."""

import asyncio
import socket
import time
from pathlib import Path
from signal import SIGTERM

import httpx2
import pytest

from tailrace.gateway.__main__ import build
from tailrace.gateway.app import app
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.settings import Settings
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness import processes
from tests.harness.readers import history, is_read, read, reader
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys
from tests.promises import judge, no_gap, no_repeat, one_end


@pytest.mark.rule("F5")
async def test_readers_carry_on_at_another_gateway_when_theirs_is_told_to_go(
    gateway: Gateway, system: System, system_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """SIGTERM: twenty streams are closed within a second, the process leaves with 0, and every byte comes once."""
    body = {"message": "#sim words=150 rate=50"}
    turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
    key = TurnKey(tenant, TurnId(turn))
    leaving = processes.gateway(tmp_path, system.nats_url, TAILRACE_API_KEYS=api_keys(tenant))
    async with leaving, leaving_client(leaving.url) as client:
        reading = [asyncio.create_task(read(client, turn)) for _ in range(20)]
        await until(lambda: is_read(system_log, key))
        await read(gateway.client, turn, most=20)
        leaving.signal(SIGTERM)
        told_at = time.monotonic()
        first = await asyncio.gather(*reading)
        took_s = time.monotonic() - told_at
        await until(lambda: leaving.is_gone)
        assert await leaving.stop() == 0
    rest = await asyncio.gather(*(read(gateway.client, turn, one.frames[-1].seq) for one in first))
    readers = [reader(f"{n}", key, *pair) for n, pair in enumerate(zip(first, rest, strict=True))]
    verdict = judge(await history(system_log, key, *readers), (no_gap, no_repeat, one_end))
    assert verdict.is_green, verdict.evidence
    assert {one.over for one in first} == {"cut"}
    assert {one.over for one in rest} == {"ended"}
    assert took_s < 1


def leaving_client(url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, headers={"x-api-key": KEY}, timeout=20, trust_env=False)


async def wire(gateway: Gateway, path: str, log: TurnLog, key: TurnKey) -> bytes:
    """All the bytes of a response whose gateway goes away while it is being sent."""
    receiving, sending = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        sending.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n".encode())
        received = await receiving.readuntil(b"\r\n\r\n")
        await until(lambda: is_read(log, key))
        await asyncio.wait_for(gateway.stop(), 2)
        return received + await receiving.read()
    finally:
        sending.close()


@pytest.mark.parametrize("dialect", ["text", "anthropic", "delta"])
async def test_a_break_lacks_the_last_chunk_where_the_dialect_has_no_word_for_it(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey, dialect: str
) -> None:
    """Bare text that stops could be a short answer; a body without its last chunk cannot."""
    await Writer(log, key).open("half an ans")
    sent = await wire(lone_gateway, f"/v1/turns/{key.turn}/events?dialect={dialect}", log, key)
    assert b"half an ans" in sent
    assert b"transfer-encoding: chunked" in sent.lower()
    assert not sent.endswith(b"0\r\n\r\n")


async def test_an_http_library_sees_the_break(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """What is missing on the wire is an exception in the client's hands."""
    await Writer(log, key).open("half an ans")
    reading = asyncio.create_task(lone_gateway.client.get(f"/v1/turns/{key.turn}/events?dialect=text"))
    await until(lambda: is_read(log, key))
    lone_gateway.stopping.set()
    with pytest.raises(httpx2.RemoteProtocolError):
        await reading


async def test_a_stream_of_tailrace_ends_cleanly_without_the_turns_end(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """An EventSource comes back after a clean end without an error in its console, and `done` is what an end is."""
    await Writer(log, key).open("half an ans")
    sent = await wire(lone_gateway, f"/v1/turns/{key.turn}/events", log, key)
    assert sent.endswith(b"0\r\n\r\n")
    assert b"done" not in sent


async def test_what_is_asked_of_a_gateway_that_is_going_away_is_refused(
    nats_url: str, connection: Connection, log: TurnLog, key: TurnKey, tenant: Tenant
) -> None:
    """503 `draining` with Retry-After, for what would begin something; looking and cancelling still work."""
    await Writer(log, key).open("a")
    draining = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        settings = Settings(nats_url=nats_url, api_keys=api_keys(tenant), linger_s=0)
        going = build(settings, connection, group, draining, signature=TokenSigner(b"secret"))
        transport = httpx2.ASGITransport(app=app(going))
        headers = {"x-api-key": KEY}
        async with httpx2.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            draining.set()
            refused = [
                await client.post("/v1/turns", json={"message": "hi"}),
                await client.get(f"/v1/turns/{key.turn}/events"),
            ]
            looked = await client.get(f"/v1/turns/{key.turn}")
            ready = await client.get("/readyz")
            cancelled = await client.post(f"/v1/turns/{key.turn}/cancel")
    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(503, "draining")] * 2
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert (looked.status_code, cancelled.json()["outcome"]) == (200, "cancelled")
    assert ready.json()["gateway"] == {"ok": False, "detail": "draining"}


async def test_a_post_that_was_accepted_is_never_answered_as_if_it_were_not(
    nats_url: str, connection: Connection, tenant: Tenant, log: TurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drain begins between the append and the stream: a refusal would make the client ask, and pay, twice."""
    draining = asyncio.Event()

    class Accepting(TurnLog):
        async def append(self, *given: object, **named: object) -> object:  # type: ignore[override]
            appended = await super().append(*given, **named)  # type: ignore[arg-type]
            draining.set()
            return appended

    async with asyncio.TaskGroup() as group:
        settings = Settings(nats_url=nats_url, api_keys=api_keys(tenant), linger_s=0)
        monkeypatch.setattr("tailrace.gateway.__main__.TurnLog", Accepting)
        going = build(settings, connection, group, draining, signature=TokenSigner(b"secret"))
        headers = {"x-api-key": KEY, "accept": "text/event-stream"}
        transport = httpx2.ASGITransport(app=app(going))
        async with httpx2.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            answer = await client.post("/v1/turns", json={"message": "hi"})
    assert answer.status_code == 200
    turn = TurnKey(tenant, TurnId(answer.headers["tailrace-turn"]))
    assert (await log.turn(turn)).request is not None


async def test_an_idle_gateway_leaves_at_once(nats_url: str, new_gateway: NewGateway) -> None:
    """With connections kept alive and nothing under way there is nothing to wait for."""
    gateway = await new_gateway(nats_url)
    await gateway.client.get("/healthz")
    await asyncio.wait_for(gateway.stop(), 1)


async def test_a_reader_that_does_not_read_does_not_hold_its_gateway_back(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """What it has not taken cannot be followed by an end; its cursor tells the next gateway where it is."""
    writer = Writer(log, key)
    await writer.open("a")
    stalled = socket.create_connection(("127.0.0.1", lone_gateway.port))
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    stalled.sendall(f"GET /v1/turns/{key.turn}/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n".encode())
    await until(lambda: is_read(log, key))
    for _ in range(80):
        await writer.say("a" * 100_000)
    await asyncio.wait_for(lone_gateway.stop(), 2)
    stalled.close()
