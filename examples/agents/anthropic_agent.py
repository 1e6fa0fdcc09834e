"""An agent on Anthropic's SDK that can be killed at any time, and pays for no call twice.

    python anthropic_agent.py RUN "How deep is the river?"

Started again with the same RUN, it makes the same calls. Tailrace answers those that have ended from its log, and
attaches the one that was running: nothing is paid again, and no word is lost. docs/AGENTS.md explains it.

It needs `pip install anthropic`, and a gateway at TAILRACE_URL (default: http://127.0.0.1:8000).
"""

import json
import os
import sys
import time
from pathlib import Path

import anthropic
import httpx2

if len(sys.argv) != 3:
    raise SystemExit(__doc__)
RUN, TASK = sys.argv[1:]
RESULTS = Path(f"{RUN}.tools.json")
TOOL = {
    "name": "measure_depth",
    "description": "Measures the depth of a river in metres.",
    "input_schema": {"type": "object", "properties": {"river": {"type": "string"}}},
}
TRIES_MAX = 30

client = anthropic.Anthropic(
    base_url=os.environ.get("TAILRACE_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("TAILRACE_KEY", "none"),
    # This line is all that Tailrace needs: equal requests are one turn, which is paid once.
    default_headers={"Idempotency-Key": "auto"},
    max_retries=TRIES_MAX,
)


def call(messages: list) -> anthropic.types.Message:
    """Returns the model's answer, also if the connection is lost or the gateway restarts in the middle."""
    for _ in range(TRIES_MAX):
        try:
            with client.messages.stream(
                model="claude-sonnet-5-5",
                max_tokens=2000,
                messages=messages,
                tools=[TOOL],
                # Another run asks anew, even with the same question.
                metadata={"user_id": RUN},
            ) as stream:
                for text in stream.text_stream:
                    print(text, end="", file=sys.stderr, flush=True)
                return stream.get_final_message()
        except (anthropic.APIConnectionError, httpx2.TransportError):
            time.sleep(1)  # the same request attaches to the same turn
    raise SystemExit("the gateway does not answer")


def use_tool(block: anthropic.types.ToolUseBlock) -> str:
    """Returns the result of a tool call, which is executed once.

    The id of a call is the same after a restart, because the answer comes from the log.
    """
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if block.id not in results:
        print(f"\nmeasuring the depth of the {block.input['river']}", file=sys.stderr)
        results[block.id] = "7"  # here a real agent does its work
        part = RESULTS.with_suffix(".part")
        part.write_text(json.dumps(results))
        part.replace(RESULTS)
    return results[block.id]


messages: list = [{"role": "user", "content": TASK}]
while True:
    answer = call(messages)
    messages.append({"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]})
    if answer.stop_reason != "tool_use":
        break
    used = [block for block in answer.content if block.type == "tool_use"]
    messages.append(
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": one.id, "content": use_tool(one)} for one in used],
        }
    )
print("".join(block.text for block in answer.content if block.type == "text"))
