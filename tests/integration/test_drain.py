"""A draining gateway: readers continue at another one, and an interrupted response never looks complete."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGTERM

import httpx2
import pytest
from prometheus_client import REGISTRY

from tailrace.features.gateway import FEATURES, Settings
from tailrace.features.projects.records import CreateProject
from tailrace.gateway.app import app
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.http import server
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.http.server import GRACE_S
from tailrace.gateway.serve import build, start
from tailrace.proto import subjects
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.resources import DeleteResource
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.subjects import PERSISTENCE
from tests.harness import processes
from tests.harness.readers import build_reader, is_read, read, read_history, receive
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys
from tests.promises import ReaderConnection, judge, no_gap, no_repeat, one_end


@pytest.mark.rule("F5")
async def test_readers_continue_at_another_gateway_after_sigterm(
    gateway: Gateway, system: System, system_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """Twenty streams are closed before uvicorn would close them, and the process exits with 0."""
    draining = processes.gateway(tmp_path, system.nats_url, TAILRACE_API_KEYS=api_keys(tenant))
    async with (
        draining,
        httpx2.AsyncClient(base_url=draining.url, headers={"x-api-key": KEY}, timeout=20, trust_env=False) as client,
    ):
        # When the process runs: its start may take longer than an answer.
        body = {"message": "#sim words=250 rate=50"}
        key = TurnKey(tenant, TurnId((await gateway.client.post("/v1/turns", json=body)).json()["turn"]))
        begun = set[int]()

        async def read_and_tell(number: int) -> ReaderConnection:
            async with client.stream("GET", f"/v1/turns/{key.turn}/events") as response:
                return await receive(response, on_data=lambda _: begun.add(number))

        reading = [asyncio.create_task(read_and_tell(number)) for number in range(20)]
        # A connection that the gateway has not accepted before SIGTERM is reset.
        await until(lambda: len(begun) == len(reading))
        await read(gateway.client, key.turn, most=20)
        draining.signal(SIGTERM)
        async with asyncio.timeout(GRACE_S - 1):
            first = await asyncio.gather(*reading)
        await until(lambda: draining.is_gone)
        assert await draining.stop() == 0
    rest = await asyncio.gather(*(read(gateway.client, key.turn, one.frames[-1].seq) for one in first))
    readers = [build_reader(f"{n}", key, *pair) for n, pair in enumerate(zip(first, rest, strict=True))]
    verdict = judge(await read_history(system_log, key, *readers), (no_gap, no_repeat, one_end))
    assert verdict.is_green, verdict.evidence
    assert ({one.over for one in first}, {one.over for one in rest}) == ({"cut"}, {"ended"})


async def test_the_streams_of_a_stopping_gateway_do_not_count_as_cut(
    nats_url: str, log: TurnLog, key: TurnKey, new_gateway: NewGateway
) -> None:
    """The service level counts streams that are cut, and a restart on purpose costs a reader nothing."""

    def count() -> dict[str, float]:
        name = "tailrace_gateway_stream_ends_total"
        return {end: REGISTRY.get_sample_value(name, {"end": end}) or 0.0 for end in ("cut", "drained")}

    await Writer(log, key).open("a")
    gateway, before = await new_gateway(nats_url), count()
    reading = asyncio.create_task(read(gateway.client, key.turn))
    await until(lambda: is_read(log, key))
    gateway.stopping.set()
    assert (await reading).over == "cut"
    assert count() == {"cut": before["cut"], "drained": before["drained"] + 1}


@asynccontextmanager
async def in_process(
    nats_url: str, connection: Connection, tenant: Tenant, draining: Flag, **headers: str
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway without sockets."""
    async with asyncio.TaskGroup() as group:
        settings = Settings(nats_url=nats_url, api_keys=api_keys(tenant), linger_s=0)
        gateway = build(settings, connection, group, draining, signer=TokenSigner(b"secret"))
        transport = httpx2.ASGITransport(app=send_deferred(app(gateway, start(gateway, settings, FEATURES))))
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://x", headers={"x-api-key": KEY, **headers}
        ) as client:
            yield client


async def test_a_draining_gateway_refuses_new_turns_and_streams(
    nats_url: str, connection: Connection, log: TurnLog, key: TurnKey, tenant: Tenant
) -> None:
    """With 503 and Retry-After. A turn can still be looked up and cancelled."""
    await Writer(log, key).open("a")
    draining = Flag()
    async with in_process(nats_url, connection, tenant, draining) as client:
        draining.set()
        refused = [
            await client.post("/v1/turns", json={"message": "hi"}),
            await client.get(f"/v1/turns/{key.turn}/events"),
        ]
        found = await client.get(f"/v1/turns/{key.turn}")
        ready = await client.get("/readyz")
        cancelled = await client.post(f"/v1/turns/{key.turn}/cancel")
    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(503, "draining")] * 2
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert (found.status_code, cancelled.json()["outcome"]) == (200, "cancelled")
    assert ready.json()["gateway"] == {"ok": False, "detail": "draining"}


def drain_at_first_append(monkeypatch: pytest.MonkeyPatch) -> Flag:
    """Returns the flag of gateways that begin to drain with the first append of their log."""
    draining = Flag()

    class DrainingLog(TurnLog):
        async def append(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
            appended = await super().append(*arguments, **named)  # type: ignore[arg-type]
            draining.set()
            return appended

    monkeypatch.setattr("tailrace.gateway.serve.TurnLog", DrainingLog)
    return draining


@pytest.mark.parametrize(
    "headers", [{}, {"idempotency-key": "a"}, {"x-stainless-retry-count": "0"}], ids=["no key", "key", "count"]
)
async def test_a_drained_answer_without_a_stream_is_repeated_only_with_a_key_or_a_count(
    nats_url: str, connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """Without one, the SDK's own retry would start another turn while this one continues."""
    draining = drain_at_first_append(monkeypatch)
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    async with in_process(nats_url, connection, tenant, draining) as client:
        refused = await client.post("/v1/messages", json=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers.get("x-should-retry") == (None if headers else "false")


async def test_a_turn_that_was_stored_before_the_drain_is_answered_with_200(
    nats_url: str, connection: Connection, tenant: Tenant, log: TurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal the client would post it again and pay twice."""
    draining = drain_at_first_append(monkeypatch)
    async with in_process(nats_url, connection, tenant, draining, accept="text/event-stream") as client:
        answer = await client.post("/v1/turns", json={"message": "hi"})
    assert answer.status_code == 200
    assert (
        await log.read_turn(ScopedKey.whole(TurnKey(tenant, TurnId(answer.headers["tailrace-turn"]))))
    ).request is not None


@pytest.mark.parametrize("is_stalled", [False, True], ids=["idle connection", "stalled reader"])
async def test_idle_connections_and_stalled_readers_do_not_delay_the_stop(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey, is_stalled: bool
) -> None:
    gateway = await new_gateway(nats_url)
    writer = Writer(log, key)
    await writer.open("a")
    await gateway.client.get("/healthz")
    with socket.create_connection(("127.0.0.1", gateway.port)) as stalled:
        if is_stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            head = f"GET /v1/turns/{key.turn}/events HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n"
            stalled.sendall(head.encode())
            await until(lambda: is_read(log, key))
            for _ in range(80):
                await writer.store_texts("a" * 100_000)
        await asyncio.wait_for(gateway.stop(), GRACE_S - 1)


@pytest.mark.parametrize("is_repeatable", [True, False], ids=["DELETE", "POST"])
async def test_a_request_that_is_not_answered_before_the_stop_gets_a_503(
    nats_url: str, tenant: Tenant, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch, is_repeatable: bool
) -> None:
    """For example while persistence does not answer. A POST without a key may have had an effect."""
    for name in ("GRACE_S", "UNANSWERED_S_MAX"):
        monkeypatch.setattr(server, name, 0.1)
    gateway, queried = await new_gateway(nats_url), asyncio.Event()
    query = DeleteResource.query if is_repeatable else CreateProject.query
    silent = await Connection.open(processes.as_user(nats_url, PERSISTENCE), "test-silent")
    await silent.subscribe_directly(subjects.query(tenant, query), lambda *_: queried.set())
    await silent.flush()
    client = gateway.client
    request = client.delete("/v1/sessions/a") if is_repeatable else client.post("/v1/projects", json={"name": "a"})
    sending = asyncio.create_task(request)
    await queried.wait()
    gateway.stopping.set()
    refused = await sending
    await silent.close()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers.get("x-should-retry") == (None if is_repeatable else "false")
