"""Authentication in Chromium: allowed origins, tickets with EventSource, and the login cookie."""

import pytest

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

# No server listens at these origins: the script provides their pages.
OURS, OTHER = "http://127.0.0.1:43210", "http://localhost:43210"
TEXT = words(200)
LINE = "#sim words=200 rate=120"
# A stream that is cut before its first id has used its ticket (ADR 16). After a reset, a browser that is late does not
# read what has arrived.
CUTS = [Cut(1563, "fin"), Cut(1562, "rst"), Cut(1289, "rst")]


@pytest.fixture
async def listing(system: System, gateway: Gateway, new_gateway: NewGateway) -> Gateway:
    """A gateway that allows one origin."""
    return await new_gateway(system.nats_url, origins=OURS)


@pytest.mark.rule("S7")
async def test_browser_allows_only_listed_origins(listing: Gateway, browser: str) -> None:
    """A listed origin reads all responses; another origin, and `null`, read nothing."""
    shown = await node.run("browser-auth.mjs", "cors", listing.url, KEY, OURS, OTHER, CHROMIUM=browser)
    assert shown == [
        {"status": 202, "isTurnSeen": True, "deleted": 404},
        {"refused": "TypeError"},
        {"refused": "TypeError"},
    ]


@pytest.mark.proves("tailrace", "resumes after cuts with a ticket", "EventSource (Chromium)")
async def test_event_source_with_a_ticket_resumes_after_cuts(listing: Gateway, browser: str) -> None:
    """From another origin and without a key. Afterwards the ticket is used."""
    turn = (await listing.client.post("/v1/turns", json={"message": LINE})).json()["turn"]
    ticket = (await listing.client.post(f"/v1/turns/{turn}/tickets", json={})).json()
    async with Cutting(listing.port, CUTS) as proxy:
        first, again = await node.run("browser-auth.mjs", "ticket", proxy.url, OURS, ticket["events"], CHROMIUM=browser)
    assert (first["text"], first["outcome"], proxy.left) == (TEXT, "completed", [])
    assert first["opened"] == 4
    assert again == {"refused": "it gave up: error"}
    assert await read_stored_text(listing, turn) == TEXT


async def test_login_cookie_is_not_readable_by_scripts(gateway: Gateway, browser: str) -> None:
    """Over plain http on localhost. Two tabs refresh at once; another origin cannot log out."""
    (shown,) = await node.run("browser-auth.mjs", "login", gateway.url, KEY, OTHER, CHROMIUM=browser)
    assert shown == {
        "login": 200,
        "seen": "",
        "tabs": [200, 200],
        "looked": 404,
        "alone": 401,
        "after": 200,
        "crossed": "sent",
        "still": 200,
        "out": 204,
        "over": 401,
    }
