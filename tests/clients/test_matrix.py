"""Each client of the matrix shows the text of the log: over cut connections, and with a killed generator."""

import asyncio

import pytest

from tests.clients.conftest import Takeover, count_turns, read_stored_text
from tests.clients.matrix import CLIENTS, Client
from tests.clients.node import find_browser
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.integration.conftest import on_shared_loop

# Slow enough that a busy machine does not join the deltas before a cut into few entries.
WORDS, RATE = 200, 120
# A client that survives a cut before its first event gets words so long that its cuts fit into the text alone. A turn
# that ends while such a client waits for its next connection is then still cut.
SHORT_WORD, LONG_WORD = "w", "long-word-" * 4
SLOW_WORDS, SLOW = 60, "#sim words=60 rate=60"
# Among the first are attempt, message_start and block start.
ENTRIES_BEFORE_KILL = 12

pytestmark = on_shared_loop


@pytest.mark.parametrize("client", CLIENTS, ids=[client.id for client in CLIENTS])
async def test_a_client_shows_the_text_once_after_cuts_and_a_killed_generator(
    takeover: Takeover, client: Client
) -> None:
    """The same turn loses its generator and its reader loses connections."""
    if client.is_in_browser and find_browser() is None:
        pytest.skip("there is no `chromium` here")
    cuts = random_cuts(CLIENTS.index(client), client.cuts.connections, client.cuts.bytes_max, client.cuts.bytes_min)
    tag = LONG_WORD if client.cuts.bytes_min == 0 else SHORT_WORD
    gateway = takeover.gateway
    before = await count_turns(gateway)
    async with Cutting(gateway.port, cuts, whole=client.cuts.whole) as proxy:
        reading = asyncio.create_task(client.read(proxy.url, f"#sim words={WORDS} rate={RATE} tag={tag}"))
        async with takeover.run_and_kill_after(ENTRIES_BEFORE_KILL):
            answer = await reading
        assert proxy.left == []
    assert answer.text == words(WORDS, tag) == await read_stored_text(gateway, answer.turn)
    assert (await gateway.client.get(f"/v1/turns/{answer.turn}")).json()["attempts"] == 2
    # A client that repeats its POST pays for one turn.
    assert await count_turns(gateway) == before + 1


@pytest.mark.parametrize("client", [one for one in CLIENTS if one.is_reread], ids=lambda client: client.id)
async def test_a_client_without_a_cursor_reads_on_when_the_generator_is_killed(
    takeover: Takeover, client: Client
) -> None:
    """Without a cut, so that the client itself reads the turn to its end."""
    reading = asyncio.create_task(client.read(takeover.gateway.url, SLOW))
    async with takeover.run_and_kill_after(ENTRIES_BEFORE_KILL):
        answer = await reading
    assert answer.text == words(SLOW_WORDS) == await read_stored_text(takeover.gateway, answer.turn)
