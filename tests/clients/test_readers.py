"""GET /v1/turns/{turn}/events with common SSE clients: cut at random, each shows the whole text once."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

import httpx
import pytest
from httpx_sse import aconnect_sse

from tests.clients import node
from tests.clients.conftest import Takeover, told
from tests.harness.cutting_proxy import Cutting, seeded
from tests.harness.generator_in_loop import words
from tests.harness.readers import told as told_by
from tests.integration.conftest import KEY, Gateway

TEXT = words(200)
# Cuts are placed by bytes, and a busy machine tells the same text in fewer and longer events: so many bytes there are.
LINE = "#sim words=200 rate=120"
# Chromium takes headers that break off for all there are, and then an empty body for the whole, unless it speaks TLS.
IN_BODY = 600
# Cut between these two, fetch-event-source has an event's id and not the event; see gateway/http/sse.py.
END_OF_EVENT = b"\n\n"
# How long httpx waits before it asks again; EventSource is told to by the stream.
AGAIN_S = 0.05


class Shown(NamedTuple):
    """What a client showed in the end, and how often it had to connect."""

    text: str
    outcome: str
    opened: int


async def asked(gateway: Gateway) -> str:
    response = await gateway.client.post("/v1/turns", json={"message": LINE})
    assert response.status_code == 202, response.text
    turn: str = response.json()["turn"]
    return turn


def stream(url: str, turn: str, dialect: str = "tailrace") -> str:
    return f"{url}/v1/turns/{turn}/events?dialect={dialect}"


async def with_httpx_sse(url: str) -> Shown:
    """The loop that everybody writes around httpx-sse: the last id goes with the next request."""
    sent: list[bytes] = []
    last, opened = "0", 0
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        while not (sent and told_by(sent).outcome != "running"):
            with suppress(httpx.TransportError):
                async with aconnect_sse(client, "GET", url, headers={"last-event-id": last}) as source:
                    opened += 1
                    async for event in source.aiter_sse():
                        sent.append(b"data: " + event.data.encode())
                        last = event.id
            await asyncio.sleep(AGAIN_S)
    story = told_by(sent)
    return Shown(story.text, story.outcome, opened)


async def with_node(*clients_and_urls: str) -> list[Shown]:
    return [Shown(**shown) for shown in await node.run("readers.mjs", KEY, *clients_and_urls)]


async def with_browser(browser: str, *clients_and_urls: str) -> list[Shown]:
    return [Shown(**shown) for shown in await node.run("browser.mjs", *clients_and_urls, CHROMIUM=browser)]


@pytest.mark.proves("tailrace", "resumes after cuts", "httpx-sse")
async def test_httpx_sse_resumes_after_cuts(gateway: Gateway) -> None:
    """A loop with the last id is enough: no gap, no repeat."""
    turn = await asked(gateway)
    async with Cutting(gateway.port, seeded(1, 3, bytes_max=1100)) as proxy:
        shown = await with_httpx_sse(stream(proxy.url, turn))
    assert (shown.text, shown.outcome, proxy.left) == (TEXT, "completed", [])
    assert await told(gateway, turn) == TEXT


@pytest.mark.proves("tailrace", "resumes after cuts", "eventsource")
@pytest.mark.proves("anthropic", "resumes after cuts", "eventsource")
@pytest.mark.proves("text", "replays from the start after cuts", "fetch (Node)")
async def test_clients_in_node_resume_after_cuts(gateway: Gateway) -> None:
    """EventSource comes back by itself with its last id, in each dialect that has ids; bare text is asked for again."""
    turn = await asked(gateway)
    async with (
        Cutting(gateway.port, seeded(2, 3, bytes_max=1100)) as ours,
        Cutting(gateway.port, seeded(3, 1, bytes_max=3000)) as anthropic,
        Cutting(gateway.port, seeded(4, 3, bytes_max=900)) as text,
    ):
        shown = await with_node(
            *("EventSource", stream(ours.url, turn)),
            *("EventSource", stream(anthropic.url, turn, "anthropic")),
            *("fetch", stream(text.url, turn, "text")),
        )
    assert [(one.text, one.outcome) for one in shown] == [(TEXT, "completed")] * 3
    assert (ours.left, anthropic.left, text.left) == ([], [], [])
    assert await told(gateway, turn) == TEXT


@pytest.mark.proves("tailrace", "resumes after cuts", "EventSource (Chromium)")
@pytest.mark.proves("tailrace", "resumes after cuts", "fetch-event-source")
@pytest.mark.proves("anthropic", "resumes after cuts", "EventSource (Chromium)")
@pytest.mark.proves("text", "replays from the start after cuts", "fetch (Chromium)")
async def test_clients_in_a_browser_resume_after_cuts(open_gateway: Gateway, browser: str) -> None:
    """The browser's own EventSource is the reason for half of what a stream here looks like."""
    turn = await asked(open_gateway)
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(
                Cutting(open_gateway.port, seeded(seed, count, bytes_max=most, bytes_min=IN_BODY), whole=whole)
            )
            for seed, count, most, whole in (
                (5, 3, 1100, b""),
                (6, 3, 1100, END_OF_EVENT),
                (7, 1, 3000, b""),
                (8, 3, 900, b""),
            )
        ]
        shown = await with_browser(
            browser,
            *("EventSource", stream(proxies[0].url, turn)),
            *("fetch-event-source", stream(proxies[1].url, turn)),
            *("EventSource", stream(proxies[2].url, turn, "anthropic")),
            *("fetch", stream(proxies[3].url, turn, "text")),
        )
    assert [(one.text, one.outcome) for one in shown] == [(TEXT, "completed")] * 4
    assert [proxy.left for proxy in proxies] == [[]] * 4
    assert await told(open_gateway, turn) == TEXT


@pytest.mark.proves("tailrace", "generator killed during the answer", "EventSource (Chromium)")
@pytest.mark.proves("tailrace", "generator killed during the answer", "fetch-event-source")
@pytest.mark.proves("tailrace", "generator killed during the answer", "eventsource")
@pytest.mark.proves("tailrace", "generator killed during the answer", "httpx-sse")
@pytest.mark.proves("anthropic", "generator killed during the answer", "eventsource")
@pytest.mark.proves("text", "generator killed during the answer", "fetch (Node)")
async def test_killed_generator_is_hidden(takeover: Takeover, browser: str) -> None:
    """kill -9 in the middle of the answer: each client shows the whole text, and SQLite has the same."""
    gateway = takeover.gateway
    turn = await asked(gateway)
    ours, anthropic, text = (stream(gateway.url, turn, dialect) for dialect in ("tailrace", "anthropic", "text"))
    async with asyncio.TaskGroup() as clients:
        in_browser = clients.create_task(with_browser(browser, "EventSource", ours, "fetch-event-source", ours))
        in_node = clients.create_task(with_node("EventSource", ours, "EventSource", anthropic, "fetch", text))
        in_python = clients.create_task(with_httpx_sse(ours))
        async with takeover.killed_after(8):
            shown = [*await in_browser, *await in_node, await in_python]
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    assert shown == [Shown(TEXT, "completed", 1)] * 6
    assert (await told(gateway, turn), record["attempts"]) == (TEXT, 2)
