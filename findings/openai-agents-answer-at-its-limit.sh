#!/usr/bin/env bash
# OpenAI's Agents SDK: an answer at its limit is the final output with chat completions, and fails the run with Responses.
#
# Guessed:  both protocols give the text so far, or both raise: it is the same agent.
# Version:  openai-agents 0.24.0, openai 3.57.0 (Python).
# Seen:     Runner.run_streamed(); the model sends "One two", and ends with
#                                          OpenAIChatCompletionsModel   OpenAIResponsesModel
#               the limit of tokens        final output "One two"       ModelBehaviorError
#               its content filter         final output "One two"       ModelBehaviorError
#               a reason of the server     final output "One two"       ModelBehaviorError
#           With chat completions, the result does not say that the answer is not whole. With Responses, the usage of the run
#           has 0 input tokens, although the server has sent its counts.
# Meets:    agents that move from one protocol to the other, and that store the final output.
# Tailrace: Ends an answer at a limit, and a refused, steered or cancelled one, with `response.incomplete`: docs/PROGRAMS.md names
#           the error.
# Exits non-zero if this changes, and 77 if a version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'openai-agents==0.24.0' 'openai==3.57.0' <<'PYTHON'
import asyncio
import json
import logging

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, set_tracing_disabled
from messages_api import serve
from openai import AsyncOpenAI

logging.disable(logging.CRITICAL)
set_tracing_disabled(True)
USAGE = {
    "input_tokens": 7,
    "output_tokens": 2,
    "total_tokens": 9,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
TEXT = {"type": "output_text", "text": "One two", "annotations": []}
# The name of the model chooses the end: `finish_reason`, and type, status and reason of the last event.
ENDS = {
    "whole": ("stop", "completed", None),
    "limit": ("length", "incomplete", "max_output_tokens"),
    "filter": ("content_filter", "incomplete", "content_filter"),
    "server": ("server_reason", "incomplete", "server_reason"),
}


def chunk(delta, finish_reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def response(status, reason=None, **fields):
    fixed = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {**fixed, "status": status, "output": [], "incomplete_details": reason and {"reason": reason}, "usage": None, **fields}


def answer(body, headers):
    del headers
    finish_reason, status, reason = ENDS[body["model"]]
    if "messages" in body:
        chunks = [chunk({"role": "assistant", "content": "One two"}), chunk({}, finish_reason)]
        frames = [*(f"data: {json.dumps(one)}\n\n" for one in chunks), "data: [DONE]\n\n"]
    else:
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": [TEXT]}
        events = [
            {"type": "response.created", "response": response("in_progress")},
            {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": "One two", "logprobs": []},
            {"type": f"response.{status}", "response": response(status, reason, output=[item], usage=USAGE)},
        ]
        frames = [f"event: {one['type']}\ndata: {json.dumps({**one, 'sequence_number': number})}\n\n" for number, one in enumerate(events)]
    return 200, {"content-type": "text/event-stream"}, "".join(frames).encode()


async def run(model):
    result = Runner.run_streamed(Agent(name="a", model=model), "hi")
    try:
        async for _ in result.stream_events():
            pass
    except Exception as error:
        return f"{type(error).__name__}, input tokens {result.context_wrapper.usage.input_tokens}"
    return f"final output {result.final_output}"


async def main():
    client = AsyncOpenAI(base_url=serve(answer) + "/v1", api_key="k", max_retries=0)
    kinds = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
    return {f"{name} {end}": await run(kind(model=end, openai_client=client)) for name, kind in kinds.items() for end in ENDS}


seen = asyncio.run(main())
print("\n".join(f"{name}: {found}" for name, found in seen.items()))
failed = {f"responses {end}" for end in ENDS if end != "whole"}
assert all(found == ("ModelBehaviorError, input tokens 0" if name in failed else "final output One two") for name, found in seen.items())
PYTHON
