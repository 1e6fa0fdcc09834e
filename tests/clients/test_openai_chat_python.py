"""POST /v1/chat/completions with OpenAI's Python SDK."""

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from tests.clients.conftest import read_stored_text
from tests.clients.openai_chat import LINE, MODEL, TEXT, collect, text_of, turn_of, user_message
from tests.clients.structured_answer import ANSWERED, RHINE, River
from tests.harness.generator_in_loop import read_last_request, words
from tests.integration.conftest import KEY, Gateway

LOOK: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}},
}


@pytest.mark.proves("openai-chat", "answer as one JSON body", "openai (Python)")
async def test_completion_as_json(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Text, finish reason and usage in OpenAI's format; the headers name the turn."""
    raw = await sdk.chat.completions.with_raw_response.create(model=MODEL, messages=user_message(LINE), temperature=0.5)
    made = raw.parse()
    (choice,) = made.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert made.usage is not None
    assert (made.usage.completion_tokens, made.usage.total_tokens) == (40, 40 + made.usage.prompt_tokens)
    turn = turn_of(made.id)
    assert await read_stored_text(gateway, turn) == TEXT
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    names = ("tailrace-turn", "x-request-id", "x-session-id", "tailrace-ignored")
    assert [raw.headers[name] for name in names] == [turn, turn, record["session"], "temperature"]


@pytest.mark.proves("openai-chat", "stream", "openai (Python, sync)")
async def test_completion_streams_without_asyncio(gateway: Gateway) -> None:

    def read() -> list[ChatCompletionChunk]:
        with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
            counted: Any = {"include_usage": True}
            return list(
                client.chat.completions.create(
                    model=MODEL, messages=user_message(LINE), stream=True, stream_options=counted
                )
            )

    *chunks, last = await asyncio.to_thread(read)
    assert text_of(chunks) == TEXT == await read_stored_text(gateway, turn_of(last.id))
    assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 40)


@pytest.mark.proves("openai-chat", "thinking", "openai (Python)")
async def test_thinking_is_in_reasoning_content(sdk: AsyncOpenAI) -> None:
    """Streamed and as one JSON body."""
    line = "#sim words=2 thinking=3 rate=0"
    made = await sdk.chat.completions.create(model=MODEL, messages=user_message(line), reasoning_effort="low")
    thoughts = (made.choices[0].message.model_extra or {})["reasoning_content"]
    stream = await sdk.chat.completions.create(model=MODEL, messages=user_message(line), stream=True)
    deltas = [chunk.choices[0].delta.model_extra or {} async for chunk in stream]
    streamed = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert (thoughts, streamed, made.choices[0].message.content) == (words(3, "t"), words(3, "t"), words(2))


@pytest.mark.proves("openai-chat", "tools", "openai (Python)")
async def test_tool_call_and_result(gateway: Gateway, claude: str, sdk: AsyncOpenAI) -> None:
    """With the SDK's accumulator; the model receives the tool result."""
    line = '#sim words=2 rate=0 tool=look json={"query":"the sky, at night"}'
    messages = user_message(line)
    async with sdk.chat.completions.stream(model=MODEL, messages=messages, tools=[LOOK]) as stream:
        names = {event.type async for event in stream}
        completion = await stream.get_final_completion()
    assert {"chunk", "content.delta", "tool_calls.function.arguments.delta"} <= names
    (choice,) = completion.choices
    (call,) = choice.message.tool_calls or []
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", words(2))
    assert (call.function.name, call.function.arguments) == ("look", '{"query":"the sky, at night"}')

    answered: list[Any] = [
        *messages,
        choice.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "Stars."},
    ]
    made = await sdk.chat.completions.create(model=MODEL, messages=answered, tools=[LOOK], parallel_tool_calls=False)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == (words(2), "stop")
    body = (await read_last_request(claude))["body"]
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": words(2)},
                {"type": "tool_use", "id": call.id, "name": "look", "input": {"query": "the sky, at night"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Stars."}]},
    ]
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert [tool["name"] for tool in body["tools"]] == ["look"]


@pytest.mark.proves("openai-chat", "structured output", "openai (Python)")
async def test_answer_fits_its_schema(sdk: AsyncOpenAI) -> None:
    made = await sdk.chat.completions.parse(model=MODEL, messages=user_message(ANSWERED), response_format=River)
    assert made.choices[0].message.parsed == RHINE


@pytest.mark.proves("openai-chat", "stop sequences and limits", "openai (Python)")
async def test_stop_sequences_and_limits(sdk: AsyncOpenAI) -> None:
    stopped = await sdk.chat.completions.create(model=MODEL, messages=user_message(LINE), stop=" w000002")
    cut = await sdk.chat.completions.create(model=MODEL, messages=user_message(LINE), max_completion_tokens=3)
    ends = [(made.choices[0].message.content, made.choices[0].finish_reason) for made in (stopped, cut)]
    assert ends == [(words(2), "stop"), (words(3), "length")]


@pytest.mark.proves("openai-chat", "images and files", "openai (Python)")
async def test_image_reaches_the_model(claude: str, sdk: AsyncOpenAI) -> None:
    """With system and developer messages at the beginning."""
    url = "data:image/png;base64,iVBORw0KGgo="
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": LINE}, {"type": "image_url", "image_url": {"url": url}}]},
        {"role": "developer", "content": "In English."},
    ]
    await sdk.chat.completions.create(model=MODEL, messages=messages)
    body = (await read_last_request(claude))["body"]
    assert body["system"] == [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "In English."}]
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    content = [{"type": "text", "text": LINE}, {"type": "image", "source": source}]
    assert body["messages"] == [{"role": "user", "content": content}]


@pytest.mark.proves("openai-chat", "errors before the first event", "openai (Python)")
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_error_before_the_first_event_has_a_status(sdk: AsyncOpenAI, *, is_streamed: bool) -> None:
    """The SDK raises the exception of the status, with our code."""
    sdk = sdk.with_options(max_retries=0)

    async def read_refusal(line: str = LINE, **given: Any) -> tuple[type[Exception], str | None]:
        with pytest.raises(openai.APIStatusError) as raised:
            await sdk.chat.completions.create(
                **{"model": MODEL, "messages": user_message(line), "stream": is_streamed, **given}
            )
        return type(raised.value), raised.value.code

    assert await read_refusal("#sim fault=429@0 retry_after=0") == (openai.RateLimitError, "backend_rate_limited")
    assert await read_refusal("#sim fault=529@0") == (openai.InternalServerError, "backend_overloaded")
    assert await read_refusal("#sim nonsense") == (openai.BadRequestError, "backend_refused_request")
    assert await read_refusal(model="gpt-4o") == (openai.NotFoundError, "model_not_found")
    assert await read_refusal(n=2) == (openai.BadRequestError, "request_invalid")
    unknown_key = {"authorization": "Bearer unknown"}
    assert await read_refusal(extra_headers=unknown_key) == (openai.AuthenticationError, "credential_invalid")


@pytest.mark.proves("openai-chat", "errors during the stream", "openai (Python)")
async def test_error_during_the_stream_is_raised(sdk: AsyncOpenAI) -> None:
    body = {"on_interrupt": "fail"}
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=user_message("#sim words=9 rate=0 fault=error@5"), stream=True, extra_body=body
    )
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError) as raised:
        await collect(stream, chunks)
    assert (text_of(chunks), raised.value.code) == (words(5), "interrupted")


@pytest.mark.proves("openai-chat", "sessions", "openai (Python)")
async def test_session_adds_the_stored_history(gateway: Gateway, claude: str, sdk: AsyncOpenAI) -> None:
    """Only the new message; or all messages again; or all but an edited one, which is a branch."""

    async def say(*messages: Any, **given: Any) -> tuple[str, list[Any]]:
        made = await sdk.chat.completions.create(model=MODEL, messages=list(messages), **given)
        return turn_of(made.id), (await read_last_request(claude))["body"]["messages"]

    one, two, three = ({"role": "user", "content": f"#sim words={n} rate=0"} for n in (1, 2, 3))
    answer, second = ({"role": "assistant", "content": words(n)} for n in (1, 2))
    named = {"extra_body": {"session_id": "s1", "project_id": "p1"}}
    first_turn, _ = await say(one, **named)
    next_turn, sent_next = await say(two, extra_headers={"X-Session-ID": "s1"})
    last_turn, sent_last = await say(one, answer, two, second, three, **named)
    branch, sent_branch = await say(one, answer, three, **named)
    assert sent_next == [one, answer, two]
    assert sent_last == [one, answer, two, second, three]
    assert sent_branch == [one, answer, three]
    page = (await gateway.client.get("/v1/sessions/s1/turns")).json()["turns"]
    parents = [(first_turn, None), (next_turn, first_turn), (last_turn, next_turn), (branch, first_turn)]
    assert [(turn["turn"], turn["parent"]) for turn in page] == parents
    with pytest.raises(openai.BadRequestError, match="x-session-id differ"):
        await say(one, extra_headers={"X-Session-ID": "s2"}, **named)


@pytest.mark.proves("openai-chat", "thinking and tools in a session", "openai (Python)")
async def test_session_adds_stored_thinking(claude: str, sdk: AsyncOpenAI) -> None:
    """The API requires it with its signature beside a tool result; this protocol has no field for it."""
    line = "#sim words=2 thinking=3 rate=0 tool=look"
    given = {"session_id": "thoughtful"}
    messages: list[Any] = user_message(line)
    made = await sdk.chat.completions.create(model=MODEL, messages=messages, tools=[LOOK], extra_body=given)
    message = made.choices[0].message
    (call,) = message.tool_calls or []
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "Stars."}]
    await sdk.chat.completions.create(model=MODEL, messages=messages, tools=[LOOK], extra_body=given)
    _, answer, result = (await read_last_request(claude))["body"]["messages"]
    thoughts, *others = answer["content"]
    assert (thoughts["thinking"], thoughts["signature"][:3]) == (words(3, "t"), "sim")
    assert [block["type"] for block in others] == ["text", "tool_use"]
    assert result["content"][0]["tool_use_id"] == call.id
