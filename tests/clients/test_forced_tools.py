"""Forced tool calls and JSON mode of SDKs, with the default model, which has neither."""

from typing import Any

import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.clients.conftest import Takeover
from tests.clients.openai_chat import user_message
from tests.clients.structured_answer import ANSWERED, RHINE, River
from tests.integration.conftest import KEY, Gateway, on_shared_loop

MODEL = "claude-sonnet-5-5"
PARAMETERS = River.model_json_schema()
FUNCTION: Any = {"name": "River", "parameters": PARAMETERS}
TOOL: Any = {"name": "River", "input_schema": PARAMETERS}
ONE: Any = {"type": "function", "function": {"name": "River"}}
JSON = '{"river":"Rhine","km":1230}'
SEVERAL = f'#sim rate=0 thinking=2 json={{"name":"River","arguments":{JSON}}}'


@pytest.mark.rule("R77")
@pytest.mark.proves("openai-chat", "forced tool calls", "openai (Python)")
async def test_chat_completions_returns_a_forced_tool_call(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """As one body and as a stream, from any cursor on; of one function and of several."""
    for question, tool_choice in ((ANSWERED, ONE), (SEVERAL, "required")):
        other: Any = {"type": "function", "function": {"name": "other"}}
        tools: Any = [{"type": "function", "function": FUNCTION}, other]
        given: Any = {"model": MODEL, "messages": user_message(question), "tools": tools, "tool_choice": tool_choice}
        made = await sdk.chat.completions.create(**given)
        (call,) = made.choices[0].message.tool_calls or []
        assert (made.choices[0].finish_reason, made.choices[0].message.content) == ("tool_calls", None)
        assert (call.type, call.function.name, call.function.arguments) == ("function", "River", JSON)
        async with sdk.chat.completions.stream(**given) as stream:
            pieces = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
            completion = await stream.get_final_completion()
        (streamed,) = completion.choices[0].message.tool_calls or []
        assert (streamed.function.arguments, completion.choices[0].finish_reason) == (JSON, "tool_calls")
        assert pieces
        await require_same_bytes_from_any_cursor(gateway, completion.id.removeprefix("chatcmpl-"))


async def require_same_bytes_from_any_cursor(gateway: Gateway, turn: str) -> None:
    url = f"/v1/turns/{turn}/events?dialect=openai-chat"
    whole = (await gateway.client.get(url)).content
    frames = whole.split(b"\n\n")
    cursors = [(number, frame.rpartition(b'"cursor":')[2].rstrip(b"}")) for number, frame in enumerate(frames)]
    resumable = [(number, int(cursor)) for number, cursor in cursors if cursor.isdigit()]
    assert len(resumable) > 3
    for number, cursor in resumable[:-1]:
        rest = (await gateway.client.get(f"{url}&after={cursor}")).content
        assert rest == b"\n\n".join(frames[number + 1 :])


@pytest.mark.proves("openai-responses", "forced tool calls", "openai (Python)")
async def test_responses_returns_a_forced_tool_call(sdk: AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "strict": None, **FUNCTION}]
    given: Any = {"model": MODEL, "tools": tools, "tool_choice": "required", "input": ANSWERED}
    made = await sdk.responses.create(**given)
    assert [(item.name, item.arguments) for item in made.output if item.type == "function_call"] == [("River", JSON)]
    stream = await sdk.responses.create(**given, stream=True)
    deltas = [event.delta async for event in stream if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == JSON


@pytest.mark.proves("anthropic", "forced tool calls", "anthropic (Python)")
@pytest.mark.parametrize("text", [ANSWERED, ANSWERED.replace("rate=0", "rate=0 tool=River")])
async def test_messages_returns_a_forced_tool_call_and_accepts_its_result(gateway: Gateway, text: str) -> None:
    """Streamed and not, and then with the tool's result. One call, also of a model that would call the tool anyway."""
    async with AsyncAnthropic(base_url=gateway.url, api_key=KEY) as sdk:
        question = {"role": "user", "content": text}
        given: Any = {"model": MODEL, "max_tokens": 500, "tools": [TOOL], "messages": [question]}
        made = await sdk.messages.create(**given, tool_choice={"type": "any"})
        async with sdk.messages.stream(**given, tool_choice={"type": "any"}) as stream:
            streamed = await stream.get_final_message()
        calls: list[Any] = [*made.content, *streamed.content]
        assert [(call.type, call.name, call.input) for call in calls] == [("tool_use", "River", RHINE.model_dump())] * 2
        assert (made.stop_reason, streamed.stop_reason) == ("tool_use", "tool_use")
        result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": "Yes."}
        given["messages"] += [{"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
        assert (await sdk.messages.create(**given)).stop_reason == "end_turn"


@on_shared_loop
@pytest.mark.proves("openai-chat", "generator killed during a forced tool call", "openai (Python)")
async def test_a_takeover_restarts_a_forced_tool_call(takeover: Takeover) -> None:
    """The call of the second generator is whole, and its stream is that of any other call."""
    slow = ANSWERED.replace("rate=0", "rate=20")
    body = {"message": slow, "model": MODEL, "tools": [TOOL], "options": {"tool_choice": {"type": "any"}}}
    turn = (await takeover.gateway.client.post("/v1/turns", json=body)).json()["turn"]
    async with takeover.run_and_kill_after(4):
        content = (await takeover.gateway.client.get(f"/v1/turns/{turn}/events")).text
        record = (await takeover.gateway.client.get(f"/v1/turns/{turn}")).json()
    assert (record["outcome"], record["attempts"], record["schema_valid"]) == ("completed", 2, True)
    assert [block["input"] for block in record["content"]] == [RHINE.model_dump()]
    assert content.count('"type":"reset"') == 1
    await require_same_bytes_from_any_cursor(takeover.gateway, turn)


@pytest.mark.rule("R60")
@pytest.mark.proves("openai-chat", "JSON mode", "openai (Python)")
async def test_json_mode_returns_an_object(sdk: AsyncOpenAI) -> None:
    """An answer that is no object is requested once more. A stream then ends with an error: its text is not valid."""
    good, corrected = (f"#sim rate=0 {line} json={JSON}" for line in ("", "wrong=[1]"))
    given: Any = {"model": MODEL, "response_format": {"type": "json_object"}}
    for question in (good, corrected):
        made = await sdk.chat.completions.create(**given, messages=user_message(question))
        assert made.choices[0].message.content == JSON
    text: Any = {"format": {"type": "json_object"}}
    assert (await sdk.responses.create(model=MODEL, input=corrected, text=text)).output_text == JSON
    shown: list[str] = []

    async def read() -> None:
        async for chunk in await sdk.chat.completions.create(**given, messages=user_message(corrected), stream=True):
            shown.append(chunk.choices[0].delta.content or "")  # noqa: PERF401  # `extend` keeps nothing of a broken stream

    with pytest.raises(openai.APIError, match="the answer starts again; discard its text"):
        await read()
    assert "".join(shown) == "[1]"
