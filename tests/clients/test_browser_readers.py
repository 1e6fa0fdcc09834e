"""GET /v1/turns/{turn}/events with clients in Chromium, Firefox and WebKit: each shows the whole text once."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.clients import node
from tests.clients.conftest import Takeover, read_stored_text
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.integration.conftest import on_shared_loop

TEXT = words(200)
# Cuts are at bytes, and a busy machine joins deltas: the text is long enough for all cuts.
LINE = "#sim words=200 rate=120"
# Without TLS, Chromium takes a connection that closes within the headers for a response without a body.
IN_BODY = 600
# Each client with its dialect, the number of its cuts, the last byte at which one may be, and what they never split.
# fetch-event-source stores the id of an event that is cut between these two newlines; see gateway/http/sse.py.
CLIENTS = (
    ("EventSource", "tailrace", 3, 1100, b""),
    ("fetch-event-source", "tailrace", 3, 1100, b"\n\n"),
    ("EventSource", "anthropic", 1, 3000, b""),
    ("fetch", "text", 3, 900, b""),
)


@on_shared_loop
@pytest.mark.proves("tailrace", "resumes after cuts", "EventSource (Chromium)")
@pytest.mark.proves("tailrace", "resumes after cuts", "fetch-event-source")
@pytest.mark.proves("anthropic", "resumes after cuts", "EventSource (Chromium)")
@pytest.mark.proves("text", "replays from the start after cuts", "fetch (Chromium)")
@pytest.mark.proves("tailrace", "generator killed during the answer", "EventSource (Chromium)")
@pytest.mark.proves("tailrace", "resumes after cuts", "EventSource (Firefox)")
@pytest.mark.proves("anthropic", "resumes after cuts", "EventSource (Firefox)")
@pytest.mark.proves("tailrace", "generator killed during the answer", "EventSource (Firefox)")
@pytest.mark.proves("tailrace", "resumes after cuts", "EventSource (WebKit)")
@pytest.mark.proves("anthropic", "resumes after cuts", "EventSource (WebKit)")
@pytest.mark.proves("tailrace", "generator killed during the answer", "EventSource (WebKit)")
@pytest.mark.proves("tailrace", "generator killed during the answer", "fetch-event-source")
async def test_clients_in_a_browser_show_the_text_once_after_cuts_and_a_killed_generator(
    takeover: Takeover, each_browser: dict[str, Any]
) -> None:
    """All four read one turn, each over cut connections of its own."""
    gateway = takeover.gateway
    posted = await gateway.client.post("/v1/turns", json={"message": LINE})
    turn = posted.json()["turn"]
    async with AsyncExitStack() as stack:
        proxies, arguments = [], []
        for seed, (client, dialect, count, bytes_max, whole) in enumerate(CLIENTS, start=5):
            cuts = random_cuts(seed, count, bytes_max, IN_BODY)
            proxies.append(await stack.enter_async_context(Cutting(gateway.port, cuts, whole=whole)))
            arguments += [client, f"{proxies[-1].url}/v1/turns/{turn}/events?dialect={dialect}"]
        reading = asyncio.create_task(node.run("browser.mjs", *arguments, **each_browser))
        async with takeover.run_and_kill_after(8):
            shown = await reading
    assert [(one["text"], one["outcome"]) for one in shown] == [(TEXT, "completed")] * 4
    assert [proxy.left for proxy in proxies] == [[]] * 4
    assert await read_stored_text(gateway, turn) == TEXT
    # On a busy machine the second generator may lose its lease, too.
    assert (await gateway.client.get(f"/v1/turns/{turn}")).json()["attempts"] >= 2
