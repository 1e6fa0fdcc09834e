"""POST /v1/chat/completions with OpenAI's JavaScript SDK."""

import asyncio

import pytest

from tests.clients import node
from tests.clients.conftest import Takeover, told
from tests.harness.cutting_proxy import Cutting, seeded
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway


@pytest.mark.proves("openai-chat", "answer as one JSON body", "openai (Node)")
@pytest.mark.proves("openai-chat", "stream", "openai (Node)")
@pytest.mark.proves("openai-chat", "tools", "openai (Node)")
@pytest.mark.proves("openai-chat", "errors before the first event", "openai (Node)")
@pytest.mark.proves("openai-chat", "errors during the stream", "openai (Node)")
@pytest.mark.proves("openai-chat", "resumes after cuts", "openai (Node)")
async def test_openais_sdk_for_javascript(gateway: Gateway) -> None:
    """One process asks in every way: whole, streamed, with a tool that it runs itself, for errors, and through cuts."""
    async with Cutting(gateway.port, seeded(5, 4, bytes_min=1400, bytes_max=3200)) as proxy:
        whole, streamed, tools, refused, failed, resumed = await node.run(
            "openai-chat.mjs", KEY, gateway.url, proxy.url
        )
        assert proxy.left == []
    for shown, text in ((whole, words(5)), (streamed, words(5)), (resumed, words(40))):
        turn = shown.pop("id").removeprefix("chatcmpl-")
        assert shown.pop("text") == text == await told(gateway, turn)
    assert (whole, streamed, resumed) == ({"usage": 5}, {"usage": 5}, {"cuts": 4, "end": "stop"})
    assert tools == {"text": words(2), "ran": ["the sky"], "roles": ["user", "assistant", "tool", "assistant"]}
    assert refused == {"error": "InternalServerError", "status": 529, "code": "backend_overloaded"}
    assert failed == {"error": "APIError", "code": "interrupted", "text": words(5)}


@pytest.mark.proves("openai-chat", "generator killed during the answer", "openai (Node)")
async def test_killed_generator_is_hidden(takeover: Takeover) -> None:
    """Its accumulator has the whole answer, and so has who adds up the chunks."""
    line = "#sim words=40 rate=100"
    asking = asyncio.create_task(node.run("openai-chat-lasting.mjs", KEY, takeover.gateway.url, line))
    async with takeover.killed_after(15):
        (shown,) = await asking
    turn = shown.pop("id").removeprefix("chatcmpl-")
    assert shown == {"text": words(40), "whole": words(40), "finish": "stop"}
    assert await told(takeover.gateway, turn) == words(40)
