"""Runs openai-agents, streamed, over both protocols: `resuming_agents.py URL KEY GATEWAYS RUNS QUESTION`.

Prints a JSON line for each of RUNS runs over each protocol. GATEWAYS: the other gateways of Tailrace's transport, with
commas; `-` for none, and `plain` for the transport of httpx.
"""

import asyncio
import json
import sys
from typing import Any

import agents
import httpx
import openai

from tailrace import AsyncResumingTransport

url, key, gateways, runs, question = sys.argv[1:]
MODELS = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}


def new_transport() -> Any:
    if gateways == "plain":
        return httpx.AsyncHTTPTransport()
    others = [] if gateways == "-" else gateways.split(",")
    return AsyncResumingTransport(httpx.AsyncHTTPTransport(), gateways=others)


async def run(kind: str) -> dict[str, Any]:
    calls: list[str] = []

    @agents.function_tool
    def look(query: str) -> str:
        """Looks."""
        calls.append(query)
        return "Stars."

    http = httpx.AsyncClient(transport=new_transport())
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, http_client=http) as sdk:
        model = MODELS[kind](model="claude-haiku-5-5", openai_client=sdk)
        agent = agents.Agent(name="Reader", model=model, tools=[look])
        result: Any = agents.Runner.run_streamed(agent, question)
        try:
            async for _ in result.stream_events():
                pass
        except Exception as error:  # noqa: BLE001  # of two SDKs
            return {"kind": kind, "error": type(error).__name__, "calls": calls}
    return {"kind": kind, "text": result.final_output, "calls": calls}


async def run_all(kind: str) -> None:
    for _ in range(int(runs)):
        print(json.dumps(await run(kind)), flush=True)


async def main() -> None:
    await asyncio.gather(*map(run_all, MODELS))


agents.set_tracing_disabled(True)
asyncio.run(main())
