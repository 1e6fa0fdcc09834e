"""Runs of SDKs and frameworks whose streamed answers are cut: each returns its text and what it has called.

A run asks at `url`, with a transport of Tailrace, or with that of httpx2.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx2
from anthropic import Anthropic, AsyncAnthropic, beta_async_tool
from anyio import to_thread
from openai import AsyncOpenAI, OpenAI

from tests.clients.openai_chat import MODEL, event_text, text_of, user_message
from tests.integration.conftest import KEY

CALLED = ["the sky"]
WITH_TOOL = ' tool=look json={"query":"the sky"}'


class Outcome(NamedTuple):
    text: str
    calls: list[str]


Run = Callable[[str, Any, str], Awaitable[Outcome]]
"""A run at a URL, over a transport of `httpx2.AsyncClient` or, of blocking runs, `httpx2.Client`, with a question."""


async def messages_stream(url: str, transport: Any, line: str) -> Outcome:
    async with AsyncAnthropic(base_url=url, api_key=KEY, http_client=httpx2.AsyncClient(transport=transport)) as sdk:
        given: Any = {"model": MODEL, "max_tokens": 500, "messages": user_message(line)}
        async with sdk.messages.stream(**given) as stream:
            pieces = [piece async for piece in stream.text_stream]
            assert (await stream.get_final_text()) == "".join(pieces)
    return Outcome("".join(pieces), [])


async def blocking_messages_stream(url: str, transport: Any, line: str) -> Outcome:
    def run() -> str:
        with (
            Anthropic(base_url=url, api_key=KEY, http_client=httpx2.Client(transport=transport)) as sdk,
            sdk.messages.stream(model=MODEL, max_tokens=500, messages=user_message(line)) as stream,  # type: ignore[arg-type]
        ):
            return stream.get_final_text()

    return Outcome(await to_thread.run_sync(run), [])


async def tool_runner(url: str, transport: Any, line: str) -> Outcome:
    calls: list[str] = []

    @beta_async_tool
    async def look(query: str) -> str:
        """Looks.

        Args:
            query: What to look at.
        """
        calls.append(query)
        return "Stars."

    text = ""
    async with AsyncAnthropic(base_url=url, api_key=KEY, http_client=httpx2.AsyncClient(transport=transport)) as sdk:
        given: Any = {"model": MODEL, "max_tokens": 500, "messages": user_message(line + WITH_TOOL)}
        runner = sdk.beta.messages.tool_runner(**given, tools=[look], stream=True)
        async for stream in runner:
            text = ""
            async for event in stream:
                if event.type == "text":
                    text += event.text
    return Outcome(text, calls)


async def chat_completions(url: str, transport: Any, line: str) -> Outcome:
    http = httpx2.AsyncClient(transport=transport)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=http) as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=user_message(line), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason) == 1
    return Outcome(text_of(chunks), [])


async def responses(url: str, transport: Any, line: str) -> Outcome:
    http = httpx2.AsyncClient(transport=transport)
    async with (
        AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=http) as sdk,
        sdk.responses.stream(model=MODEL, input=line) as stream,
    ):
        events = [event async for event in stream]
        assert (await stream.get_final_response()).output_text == event_text(events)
        assert [event.sequence_number for event in events] == list(range(len(events)))
    return Outcome(event_text(events), [])


async def blocking_responses(url: str, transport: Any, line: str) -> Outcome:
    def run() -> str:
        with OpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=httpx2.Client(transport=transport)) as sdk:
            return event_text(list(sdk.responses.create(model=MODEL, input=line, stream=True)))

    return Outcome(await to_thread.run_sync(run), [])


async def _pydantic_ai(model: Any, line: str) -> Outcome:
    from pydantic_ai import Agent  # its import takes a second

    agent, calls = Agent(model, instructions="Be brief."), list[str]()

    @agent.tool_plain
    def look(query: str) -> str:
        calls.append(query)
        return "Stars."

    async def read(_: Any, events: Any) -> None:
        """Makes the agent stream its answers."""
        async for _event in events:
            pass

    ran = await agent.run(line + WITH_TOOL, event_stream_handler=read)
    return Outcome(ran.output, calls)


async def pydantic_ai_chat(url: str, transport: Any, line: str) -> Outcome:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with httpx2.AsyncClient(transport=transport) as http:
        provider = OpenAIProvider(base_url=f"{url}/v1", api_key=KEY, http_client=http)
        return await _pydantic_ai(OpenAIChatModel("claude-haiku-5-5", provider=provider), line)


async def pydantic_ai_responses(url: str, transport: Any, line: str) -> Outcome:
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with httpx2.AsyncClient(transport=transport) as http:
        provider = OpenAIProvider(base_url=f"{url}/v1", api_key=KEY, http_client=http)
        return await _pydantic_ai(OpenAIResponsesModel("claude-haiku-5-5", provider=provider), line)


async def pydantic_ai_messages(url: str, transport: Any, line: str) -> Outcome:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    async with AsyncAnthropic(base_url=url, api_key=KEY, http_client=httpx2.AsyncClient(transport=transport)) as sdk:
        return await _pydantic_ai(AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=sdk)), line)


RUNS: dict[str, Run] = {
    "messages.stream": messages_stream,
    "messages.stream, blocking": blocking_messages_stream,
    "tool_runner": tool_runner,
    "chat completions": chat_completions,
    "responses": responses,
    "responses, blocking": blocking_responses,
    "pydantic-ai, messages": pydantic_ai_messages,
    "pydantic-ai, chat": pydantic_ai_chat,
    "pydantic-ai, responses": pydantic_ai_responses,
}
BLOCKING = ("messages.stream, blocking", "responses, blocking")
TWO_TURNS = ("tool_runner", "pydantic-ai, messages", "pydantic-ai, chat", "pydantic-ai, responses")
"""The runs whose first answer calls the tool, so that there is a second one."""
