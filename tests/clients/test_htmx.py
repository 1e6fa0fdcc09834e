"""The example page for htmx (examples/htmx.html) with the real htmx and its sse extension, in Chromium."""

import pytest

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.integration.conftest import Gateway


@pytest.mark.proves("html", "stream", "htmx")
@pytest.mark.proves("html", "resumes after cuts", "htmx")
async def test_the_example_shows_the_text_once_over_cut_connections(open_gateway: Gateway, browser: str) -> None:
    """The connection is closed at `done`: htmx would read the answer again otherwise, and append it."""
    # The response of the page's POST is shorter than the cuts.
    async with Cutting(open_gateway.port, random_cuts(3, count=3, bytes_max=1400, bytes_min=900)) as proxy:
        shown, again = await node.run("htmx.mjs", proxy.url, "#sim words=200 rate=120", CHROMIUM=browser)
        assert proxy.left == []
    assert shown["text"] == words(200) == await read_stored_text(open_gateway, shown["turn"])
    assert (shown["outcome"], shown["failed"]) == ("completed", "")
    assert again == shown
