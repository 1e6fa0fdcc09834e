"""The example page for htmx (examples/htmx.html) with htmx 4 and htmx 2 and their sse extensions, in Chromium."""

import pytest

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.integration.conftest import Gateway


@pytest.mark.proves("html", "stream", "htmx 2 and 4")
@pytest.mark.proves("html", "resumes after cuts", "htmx 2 and 4")
@pytest.mark.parametrize("version", [2, 4])
async def test_the_example_shows_the_text_once_over_cut_connections(
    open_gateway: Gateway, browser: str, version: int
) -> None:
    """The connection is closed at `done`: htmx 2 would read the answer again otherwise, and append it."""
    # The response of the page's POST is shorter than the cuts.
    async with Cutting(open_gateway.port, random_cuts(3, count=3, bytes_max=1400, bytes_min=900)) as proxy:
        shown, again = await node.run("htmx.mjs", version, proxy.url, "#sim words=200 rate=120", CHROMIUM=browser)
        assert proxy.left == []
    assert shown["text"] == words(200) == await read_stored_text(open_gateway, shown["turn"])
    assert (shown["outcome"], shown["failed"]) == ("completed", "")
    assert again == shown
