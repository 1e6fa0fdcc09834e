"""GET /v1/turns/{turn}/events with clients in Chromium: each shows the whole text once."""

import asyncio
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest

from tests.clients import node
from tests.clients.conftest import Takeover, read_stored_text
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.integration.conftest import Gateway

TEXT = words(200)
# Cuts are at bytes, and a busy machine joins deltas: the text is long enough for all cuts.
LINE = "#sim words=200 rate=120"
# Without TLS, Chromium takes a connection that closes within the headers for a response without a body.
IN_BODY = 600
# fetch-event-source stores the id of an event that is cut between these two; see gateway/http/sse.py.
END_OF_EVENT = b"\n\n"


class Shown(NamedTuple):
    """The text that a client showed, the outcome, and the number of connections."""

    text: str
    outcome: str
    opened: int


async def post(gateway: Gateway) -> str:
    response = await gateway.client.post("/v1/turns", json={"message": LINE})
    assert response.status_code == 202, response.text
    turn: str = response.json()["turn"]
    return turn


def stream(url: str, turn: str, dialect: str = "tailrace") -> str:
    return f"{url}/v1/turns/{turn}/events?dialect={dialect}"


async def with_browser(browser: str, *clients_and_urls: str) -> list[Shown]:
    return [Shown(**shown) for shown in await node.run("browser.mjs", *clients_and_urls, CHROMIUM=browser)]


@pytest.mark.proves("tailrace", "resumes after cuts", "EventSource (Chromium)")
@pytest.mark.proves("tailrace", "resumes after cuts", "fetch-event-source")
@pytest.mark.proves("anthropic", "resumes after cuts", "EventSource (Chromium)")
@pytest.mark.proves("text", "replays from the start after cuts", "fetch (Chromium)")
async def test_clients_in_a_browser_resume_after_cuts(open_gateway: Gateway, browser: str) -> None:
    turn = await post(open_gateway)
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(
                Cutting(open_gateway.port, random_cuts(seed, count, bytes_max=most, bytes_min=IN_BODY), whole=whole)
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
    assert await read_stored_text(open_gateway, turn) == TEXT


@pytest.mark.proves("tailrace", "generator killed during the answer", "EventSource (Chromium)")
@pytest.mark.proves("tailrace", "generator killed during the answer", "fetch-event-source")
async def test_clients_in_a_browser_continue_when_the_generator_is_killed(takeover: Takeover, browser: str) -> None:
    gateway = takeover.gateway
    turn = await post(gateway)
    url = stream(gateway.url, turn)
    reading = asyncio.create_task(with_browser(browser, "EventSource", url, "fetch-event-source", url))
    async with takeover.run_and_kill_after(8):
        shown = await reading
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    assert shown == [Shown(TEXT, "completed", 1)] * 2
    assert await read_stored_text(gateway, turn) == TEXT
    # On a busy machine the second generator may lose its lease, too.
    assert record["attempts"] >= 2
