"""POST /v1/chat/completions with OpenAI's JavaScript SDK."""

import pytest

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway


@pytest.mark.proves("openai-chat", "answer as one JSON body", "openai (Node)")
@pytest.mark.proves("openai-chat", "tools", "openai (Node)")
@pytest.mark.proves("openai-chat", "errors before the first event", "openai (Node)")
@pytest.mark.proves("openai-chat", "errors during the stream", "openai (Node)")
async def test_the_sdk_for_javascript_reads_answers_tools_and_errors(gateway: Gateway) -> None:
    """In one process: a JSON body, a stream with usage, a tool that the SDK runs, both kinds of errors."""
    whole, streamed, tools, refused, failed = await node.run("openai-chat.mjs", KEY, gateway.url)
    for shown in (whole, streamed):
        turn = shown.pop("id").removeprefix("chatcmpl-")
        assert shown.pop("text") == words(5) == await read_stored_text(gateway, turn)
    assert (whole, streamed) == ({"usage": 5}, {"usage": 5})
    assert tools == {"text": words(2), "ran": ["the sky"], "roles": ["user", "assistant", "tool", "assistant"]}
    assert refused == {"error": "InternalServerError", "status": 529, "code": "backend_overloaded"}
    assert failed == {"error": "APIError", "code": "interrupted", "text": words(5)}
