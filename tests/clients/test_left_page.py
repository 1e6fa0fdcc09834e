"""Pages that Chromium keeps in its back/forward cache when the user follows a link."""

import shutil

import msgspec
import pytest

from tests.clients import node
from tests.clients.conftest import found_or_skip, read_stored_text
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway

READERS = ("tailrace.js", "useTurn", "useSSE", "useSession", "TailraceChatTransport")
# Chromium closes the connections of such a page after 60 seconds. A reader has left as soon as it is closed.
CLOSED_MAX_S = 30


@pytest.mark.timeout(180)
async def test_page_that_is_left_closes_its_streams_and_reads_the_rest_when_it_is_shown_again(
    gateway: Gateway,
) -> None:
    """`on_disconnect: cancel` works when the user leaves; an answer that goes on is shown whole, each word once."""

    # The headless shell has no such cache.
    browser = found_or_skip(shutil.which("chromium"), "chromium")
    bodies = [
        {"message": "#sim words=3000 rate=15", "on_disconnect": "cancel"},
        {"message": "#sim words=150 rate=10"},
    ]
    given = {"readers": READERS, "bodies": bodies}
    arguments = (gateway.url, KEY, 2 * CLOSED_MAX_S + 10, msgspec.json.encode(given).decode())
    shown = await node.run("left-page.mjs", *arguments, deadline_s=150, CHROMIUM=browser)
    read, questions = shown[: len(READERS)], shown[len(READERS) :]
    assert [one["reader"] for one in read] == list(READERS)
    for one in read:
        cancelled, whole = one["turns"]
        assert one["isRestored"], one
        assert one["cancelledAfter"] < CLOSED_MAX_S, one
        assert words(3000).startswith(one["texts"][0].rstrip()), one
        assert one["texts"][1] == words(150) == await read_stored_text(gateway, whole), one
        assert (await gateway.client.get(f"/v1/turns/{cancelled}")).json()["outcome"] == "cancelled"
    for one in questions:
        assert one["text"] == words(20), one
        # The key of both is the same, so they are one question.
        assert (len(one["keys"]), len(set(one["keys"]))) == (2, 1), one
