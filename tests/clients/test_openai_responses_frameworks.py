"""LangChain and pydantic-ai with /v1/responses: smoke tests."""

from typing import Any

import httpx2
import pydantic
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.structured_answer import ANSWERED, RHINE, River
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway

MODEL = "claude-haiku-5-5"
DIALECT = "openai-responses"
LOOKING = '#sim words=2 rate=0 thinking=2 tool=look json={"query":"the sky"}'


@pytest.mark.proves(DIALECT, "stream with tools and structured output", "LangChain")
async def test_langchain(gateway: Gateway, connections: httpx2.AsyncClient) -> None:
    """Streams, sends a tool result with the conversation, and reads an answer that fits a schema."""
    model = ChatOpenAI(
        model=MODEL,
        base_url=f"{gateway.url}/v1",
        api_key=pydantic.SecretStr(KEY),
        max_retries=0,
        use_responses_api=True,
        http_async_client=connections,
    )
    pieces = [piece async for piece in model.astream("#sim words=5 rate=0")]
    assert "".join(piece.text for piece in pieces) == words(5)

    @tool
    def look(query: str) -> str:
        """Looks."""
        return query

    called = await model.bind_tools([look]).ainvoke(LOOKING)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("look", {"query": "the sky"})]
    conversation = [HumanMessage(LOOKING), called, await look.ainvoke(called.tool_calls[0])]
    assert (await model.bind_tools([look]).ainvoke(conversation)).text == words(2)
    structured: Any = model.with_structured_output(River, method="json_schema")
    assert await structured.ainvoke(ANSWERED) == RHINE


@pytest.mark.proves(DIALECT, "stream with tools", "pydantic-ai")
async def test_pydantic_ai(gateway: Gateway, connections: httpx2.AsyncClient) -> None:
    """An agent with a tool in a conversation, streamed."""
    provider = OpenAIProvider(base_url=f"{gateway.url}/v1", api_key=KEY, http_client=connections)
    agent = Agent(OpenAIResponsesModel(MODEL, provider=provider), instructions="Be brief.")
    asked: list[str] = []

    @agent.tool_plain
    def look(query: str) -> str:
        asked.append(query)
        return "Stars."

    ran = await agent.run(LOOKING)
    assert (ran.output, asked) == (words(2), ["the sky"])
    async with agent.run_stream("#sim words=5 rate=0") as stream:
        assert "".join([piece async for piece in stream.stream_text(delta=True, debounce_by=None)]) == words(5)
