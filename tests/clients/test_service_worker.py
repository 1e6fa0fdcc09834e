"""Pages in Chromium whose service worker answers the requests of streams."""

import re

import msgspec

from tests.clients import node
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.integration.conftest import Gateway

CLAIM = "addEventListener('activate', (event) => event.waitUntil(clients.claim()));"
PASSING = "addEventListener('fetch', (event) => event.respondWith(fetch(event.request)));"
# Without the headers of the page.
REBUILDING = "addEventListener('fetch', (event) => event.respondWith(fetch(event.request.url)));"
# Without the query, too.
BARE = "addEventListener('fetch', (event) => event.respondWith(fetch(new URL(event.request.url).pathname)));"
LIBRARIES = ("tailrace.js", "useTurn", "useSSE", "useSession", "TailraceChatTransport")
WARNED = ("tailrace.js", "useTurn")


def in_docs(begin: str) -> str:
    """Returns the block of JavaScript in docs/API.md that begins so."""
    found = re.search(rf"```js\n({begin}.*?)```", (CHECKOUT / "docs/API.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


async def test_a_service_worker_makes_no_reader_of_the_libraries_lose_or_repeat_text(
    open_gateway: Gateway, browser: str
) -> None:
    """After a clean end and a cut; the worker in docs/API.md also leaves an EventSource its `Last-Event-ID`.

    A client whose cursor gets lost shows the answer that begins again once, and warns once.
    """
    worker, function = in_docs(r'addEventListener\("fetch"'), in_docs("function read")
    pages = [
        (worker, ("EventSource",)),
        (PASSING, ("EventSource", *LIBRARIES)),
        (REBUILDING, LIBRARIES),
        (REBUILDING, ("read",)),
        (BARE, WARNED),
    ]
    given = msgspec.json.encode([{"worker": CLAIM + worker, "readers": readers} for worker, readers in pages]).decode()
    *silent, warned = await node.run("service-worker.mjs", open_gateway.url, given, function, CHROMIUM=browser)
    # Chromium's EventSource reconnects without its cursor, or not at all.
    assert silent[1]["texts"].pop("EventSource") != words(60)
    expected = [("EventSource",), LIBRARIES, LIBRARIES, ("read",)]
    assert silent == [{"texts": dict.fromkeys(readers, words(60)), "warnings": []} for readers in expected]
    assert warned["texts"] == dict.fromkeys(WARNED, words(60))
    [warning] = warned["warnings"]
    assert "Last-Event-ID" in warning
