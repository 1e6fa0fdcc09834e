"""LangChain and pydantic-ai with /v1/chat/completions and /v1/responses: smoke tests.

The default model has neither forced tool calls nor JSON mode. Each test imports its framework itself: at the top, each
worker would import all of them, for seconds.
"""

from typing import Any

import httpx2
import pydantic
import pytest

from tests.clients.structured_answer import ANSWERED, RHINE, River
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway

MODEL = "claude-sonnet-5-5"
LOOKING = '#sim words=2 rate=0 thinking=2 tool=look json={"query":"the sky"}'
ALL = "stream with tools and structured output"


@pytest.mark.proves("openai-chat", ALL, "LangChain")
@pytest.mark.proves("openai-responses", ALL, "LangChain")
@pytest.mark.proves("openai-chat", "forced tool calls and JSON mode", "LangChain")
@pytest.mark.parametrize("options", [{"stream_usage": True}, {"use_responses_api": True}], ids=["chat", "responses"])
async def test_langchain(gateway: Gateway, connections: httpx2.AsyncClient, options: dict[str, Any]) -> None:
    """Streams with usage, sends a tool result with the conversation, and reads an answer that fits a schema."""
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    key = pydantic.SecretStr(KEY)
    url = f"{gateway.url}/v1"
    model = ChatOpenAI(model=MODEL, base_url=url, api_key=key, http_async_client=connections, **options)
    pieces = [piece async for piece in model.astream("#sim words=5 rate=0")]
    assert "".join(piece.text for piece in pieces) == words(5)
    assert [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata] == [5]

    @tool
    def look(query: str) -> str:
        """Looks."""
        return query

    called = await model.bind_tools([look]).ainvoke(LOOKING)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("look", {"query": "the sky"})]
    conversation = [HumanMessage(LOOKING), called, await look.ainvoke(called.tool_calls[0])]
    assert (await model.bind_tools([look]).ainvoke(conversation)).text == words(2)
    methods: tuple[Any, ...] = ("json_schema", "function_calling", "json_mode")
    for method in methods:
        structured: Any = model.with_structured_output(River, method=method)
        assert await structured.ainvoke(ANSWERED) == RHINE, method


@pytest.mark.proves("openai-chat", "stream with tools", "pydantic-ai")
@pytest.mark.proves("openai-responses", "stream with tools", "pydantic-ai")
@pytest.mark.proves("openai-chat", "forced tool calls", "pydantic-ai")
@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
async def test_pydantic_ai(gateway: Gateway, connections: httpx2.AsyncClient, kind: str) -> None:
    """An agent with a tool in a conversation, streamed. `output_type` is a forced call of one function."""
    from pydantic_ai import Agent
    from pydantic_ai.models import openai as models
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{gateway.url}/v1", api_key=KEY, http_client=connections)
    model = getattr(models, kind)(MODEL, provider=provider)
    agent = Agent(model, instructions="Be brief.")
    calls: list[str] = []

    @agent.tool_plain
    def look(query: str) -> str:
        calls.append(query)
        return "Stars."

    ran = await agent.run(LOOKING)
    assert (ran.output, calls) == (words(2), ["the sky"])
    async with agent.run_stream("#sim words=5 rate=0") as stream:
        assert "".join([piece async for piece in stream.stream_text(delta=True, debounce_by=None)]) == words(5)
        assert await stream.get_output() == words(5)
    parsing = Agent(model, output_type=River)
    assert (await parsing.run(ANSWERED)).output == RHINE
    async with parsing.run_stream(ANSWERED) as parsed:
        assert await parsed.get_output() == RHINE
