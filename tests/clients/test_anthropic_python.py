"""POST /v1/messages with Anthropic's Python SDK."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic, beta_async_tool
from anthropic.types import Message

from tests.clients.conftest import read_stored_text
from tests.harness.generator_in_loop import read_last_request, words
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway

MODEL = "claude-haiku-5-5"
TEXT = words(40)
LINE = "#sim words=40 rate=200"


def sdk_of(url: str) -> AsyncAnthropic:
    """Returns the SDK with its default retries."""
    return AsyncAnthropic(base_url=url, api_key=KEY)


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[AsyncAnthropic]:
    async with sdk_of(gateway.url) as client:
        yield client


def question(line: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": line}], **more}


async def stream_message(sdk: AsyncAnthropic, line: str) -> Message:
    async with sdk.messages.stream(**question(line)) as stream:
        return await stream.get_final_message()


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def turn_of(message: Message) -> str:
    return message.id.removeprefix("msg_")


class BrokenStream(NamedTuple):
    """The text that the SDK showed before it raised, and the error."""

    text: str
    turn: str
    error: Exception


async def read_broken_stream(sdk: AsyncAnthropic, line: str) -> BrokenStream:
    shown = ""
    async with sdk.messages.stream(**question(line)) as stream:
        try:
            async for text in stream.text_stream:
                shown += text
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            return BrokenStream(shown, turn_of(stream.current_message_snapshot), error)
    raise AssertionError(f"it did not break: {shown}")


@pytest.mark.proves("anthropic", "citations", "anthropic (Python)")
@pytest.mark.proves("anthropic", "stream", "anthropic (Python)")
@pytest.mark.proves("anthropic", "answer as one JSON body", "anthropic (Python)")
@pytest.mark.proves("anthropic", "tools", "anthropic (Python)")
@pytest.mark.proves("anthropic", "thinking", "anthropic (Python)")
async def test_stream_adds_up_to_the_json_message(gateway: Gateway, sdk: AsyncAnthropic) -> None:
    """Thinking with its signature, text with citations, a tool's input, usage."""
    line = f'{LINE} thinking=3 cites=2 tool=look json={{"query":"a \\"b\\" 🌊"}}'
    whole, stream = await sdk.messages.create(**question(line)), await stream_message(sdk, line)
    shown = Message.model_validate(whole.to_dict())
    assert [block.type for block in shown.content] == ["thinking", "text", "tool_use"]
    assert [cited["cited_text"] for cited in blocks(shown)[1]["citations"]] == ["000000000.", "000000001."]
    assert shown.content[-1].to_dict()["input"] == {"query": 'a "b" 🌊'}
    assert (shown.stop_reason, shown.usage.output_tokens > 40, text_of(shown)) == ("tool_use", True, TEXT)
    assert without_additions(stream) == without_additions(whole)
    assert [await read_stored_text(gateway, turn_of(one)) for one in (whole, stream)] == [TEXT, TEXT]


def without_additions(message: Message) -> dict[str, Any]:
    """Removes the turn and the fields that the SDK adds."""
    content = [{name: it for name, it in block.items() if name != "parsed_output"} for block in blocks(message)]
    fields = message.to_dict(mode="json") | {"id": "msg", "content": content}
    return {name: it for name, it in fields.items() if it is not None}


def blocks(message: Message) -> list[dict[str, Any]]:
    return [block.to_dict(mode="json") for block in message.content]


@pytest.mark.proves("anthropic", "read from the history", "anthropic (Python)")
async def test_conversation_with_a_tool_is_one_session(gateway: Gateway, sdk: AsyncAnthropic, claude: str) -> None:
    """The client sends all messages each time; the session has each once."""
    headers = {"X-Session-ID": "test:conversation", "X-Project-ID": "test"}
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    more = {"tools": tools, "thinking": {"type": "adaptive"}, "extra_headers": headers}
    block, mark = {"type": "text", "text": f"{LINE} thinking=2 tool=look"}, {"cache_control": {"type": "ephemeral"}}
    first = await sdk.messages.create(
        **question("") | more | {"messages": [{"role": "user", "content": [block | mark]}]}
    )
    call = first.content[-1]
    assert call.type == "tool_use"
    # The cache mark is on the last message only: the API allows four marks.
    messages: list[Any] = [{"role": "user", "content": [block]}, {"role": "assistant", "content": blocks(first)}]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "found"} | mark]}
    second = await sdk.messages.create(**question("") | more | {"messages": [*messages, result]})
    turns = (await gateway.client.get("/v1/sessions/test:conversation/turns")).json()["turns"]
    assert [(turn["turn"], turn["parent"], turn["input"]) for turn in turns] == [
        (turn_of(first), None, [{"role": "user", "content": [block | mark]}]),
        (turn_of(second), turn_of(first), [result]),
    ]
    last = (await read_last_request(claude))["body"]
    assert (last["messages"], last["tools"], last["thinking"]) == ([*messages, result], tools, {"type": "adaptive"})


async def test_fields_of_the_message_are_passed_on(gateway: Gateway, sdk: AsyncAnthropic) -> None:
    """The stop reason and fields that the SDK does not know, in the stream, the JSON body and the history."""
    body = question(LINE, stop_sequences=["w000005"], extra_body={"context_management": {"edits": []}})
    whole = await sdk.messages.create(**body)
    *_, delta, _ = [event async for event in await sdk.messages.create(**body, stream=True)]
    assert delta.type == "message_delta"
    assert (whole.stop_reason, whole.stop_sequence, text_of(whole)) == ("stop_sequence", "w000005", f"{words(5)} ")
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == ("stop_sequence", "w000005")
    assert delta.to_dict()["context_management"] == whole.to_dict()["context_management"] == {"applied_edits": []}
    record = (await gateway.client.get(f"/v1/turns/{turn_of(whole)}")).json()
    writes = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    assert record["stop_sequence"] == "w000005"
    assert record["envelope"] == {
        "context_management": {"applied_edits": []},
        "usage": {"cache_creation": writes, "service_tier": "standard"},
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY, "anthropic-version": "2023-06-01"},
        {"authorization": f"Bearer {KEY}", "anthropic-version": "2026-10-21"},
    ],
    ids=["2023-06-01", "2026-10-21"],
)
async def test_both_key_headers_and_versions_are_accepted(
    gateway: Gateway, claude: str, headers: dict[str, str]
) -> None:
    """The model is called with the client's version."""
    async with httpx2.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False) as client:
        answer = await client.post("/v1/messages?beta=true", json=question("#sim words=1 rate=0"))
    assert (answer.status_code, Message.model_validate(answer.json()).stop_reason) == (200, "end_turn")
    assert (await read_last_request(claude))["version"] == headers["anthropic-version"]
    assert answer.headers["request-id"] == answer.headers["tailrace-turn"] == answer.json()["id"].removeprefix("msg_")


@pytest.mark.proves("anthropic", "errors before the first event", "anthropic (Python)")
@pytest.mark.parametrize(
    ("line", "more", "kind", "type_", "sentence"),
    [
        ("#sim fault=529", {}, anthropic.OverloadedError, "overloaded_error", "Overloaded"),
        ("#sim fault=429 retry_after=60", {}, anthropic.RateLimitError, "rate_limit_error", "exceeded your rate limit"),
        ("hi", {"extra_body": {"top_k": 1}}, anthropic.BadRequestError, "invalid_request_error", "top_k"),
        ("hi", {"model": "gpt-5"}, anthropic.APIStatusError, None, "claude-haiku-5-5"),
        ("", {}, anthropic.BadRequestError, "invalid_request_error", "`messages[0].content` is empty"),
    ],
    ids=["overloaded", "rate limit", "the API's 400", "model", "empty"],
)
async def test_failure_before_the_first_event_has_a_status(
    sdk: AsyncAnthropic,
    line: str,
    more: dict[str, Any],
    kind: type[anthropic.APIStatusError],
    type_: str | None,
    sentence: str,
) -> None:
    """Streamed or not."""
    # By default, the SDK would repeat the request twice, after the time of Retry-After.
    sdk = sdk.with_options(max_retries=0)
    for is_streamed in (True, False):
        with pytest.raises(kind) as raised:
            await sdk.messages.create(**question(line) | more, stream=is_streamed)
        assert sentence in str(raised.value)
        assert type_ in (None, raised.value.type)
        if line.startswith("#sim"):
            # There is a turn, which the error and the request id name.
            assert raised.value.request_id == raised.value.response.headers["tailrace-turn"]
        if "retry_after" in line:
            assert raised.value.response.headers["retry-after"] == "60"


@pytest.mark.proves("anthropic", "errors during the stream", "anthropic (Python)")
async def test_failure_during_the_stream_is_raised_with_its_type(gateway: Gateway, sdk: AsyncAnthropic) -> None:
    """The text so far stays in the client and in the history."""
    shown = await read_broken_stream(sdk, "#sim words=99 rate=0 fault=500@4+")
    record = (await gateway.client.get(f"/v1/turns/{shown.turn}")).json()
    assert (record["outcome"], record["text"]) == ("failed", shown.text)
    assert shown.text
    assert isinstance(shown.error, anthropic.APIStatusError)
    assert shown.error.type == "api_error"


@pytest.mark.proves("anthropic", "heartbeats before the first event", "anthropic (Python)")
async def test_pings_before_the_first_event_and_between_events(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    beating = await new_gateway(system.nats_url, heartbeat_s=0.1)
    body = question("#sim words=3 rate=4 wait=0.5", stream=True)
    sent = (await beating.client.post("/v1/messages", json=body)).content
    kinds = [event.event for event in parse(sent)]
    assert kinds.index("ping") < kinds.index("content_block_delta")
    assert kinds.count("ping") >= 3
    async with sdk_of(beating.url) as sdk:
        assert text_of(await stream_message(sdk, "#sim words=3 rate=4 wait=0.5")) == words(3)


@pytest.mark.proves("anthropic", "cancel", "anthropic (Python)")
async def test_cancelled_turn_is_an_error_and_keeps_its_text(gateway: Gateway, sdk: AsyncAnthropic) -> None:
    """As one JSON body it has a status that the SDK does not retry."""
    line = "#sim words=400 rate=20"
    whole = asyncio.create_task(sdk.messages.create(**question(line)))
    streaming = asyncio.create_task(read_broken_stream(sdk, line))
    for turn in await until(lambda: list_running_turns(gateway, 2)):
        await gateway.client.post(f"/v1/turns/{turn}/cancel")
    with pytest.raises(anthropic.APIStatusError, match="cancelled") as raised:
        await whole
    shown = await streaming
    assert raised.value.status_code == 410
    assert (await gateway.client.get(f"/v1/turns/{shown.turn}")).json()["text"] == shown.text
    assert "cancelled" in str(shown.error)


async def list_running_turns(gateway: Gateway, count: int) -> list[str]:
    """Returns the turns with some text when there are `count` of them."""
    running = (await gateway.client.get("/v1/turns?status=running")).json()["data"]
    begun = [one["turn"] for one in running if one["text"]]
    return begun if len(begun) == count else []


@beta_async_tool
async def look(query: str) -> str:
    """Looks something up."""
    return f"found {query}"


@pytest.mark.proves("anthropic", "tool runner", "anthropic (Python)")
@pytest.mark.parametrize("has_thread", [False, True])
async def test_tool_runner_sends_the_whole_conversation(sdk: AsyncAnthropic, claude: str, *, has_thread: bool) -> None:
    """By default the SDK sends only new messages, with the id of an answer that Anthropic's servers do not have."""
    body = question(f"{LINE} tool=look")
    thread = sdk.beta.messages.thread(**body, tools=[look], unsupported_request_behavior="continue_unthreaded")
    runner = thread.tool_runner() if has_thread else sdk.beta.messages.tool_runner(**body, tools=[look])
    stop_reasons = [message.stop_reason async for message in runner]
    assert stop_reasons == ["tool_use", "end_turn"]
    sent = (await read_last_request(claude))["body"]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    # The function has run: the call's input fits the schema that the SDK made of it.
    assert sent["messages"][-1]["content"][0]["content"] == "found tailrace"
    assert "thread" not in sent
