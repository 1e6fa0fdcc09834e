"""Prints the answers of a framework, each a JSON string: `python answers.py URL KEY FRAMEWORK [MODE QUESTION]…`.

Runs in .venv-clients, with the versions of locks/clients.lock. A framework is imported when it is used: the
imports take longer than the answers.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pydantic

MODEL = "claude-sonnet-5-5"


class River(pydantic.BaseModel):
    river: str
    km: int


def instructor_openai(url: str, key: str, mode: str, question: str) -> str:
    import instructor
    import openai

    sdk = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    sdk._idempotency_header = "Idempotency-Key"  # noqa: SLF001  # the SDK has no option for it
    client = instructor.from_openai(sdk, mode=instructor.Mode[mode])
    river = client.chat.completions.create(
        model=MODEL, response_model=River, messages=[{"role": "user", "content": question}]
    )
    return river.model_dump_json()


def instructor_anthropic(url: str, key: str, mode: str, question: str) -> str:
    import anthropic
    import instructor

    client = instructor.from_anthropic(anthropic.Anthropic(base_url=url, api_key=key), mode=instructor.Mode[mode])
    river = client.messages.create(
        model=MODEL,
        max_tokens=500,
        response_model=River,
        messages=[{"role": "user", "content": question}],
    )
    return river.model_dump_json()


def llama_index(url: str, key: str, mode: str, question: str) -> str:
    import httpx
    from llama_index.llms.openai import OpenAI

    # LlamaIndex knows the limits of OpenAI's models only, so it needs one of their names.
    model = OpenAI(model="gpt-4o", api_base=f"{url}/v1", api_key=key)
    if mode == "structured":
        return model.as_structured_llm(River).complete(question).raw.model_dump_json()
    if mode == "stream":
        return "".join(piece.delta or "" for piece in model.stream_complete(question))
    if mode == "cut":
        shown = ""
        try:
            for piece in model.stream_complete(question):
                shown += piece.delta or ""
        except httpx.TransportError:
            return shown
        raise AssertionError("the cut was not seen")
    return model.complete(question).text


def openai_agents(url: str, key: str, mode: str, question: str) -> str:
    """Returns the final output, and the calls of built-in tools. `mode`: `run` or `stream`."""
    import agents
    import openai

    agents.set_tracing_disabled(True)
    server: Any = {
        "type": "mcp",
        "server_label": "simulated",
        "server_url": "https://mcp.example/mcp",
        "require_approval": "never",
    }
    code: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
    tools: list[Any] = [
        agents.WebSearchTool(),
        agents.CodeInterpreterTool(tool_config=code),
        agents.HostedMCPTool(tool_config=server),
    ]

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as sdk:
            model = agents.OpenAIResponsesModel(model=MODEL, openai_client=sdk)
            agent = agents.Agent(name="Reader", model=model, tools=tools)
            result: Any
            if mode == "run":
                result = await agents.Runner.run(agent, question)
            else:
                result = agents.Runner.run_streamed(agent, question)
                async for _ in result.stream_events():
                    pass
            # The conversation goes on with all items of the first answer.
            await agents.Runner.run(
                agent, [*result.to_input_list(), {"role": "user", "content": "#sim words=1 rate=0"}]
            )
        calls = [item.raw_item.type for item in result.new_items if item.type == "tool_call_item"]
        return json.dumps({"output": result.final_output, "calls": calls})

    return asyncio.run(ask())


FRAMEWORKS: dict[str, Callable[[str, str, str, str], str]] = {
    "instructor-openai": instructor_openai,
    "instructor-anthropic": instructor_anthropic,
    "llama-index": llama_index,
    "openai-agents": openai_agents,
}

if __name__ == "__main__":
    url, key, framework, *arguments = sys.argv[1:]
    for mode, question in zip(arguments[::2], arguments[1::2], strict=True):
        # Libraries print, too.
        with redirect_stdout(sys.stderr):
            answer = FRAMEWORKS[framework](url, key, mode, question)
        print(json.dumps(answer))
