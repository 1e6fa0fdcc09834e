"""OpenAI's Agents SDK for JavaScript: tools and a conversation, over both protocols; and a connection that is cut."""

from typing import Any

import pytest

from tests.clients import node
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway

AGENTS = "@openai/agents"
LOOKING = '#sim words=2 rate=0 tool=look json={"query":"the sky"}'
ASKED = "#sim words=40 rate=200"


async def run(url: str, api: str, *questions: str) -> dict[str, Any]:
    (shown,) = await node.run("openai-agents.mjs", KEY, url, api, *questions)
    return shown


@pytest.mark.proves("openai-chat", "stream with tools", AGENTS)
@pytest.mark.proves("openai-responses", "stream with tools", AGENTS)
@pytest.mark.parametrize("api", ["chat_completions", "responses"])
async def test_a_conversation_with_a_tool(gateway: Gateway, api: str) -> None:
    """The SDK sends back the assistant's messages with fields of its own. The tool is called between two answers."""
    shown = await run(gateway.url, api, LOOKING, ASKED)
    assert shown == {"texts": [[words(2) * 2, words(2)], [words(40)] * 2], "ran": ["the sky"]}


@pytest.mark.proves("openai-chat", "raises after a cut, and shows no word twice", AGENTS)
@pytest.mark.proves("openai-responses", "raises after a cut, and shows no word twice", AGENTS)
@pytest.mark.parametrize("api", ["chat_completions", "responses"])
async def test_a_cut_is_an_error(gateway: Gateway, api: str) -> None:
    """As its author has it: the SDK does not continue a stream. The one turn that was paid for is complete."""
    async with Cutting(gateway.port, [Cut(5_000)]) as proxy:
        shown = await run(proxy.url, api, ASKED)
    assert proxy.left == []
    assert "error" in shown, shown
    assert words(40).startswith(shown["text"])
    (session,) = (await gateway.client.get("/v1/sessions")).json()["data"]
    (turn,) = (await gateway.client.get(f"/v1/sessions/{session['session']}/turns")).json()["turns"]
    answer = await gateway.client.get(f"/v1/turns/{turn['turn']}/events?dialect=text")
    assert answer.text == words(40)
