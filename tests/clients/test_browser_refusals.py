"""Chromium's EventSource at a gateway that is full: it reconnects by itself, or with the code in docs/API.md."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local import ports
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.http import retry_later
from tailrace.proto.ids import TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.clients import node
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.processes import CHECKOUT
from tests.harness.turn_writer import Writer
from tests.harness.until import LOOK_EVERY_S, until
from tests.integration.conftest import Gateway, NewGateway

SLOT_S_MAX = 10.0


@pytest.fixture
async def small(monkeypatch: pytest.MonkeyPatch, nats_url: str, new_gateway: NewGateway) -> Gateway:
    """A gateway with one stream slot and a Retry-After of one second."""
    monkeypatch.setattr(retry_later, "RETRY_S_MAX", 1)
    return await new_gateway(nats_url, streams_max=1, api_keys="")


@pytest.fixture
async def writer(log: TurnLog) -> Writer:
    """A turn of the tenant without keys."""
    writer = Writer(log, TurnKey(LOCAL.access.tenant, TurnId(new_id())))
    await writer.open("a" * 2000)
    return writer


@asynccontextmanager
async def competing_reader(gateway: Gateway, path: str) -> AsyncIterator[None]:
    """Another reader takes the slot as soon as it is free."""
    async with asyncio.timeout(SLOT_S_MAX) as waiting:
        while True:
            async with gateway.client.stream("GET", path) as response:
                if response.status_code == 200:
                    waiting.reschedule(None)
                    yield
                    return
            await asyncio.sleep(LOOK_EVERY_S)


def refusals() -> float:
    return REGISTRY.get_sample_value("tailrace_gateway_refused_total", {"code": "server_busy"}) or 0.0


async def one_refusal_after(count: float) -> None:
    await until(lambda: refusals() > count, node.DEADLINE_S)


async def test_refused_event_source_reconnects(small: Gateway, writer: Writer, browser: str) -> None:
    """Its connection was cut and another reader has its slot: it tries again until the slot is free, and receives
    the whole text.
    """
    path = f"/v1/turns/{writer.key.turn}/events"
    async with Cutting(small.port, [Cut(after_bytes=2900)]) as proxy:
        showing = asyncio.create_task(node.run("browser.mjs", "EventSource", proxy.url + path, CHROMIUM=browser))
        await until(
            lambda: REGISTRY.get_sample_value("tailrace_gateway_streams_open", {"dialect": "tailrace"}), node.DEADLINE_S
        )
        # It cannot reconnect before the other reader has its slot.
        (proxy.to,) = ports.find_free(1)
        before = refusals()

        async def is_cut() -> bool:
            await writer.store_texts("b" * 50)
            return not proxy.left

        await until(is_cut)
        async with competing_reader(small, path):
            proxy.to = small.port
            await one_refusal_after(before + 1)
        await writer.end()
        (shown,) = await showing
    text = (await small.client.get(f"/v1/turns/{writer.key.turn}")).json()["text"]
    assert (shown["text"], shown["outcome"]) == (text, "completed")


async def test_refused_first_connection_is_retried_by_the_documented_code(
    small: Gateway, writer: Writer, browser: str
) -> None:
    """With the function of docs/API.md."""
    path = f"/v1/turns/{writer.key.turn}/events"
    function = re.search(r"```js\n(function read.*?)```", (CHECKOUT / "docs/API.md").read_text(), re.DOTALL)
    assert function is not None
    before = refusals()
    async with competing_reader(small, path):
        showing = asyncio.create_task(node.run("browser-refusals.mjs", small.url, path, function[1], CHROMIUM=browser))
        await one_refusal_after(before)
    await writer.end()
    (shown,) = await showing
    assert shown == {"text": "a" * 2000, "outcome": "completed"}
