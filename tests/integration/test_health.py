"""/healthz, /readyz, /health, /metrics and the index."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import httpx2
import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from tailrace.deploy.cli.status import fetch
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.turns.queue_estimate import QueueEstimate
from tailrace.generators.key_health import REFUSED
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Connection, Rpc, TurnLog
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.subjects import GENERATORS
from tailrace.proto.version import VERSION
from tests.harness import processes
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import append_request, failure_code, running_generator, wait_for_end
from tests.harness.readers import is_read, read
from tests.harness.turn_writer import Writer
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, NewGateway

OK = {"ok": True, "detail": ""}
ROLES = ("generators", "persistence")
PARTS = ("nats", "log", *ROLES, "gateway")


@pytest.fixture
async def anonymous(lone_gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without a key; no generator and no persistence runs."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, trust_env=False) as client:
        yield client


async def ready(gateway: Gateway) -> tuple[int, dict[str, Any]]:
    answer = await gateway.client.get("/readyz")
    return answer.status_code, answer.json()


async def health(gateway: Gateway) -> dict[str, Any]:
    return dict((await gateway.client.get("/health")).json())


async def metric(gateway: Gateway, name: str) -> float:
    text = (await gateway.client.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


async def test_a_complete_system_is_ready_and_healthy(gateway: Gateway) -> None:
    assert await ready(gateway) == (200, {"ok": True, **dict.fromkeys(PARTS, OK)})
    found = await health(gateway)
    # Turns of other tests may run.
    assert found.pop("active_turns") == found.pop("active_sessions") >= 0
    assert datetime.fromisoformat(found.pop("timestamp")).tzinfo is not None
    connected = {"nats": True, "generators": True, "persistence": True}
    expected = {"status": "healthy", "detail": "", "version": VERSION, "connected": connected, "claude_version": None}
    assert found == expected


@pytest.mark.parametrize(
    ("escaping", "name"), [("allow-utf-8", "python_info"), ("underscores", "python_info"), ("dots", "python__info")]
)
async def test_the_names_of_the_metrics_are_escaped_as_the_response_says(
    gateway: Gateway, escaping: str, name: str
) -> None:
    accept = f"application/openmetrics-text; version=1.0.0; escaping={escaping}"
    answer = await gateway.client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].endswith(f"escaping={escaping}")
    assert f"\n{name}{{" in answer.text


async def test_a_refused_model_key_is_named_after_the_start_of_a_generator(
    own_server: NatsServer, new_gateway: NewGateway, own_claude: str, tmp_path: Path
) -> None:
    """The generator is ready all the same: the key is checked beside its work."""
    gateway = await new_gateway(own_server.url)
    async with processes.generator(tmp_path, own_server.url, own_claude, ANTHROPIC_API_KEY="bad-key"):

        async def generators() -> dict[str, Any]:
            return dict((await ready(gateway))[1]["generators"])

        await until_equal(generators, {"ok": True, "detail": REFUSED.format("claude"), "state": "degraded"})


@pytest.mark.rule("R29")
async def test_each_report_of_the_health_says_that_one_generator_is_degraded(
    own_server: NatsServer, own_claude: str, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """Which one answers first does not matter. The command exits with 0, as `/readyz` is 200."""
    gateway = await new_gateway(own_server.url)
    detail = REFUSED.format("claude")

    async def reports() -> set[tuple[object, ...]]:
        """Returns what each report says, several times: any of the generators may answer first."""
        found = set[tuple[object, ...]]()
        for _ in range(3):
            code, parts = await ready(gateway)
            found.add(("/readyz", code, parts.get("state"), parts[GENERATORS]["detail"]))
            answer = await gateway.client.get("/health")
            found.add(("/health", answer.status_code, answer.json()["status"], answer.json()["detail"]))
        status = await fetch(tmp_path, {"TAILRACE_NATS_URL": own_server.url})
        assert status.nats is not None
        return found | {("status", status.ok, status.state, status.nats.generators_detail)}

    healthy = {("/readyz", 200, None, ""), ("/health", 200, "healthy", ""), ("status", True, "healthy", "")}
    degraded = {
        ("/readyz", 200, "degraded", detail),
        ("/health", 200, "degraded", f"generators: {detail}"),
        ("status", True, "degraded", detail),
    }
    async with (
        processes.persistence(tmp_path, own_server.url),
        processes.generator(tmp_path, own_server.url, own_claude),
        processes.generator(tmp_path, own_server.url, own_claude),
    ):
        await until_equal(reports, healthy)
        async with processes.generator(tmp_path, own_server.url, own_claude, ANTHROPIC_API_KEY="bad-key"):
            await until_equal(reports, degraded)
        await until_equal(reports, healthy)


@pytest.mark.rule("R29")
@pytest.mark.parametrize("fault", ["401", "403"])
async def test_a_key_that_is_refused_later_degrades_readiness_until_a_call_succeeds(
    fault: str, own_server: NatsServer, own_claude: str, own_log: TurnLog, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """Anybody may read it, without a key: it has neither the key nor the address of the API."""
    gateway = await new_gateway(own_server.url)
    name, labels = "tailrace_generator_key_refused", {"backend": "claude"}

    async def state() -> tuple[int, str | None, str | None]:
        async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as anonymous:
            answer = await anonymous.get("/readyz")
        assert not any(secret in answer.text for secret in ("sk-test", own_claude.rpartition("/")[2]))
        parts = answer.json()
        return answer.status_code, parts.get("state"), parts["generators"].get("state")

    async with (
        processes.persistence(tmp_path, own_server.url),
        running_generator(own_server.url, own_claude),
    ):
        await until_equal(state, (200, None, None))
        refused = await wait_for_end(own_log, await append_request(own_log, f"words=3 fault={fault}"))
        assert failure_code(refused) == "backend_refused_key"
        assert (await state(), REGISTRY.get_sample_value(name, labels)) == ((200, "degraded", "degraded"), 1)
        await wait_for_end(own_log, await append_request(own_log, "words=3 rate=0"))
        assert (await state(), REGISTRY.get_sample_value(name, labels)) == ((200, None, None), 0)


async def test_missing_processes_are_named_without_a_key(lone_gateway: Gateway, anonymous: httpx2.AsyncClient) -> None:
    """A 503 has Retry-After."""
    status, parts = await ready(lone_gateway)
    assert (status, parts["ok"], parts["nats"]) == (503, False, OK)
    for role in ROLES:
        advice = f"wait if `tailrace up` runs, which restarts it; else start `python -m tailrace.{role}`"
        detail = f"no {role} process answers: {advice}"
        assert parts[role] == {"ok": False, "detail": detail}
    found = await health(lone_gateway)
    assert (found["status"], found["version"]) == ("unhealthy", VERSION)
    assert found["connected"] == {"nats": True, "generators": False, "persistence": False}
    answers = [await anonymous.get(path) for path in ("/healthz", "/readyz", "/health", "/metrics")]
    assert [answer.status_code for answer in answers] == [200, 503, 503, 200]
    assert [answer.headers.get("retry-after") for answer in answers] == [None, "2", "2", None]


class CountingRpc(Rpc):
    """Counts how often the reports of all processes were requested."""

    collected = 0

    def has_collected(self, times: int) -> bool:
        return self.collected >= times

    async def every_health(self, role: str, *, wait_s: float, first_s: float = 0.0) -> list[bytes]:
        self.collected += 1
        return await super().every_health(role, wait_s=wait_s, first_s=first_s)


async def test_a_health_report_that_cannot_be_read_does_not_end_the_gateway(
    nats_url: str, lone_gateway: Gateway, tenant: Tenant
) -> None:
    """One of a generator with another release, for example. It is logged once."""
    generator = await Connection.open(processes.as_user(nats_url, GENERATORS), "test-generator")
    connection = await Connection.open(processes.as_user(nats_url, GATEWAY), "test-gateway")
    await Rpc(generator).serve_health(GENERATORS, lambda: b'{"ok":"perhaps"}')

    async def is_named() -> bool:
        return "cannot be read" in (await ready(lone_gateway))[1][GENERATORS]["detail"]

    await until(is_named)
    rpc = CountingRpc(connection)
    queue = QueueEstimate(connection, rpc, most=1)
    with capture_logs() as logged:
        watching = asyncio.create_task(queue.watch())
        # The queue has read the reports of a refresh before the next one.
        for number in range(1, 4):
            queue.estimate_position(tenant)
            await until(partial(rpc.has_collected, number))
    assert not watching.done()
    watching.cancel()
    # The gateway of this process logs other lines.
    assert [line["event"] for line in logged].count("a generator's health report cannot be read") == 1
    await asyncio.gather(generator.close(), connection.close())


async def test_a_nats_server_that_does_not_answer_is_named_at_once(
    own_server: NatsServer, own_gateway: Gateway
) -> None:
    """Its clients count as connected for 20 s more, and generators and persistence are not what is missing."""
    freeze(own_server)
    try:
        _, parts = await ready(own_gateway)
    finally:
        own_server.signal(SIGCONT)
    assert parts["nats"] == {"ok": False, "detail": "nats-server does not answer"}
    assert [parts[role] for role in ROLES] == [{"ok": False, "detail": "NATS is unreachable"}] * 2


async def test_without_nats_a_gateway_is_alive_and_not_ready(own_server: NatsServer, own_gateway: Gateway) -> None:
    """A restart of the gateway would not help."""

    async def nats() -> dict[str, Any]:
        return dict((await ready(own_gateway))[1]["nats"])

    await own_server.stop(SIGKILL)
    await until_equal(nats, {"ok": False, "detail": "not connected"})
    assert (await own_gateway.client.get("/healthz")).json() == {"ok": True}
    _, parts = await ready(own_gateway)
    assert [parts[role] for role in ROLES] == [{"ok": False, "detail": "NATS is unreachable"}] * 2

    async def is_unknown() -> bool:
        found = await health(own_gateway)
        return found["active_turns"] is None and not any(found["connected"].values())

    await until(is_unknown)
    await own_server.start()
    await until_equal(nats, OK)


async def test_health_counts_waiting_and_running_turns(
    own_server: NatsServer, own_gateway: Gateway, own_claude: str
) -> None:
    async def active() -> int:
        return int((await health(own_gateway))["active_turns"])

    before = await active()
    body = {"message": "#sim words=100000 rate=20"}
    accepted = (await own_gateway.client.post("/v1/turns", json=body)).json()
    waiting = await active()
    async with running_generator(own_server.url, own_claude):
        await read(own_gateway.client, accepted["turn"], most=4)
        running = await active()
        await own_gateway.client.post(accepted["links"]["cancel"])
        await until_equal(active, 0)
    assert (before, waiting, running) == (0, 1, 1)


async def test_the_index_is_json_or_text(anonymous: httpx2.AsyncClient) -> None:
    first = await anonymous.get("/", headers={"accept": "application/json"})
    index = first.json()
    assert (index["version"], index["health"]) == (VERSION, "/health")
    assert index["endpoints"]["/v1/projects"] == ["GET", "POST"]
    text = await anonymous.get("/", headers={"accept": "*/*"})
    # The client sends the cookie of the chat page back.
    assert re.match(r"tailrace_chat=[\w-]{32}; Path=/; ", first.headers["set-cookie"])
    assert "set-cookie" not in text.headers
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert "GET POST /v1/projects" in text.text.splitlines()


async def test_metrics_are_rendered_outside_of_the_event_loop(anonymous: httpx2.AsyncClient) -> None:
    """A long-running gateway has thousands of series, and the route needs no key."""
    in_loop: list[bool] = []

    class Recorder(Collector):
        def collect(self) -> Iterator[Metric]:
            in_loop.append(threading.current_thread() is threading.main_thread())
            yield from ()

        def describe(self) -> Iterator[Metric]:
            yield from ()

    REGISTRY.register(recorder := Recorder())
    try:
        assert (await anonymous.get("/metrics")).status_code == 200
    finally:
        REGISTRY.unregister(recorder)
    assert in_loop
    assert not any(in_loop)


async def test_open_streams_and_refusals_are_metrics(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    name, refused = "tailrace_gateway_streams_open", "tailrace_gateway_refused_total"
    writer = Writer(log, key)
    await writer.open("a")
    before = await metric(lone_gateway, name)
    reading = [asyncio.create_task(read(lone_gateway.client, key.turn)) for _ in range(3)]
    await until(lambda: is_read(log, key))
    await until_equal(lambda: metric(lone_gateway, name), before + 3)
    await writer.end()
    await asyncio.gather(*reading)
    await until_equal(lambda: metric(lone_gateway, name), before)
    before = await metric(lone_gateway, refused)
    await lone_gateway.client.post("/v1/turns", json={"messsage": "typo"})
    assert await metric(lone_gateway, refused) == before + 1
