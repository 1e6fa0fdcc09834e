"""The routes for operators: /healthz, /readyz, /health, /metrics and the index."""

import asyncio
from collections.abc import Awaitable
from signal import SIGKILL

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tailrace.proto.version import VERSION
from tests.harness.generator_in_loop import working
from tests.harness.readers import is_read, read
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

PUBLIC = ("/healthz", "/readyz", "/health", "/metrics")
ALL_WELL = {"ok": True, "detail": ""}


async def ready(gateway: Gateway) -> tuple[int, dict[str, object]]:
    answer = await gateway.client.get("/readyz")
    return answer.status_code, answer.json()


async def metric(gateway: Gateway, name: str) -> float:
    text = (await gateway.client.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


async def test_readyz_is_200_when_all_processes_answer(gateway: Gateway) -> None:
    """200, and every part by name."""
    assert await ready(gateway) == (
        200,
        {
            "ok": True,
            "nats": ALL_WELL,
            "log": ALL_WELL,
            "generators": ALL_WELL,
            "persistence": ALL_WELL,
            "gateway": ALL_WELL,
        },
    )


async def test_readyz_names_the_missing_processes(lone_gateway: Gateway) -> None:
    """503 alone would send somebody searching; the sentence says what to start."""
    status, parts = await ready(lone_gateway)
    assert (status, parts["ok"], parts["nats"]) == (503, False, ALL_WELL)
    for role in ("generators", "persistence"):
        wanted = {"ok": False, "detail": f"no {role} process answers; start one with `python -m tailrace.{role}`"}
        assert parts[role] == wanted


async def test_without_nats_readyz_is_503_and_healthz_is_200(own_server: NatsServer, new_gateway: NewGateway) -> None:
    """Not ready, but alive: a restart would not help, neither of the gateway nor of what cannot be asked now."""
    gateway = await new_gateway(own_server.url)
    await own_server.stop(SIGKILL)

    async def is_away() -> bool:
        _, parts = await ready(gateway)
        return parts["nats"] == {"ok": False, "detail": "not connected"}

    unknown = {"ok": False, "detail": "NATS is unreachable"}

    await until(is_away)
    assert (await gateway.client.get("/healthz")).json() == {"ok": True}
    _, parts = await ready(gateway)
    assert (parts["generators"], parts["persistence"]) == (unknown, unknown)
    await own_server.start()

    async def is_back() -> bool:
        _, parts = await ready(gateway)
        return parts["nats"] == ALL_WELL

    await until(is_back)


async def test_health_has_the_version_and_connections(gateway: Gateway) -> None:
    """And names nobody: it asks for no key."""
    answer = await gateway.client.get("/health")
    told = answer.json()
    # Other tests' turns may still run here.
    assert told.pop("active_turns") >= 0
    connected = {"nats": True, "generators": True, "persistence": True}
    assert (answer.status_code, told) == (200, {"status": "healthy", "version": VERSION, "connected": connected})


async def test_health_counts_waiting_and_running_turns(
    own_server: NatsServer, new_gateway: NewGateway, claude: str
) -> None:
    """Over all tenants together: one that waits for a generator, one that runs, none when it has ended."""
    gateway = await new_gateway(own_server.url)

    async def active() -> int | None:
        count: int | None = (await gateway.client.get("/health")).json()["active_turns"]
        return count

    before = await active()
    accepted = (await gateway.client.post("/v1/turns", json={"message": "#sim words=100000 rate=20"})).json()
    waiting = await active()
    async with working(own_server.url, claude):
        await read(gateway.client, accepted["turn"], most=4)
        running = await active()
        await gateway.client.post(accepted["links"]["cancel"])
        await until(lambda: is_zero(active()))
    assert (before, waiting, running) == (0, 1, 1)


async def is_zero(counting: Awaitable[int | None]) -> bool:
    return await counting == 0


async def test_health_is_503_while_a_process_is_missing(own_server: NatsServer, new_gateway: NewGateway) -> None:
    """With what is known all the same, and when to ask again."""
    gateway = await new_gateway(own_server.url)
    missing = await gateway.client.get("/health")
    assert (missing.status_code, missing.headers["retry-after"], missing.json()) == (
        503,
        "2",
        {
            "status": "unhealthy",
            "version": VERSION,
            "active_turns": 0,
            "connected": {"nats": True, "generators": False, "persistence": False},
        },
    )
    await own_server.stop(SIGKILL)

    async def knows_nothing() -> bool:
        told = (await gateway.client.get("/health")).json()
        return told["active_turns"] is None and not any(told["connected"].values())

    await until(knows_nothing)


async def test_the_index_is_json_or_text(lone_gateway: Gateway) -> None:
    """JSON for who accepts it; else lines of text, which a terminal and a browser show as they are."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, trust_env=False) as stranger:
        told = await stranger.get("/", headers={"accept": "application/json"})
        shown = await stranger.get("/", headers={"accept": "text/html,*/*"})
    assert (told.json()["version"], told.json()["health"]) == (VERSION, "/health")
    assert told.json()["endpoints"]["/v1/projects"] == ["GET", "POST"]
    assert shown.headers["content-type"] == "text/plain; charset=utf-8"
    assert "GET POST /v1/projects" in shown.text.splitlines()


async def test_health_needs_no_key(lone_gateway: Gateway) -> None:
    """A prober and a Prometheus have none; who is told to come back is told when, as by every 503."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, trust_env=False) as stranger:
        answers = await asyncio.gather(*(stranger.get(path) for path in PUBLIC))
    assert [answer.status_code for answer in answers] == [200, 503, 503, 200]
    assert [answer.headers.get("retry-after") for answer in answers] == [None, "2", "2", None]


async def test_the_metric_of_open_streams_follows_them(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """The gauge of a gateway's load: it goes up with each reader and comes back to where it was."""
    name = "tailrace_gateway_streams_open"
    writer = Writer(log, key)
    await writer.open("a")
    before = await metric(lone_gateway, name)
    reading = [asyncio.create_task(read(lone_gateway.client, key.turn)) for _ in range(3)]
    await until(lambda: is_read(log, key))

    async def are(count: float) -> bool:
        return await metric(lone_gateway, name) == before + count

    await until(lambda: are(3))
    await writer.end()
    await asyncio.gather(*reading)
    await until(lambda: are(0))


async def test_refusals_are_counted_by_code(lone_gateway: Gateway) -> None:
    """Labels come from a fixed set; never from what a client sent."""
    before = await metric(lone_gateway, "tailrace_gateway_refused_total")
    await lone_gateway.client.post("/v1/turns", json={"messsage": "typo"})
    assert await metric(lone_gateway, "tailrace_gateway_refused_total") == before + 1
    assert "messsage" not in (await lone_gateway.client.get("/metrics")).text
