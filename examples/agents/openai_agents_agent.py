"""An agent on OpenAI's Agents SDK that can be killed at any time, and pays for no call twice.

    python openai_agents_agent.py RUN "How deep is the Rhine?"

Started again with the same RUN, it makes the same calls. Tailrace answers those that have ended from its log, and
attaches the one that was running: nothing is paid again, and no word is lost. docs/AGENTS.md explains it.

It needs `pip install openai-agents httpx`, and a gateway at TAILRACE_URL (default: http://127.0.0.1:8000).
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
import openai
from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from agents.tool_context import ToolContext

if len(sys.argv) != 3:
    raise SystemExit(__doc__)
RUN, TASK = sys.argv[1:]
RESULTS = Path(f"{RUN}.tools.json")
TRIES_MAX = 30

client = openai.AsyncOpenAI(
    base_url=os.environ.get("TAILRACE_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TAILRACE_KEY", "none"),
    # This line is all that Tailrace needs: equal requests are one turn, which is paid once.
    default_headers={"Idempotency-Key": "auto"},
    max_retries=TRIES_MAX,
)
set_default_openai_client(client, use_for_tracing=False)
set_tracing_disabled(True)  # traces would go to OpenAI


@function_tool
def measure_depth(context: ToolContext, river: str) -> str:
    """Measures the depth of a river in metres.

    Each call is executed once. Its id is the same after a restart, because the answer comes from the log.
    """
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if context.tool_call_id not in results:
        print(f"\nmeasuring the depth of the {river}", file=sys.stderr)
        results[context.tool_call_id] = "7"  # here a real agent does its work
        part = RESULTS.with_suffix(".part")
        part.write_text(json.dumps(results))
        part.replace(RESULTS)
    return results[context.tool_call_id]


agent = Agent(
    name="surveyor",
    model="claude-sonnet-5-5",
    tools=[measure_depth],
    # Another run asks anew, even with the same question.
    model_settings=ModelSettings(max_tokens=2000, metadata={"run": RUN}),
)


async def main() -> None:
    for _ in range(TRIES_MAX):
        try:
            run = Runner.run_streamed(agent, TASK)
            async for event in run.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    print(event.data.delta, end="", file=sys.stderr, flush=True)
        # OpenAI's SDK before 3 raises the errors of httpx when a stream is cut; it does not install httpx from 3 on.
        except (openai.APIConnectionError, httpx.TransportError):
            await asyncio.sleep(1)  # the same calls attach to the same turns
        else:
            print(run.final_output)
            return
    raise SystemExit("the gateway does not answer")


asyncio.run(main())
