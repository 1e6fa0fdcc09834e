"""Hosted tools of OpenAI's Agents SDK, whose run is repeated after each fault: `python hosted_tools.py KEY`.

For each line of stdin, `{"url": …, "question": …}`, prints the id, the items and the text of the response; a message is
its text. Runs in .venv-clients.
"""

import asyncio
import json
import sys
from typing import Any

import agents
import openai

TRIES_MAX = 20
SERVER: Any = {
    "type": "mcp",
    "server_label": "simulated",
    "server_url": "https://mcp.example/mcp",
    "require_approval": "never",
}
CODE: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
TOOLS: list[Any] = [
    agents.WebSearchTool(),
    agents.CodeInterpreterTool(tool_config=CODE),
    agents.HostedMCPTool(tool_config=SERVER),
]


def readable(item: Any) -> Any:
    return "".join(part.text for part in item.content) if item.type == "message" else item.model_dump(mode="json")


async def ask(key: str, url: str, question: str) -> dict[str, Any] | None:
    # The SDK cannot resume a stream, so the run is repeated: its request has the same key.
    headers = {"Idempotency-Key": "auto"}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, default_headers=headers) as sdk:
        model = agents.OpenAIResponsesModel(model="claude-haiku-5-5", openai_client=sdk)
        agent = agents.Agent(name="Reader", model=model, tools=TOOLS)
        for _ in range(TRIES_MAX):
            try:
                result = agents.Runner.run_streamed(agent, question)
                async for _ in result.stream_events():
                    pass
            except Exception:  # noqa: BLE001  # of many kinds: of httpx, the SDK and the Agents SDK
                continue
            (response,) = result.raw_responses
            items = [readable(item) for item in response.output]
            # The final output of the SDK is the last message only.
            text = "".join(one for one in items if isinstance(one, str))
            return {"id": response.response_id, "items": items, "text": text}
    return None


async def main(key: str) -> None:
    agents.set_tracing_disabled(True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(await ask(key, asked["url"], asked["question"])), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
