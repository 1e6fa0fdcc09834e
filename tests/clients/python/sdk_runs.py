"""Runs streamed answers with the SDKs of this Python: `sdk_runs.py URL KEY GATEWAYS RUNS QUESTION KIND…`.

Prints a JSON line for each of RUNS runs of each kind; all kinds run at the same time. GATEWAYS: the other gateways of
Tailrace's transport, with commas; `-` for none, and `plain` for the transport of the SDK. `sdk_runs.py` alone prints
the versions of the SDKs and of their HTTP libraries.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from tailrace import AsyncResumingTransport, ResumingTransport

url, key, gateways, runs, question, *kinds = sys.argv[1:] or [""] * 5
MODEL = "claude-haiku-5-5"
MESSAGES: Any = [{"role": "user", "content": question}]
Ran = tuple[str, list[str]]
"""The text of an answer, and the calls of tools."""


def client_of(sdk: Any, *, blocking: bool = False) -> Any:
    """Returns the HTTP client of an SDK, as docs/PYTHON.md has it; that of langchain-openai has OpenAI's SDK."""
    given: dict[str, Any] = {}
    if gateways != "plain":
        others = [] if gateways == "-" else gateways.split(",")
        given["transport"] = (ResumingTransport if blocking else AsyncResumingTransport)(gateways=others)
    return (sdk.DefaultHttpxClient if blocking else sdk.DefaultAsyncHttpxClient)(**given)


async def anthropic_stream() -> Ran:
    import anthropic

    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key=key, http_client=client_of(anthropic)) as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=500, messages=MESSAGES) as stream,
    ):
        return await stream.get_final_text(), []


def anthropic_blocking() -> Ran:
    import anthropic

    http = client_of(anthropic, blocking=True)
    with anthropic.Anthropic(base_url=url, api_key=key, http_client=http) as sdk:
        events = sdk.messages.create(model=MODEL, max_tokens=500, messages=MESSAGES, stream=True)
        deltas = [event.delta for event in events if event.type == "content_block_delta"]
        return "".join(delta.text for delta in deltas if delta.type == "text_delta"), []


async def openai_chat() -> Ran:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, http_client=client_of(openai)) as sdk:
        stream = await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), []


def openai_blocking() -> Ran:
    import openai

    http = client_of(openai, blocking=True)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http) as sdk:
        events = list(sdk.responses.create(model=MODEL, input=question, stream=True))
        return "".join(event.delta for event in events if event.type == "response.output_text.delta"), []


async def _agents(model_type: Any) -> Ran:
    import agents
    import openai

    agents.set_tracing_disabled(True)
    calls: list[str] = []

    @agents.function_tool
    def look(query: str) -> str:
        """Looks."""
        calls.append(query)
        return "Stars."

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, http_client=client_of(openai)) as sdk:
        agent = agents.Agent(name="Reader", model=model_type(model=MODEL, openai_client=sdk), tools=[look])
        result: Any = agents.Runner.run_streamed(agent, f'{question} tool=look json={{"query":"the sky"}}')
        async for _ in result.stream_events():
            pass
        return result.final_output, calls


async def agents_chat() -> Ran:
    import agents

    return await _agents(agents.OpenAIChatCompletionsModel)


async def agents_responses() -> Ran:
    import agents

    return await _agents(agents.OpenAIResponsesModel)


def _chat_anthropic() -> Any:
    """Returns the model of the examples; without Tailrace's transport, LangChain's own."""
    import langchain_anthropic

    from examples.langchain_transport import ResumingChatAnthropic

    kind: Any = langchain_anthropic.ChatAnthropic if gateways == "plain" else ResumingChatAnthropic
    return kind(base_url=url, api_key=key, model=MODEL, max_tokens=500)


async def langchain_anthropic_stream() -> Ran:
    return "".join([chunk.text async for chunk in _chat_anthropic().astream(question)]), []


def langchain_anthropic_blocking() -> Ran:
    return "".join(chunk.text for chunk in _chat_anthropic().stream(question)), []


async def langchain_openai_stream() -> Ran:
    import openai
    from langchain_openai import ChatOpenAI

    clients = {"http_client": client_of(openai, blocking=True), "http_async_client": client_of(openai)}
    model = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=MODEL, **clients)
    return "".join([chunk.text async for chunk in model.astream(question)]), []


KINDS: dict[str, Callable[[], Awaitable[Ran] | Ran]] = {
    "anthropic": anthropic_stream,
    "anthropic, blocking": anthropic_blocking,
    "openai, chat": openai_chat,
    "openai, responses, blocking": openai_blocking,
    "openai-agents, chat": agents_chat,
    "openai-agents, responses": agents_responses,
    "langchain-anthropic": langchain_anthropic_stream,
    "langchain-anthropic, blocking": langchain_anthropic_blocking,
    "langchain-openai": langchain_openai_stream,
}


async def run(kind: str) -> dict[str, Any]:
    try:
        work = KINDS[kind]
        text, calls = await (work() if asyncio.iscoroutinefunction(work) else asyncio.to_thread(work))
    except Exception as error:  # noqa: BLE001  # each SDK and framework has its own
        return {"kind": kind, "error": type(error).__name__, "calls": []}
    return {"kind": kind, "text": text, "calls": calls}


async def run_all(kind: str) -> None:
    for _ in range(int(runs)):
        print(json.dumps(await run(kind)), flush=True)


def library_of(sdk: str) -> str:
    """Returns the name and the version of the HTTP library of an SDK."""
    name = __import__(sdk).DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
    return f"{name} {version(name)}"


async def main() -> None:
    await asyncio.gather(*map(run_all, kinds))


if url:
    asyncio.run(main())
else:
    print(json.dumps({sdk: [version(sdk), library_of(sdk)] for sdk in ("anthropic", "openai")}))
