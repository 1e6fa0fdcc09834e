"""OpenAI's Python SDK when a gateway drains, an answer restarts, a turn is cancelled or a POST is repeated."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.clients.conftest import Takeover
from tests.clients.openai_chat import (
    LINE,
    MODEL,
    SLOW,
    TEXT,
    complete_entries,
    cursor_of,
    read_until_cut,
    resume_turn,
    sdk_of,
    text_of,
    turn_of,
    user_message,
)
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.displayed_text import SAYS
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, forget

# A busy machine drains the gateway before its end.
SLOWER = "#sim words=40 rate=20"


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with sdk_of(gateway.url) as client:
        yield client


@pytest.mark.proves("openai-chat", "heartbeats before the first event", "openai (Python)")
async def test_heartbeats_in_silence(nats_url: str, log: TurnLog, tenant: Tenant, new_gateway: NewGateway) -> None:
    """Comments before the first chunk and between two chunks."""
    gateway = await new_gateway(nats_url, heartbeat_s=0.05)
    async with sdk_of(gateway.url) as sdk:
        # The headers come with the first heartbeat, before a generator has begun.
        stream = await sdk.chat.completions.create(model=MODEL, messages=user_message("hi"), stream=True)
        turn = stream.response.headers["tailrace-turn"]
        writer = Writer(log, TurnKey(tenant, TurnId(turn)))
        async with gateway.client.stream("GET", f"/v1/turns/{turn}/events?dialect=openai-chat") as raw:
            received = raw.aiter_raw()
            assert await anext(received) == b": hb\n"
            writer.chain = (await log.read_turn(writer.key)).chain
            await writer.begin("half ")
            while await anext(received) != b": hb\n":
                pass
        await writer.store_texts("an answer")
        await writer.end()
        assert text_of([chunk async for chunk in stream]) == "half an answer"


@pytest.mark.proves("openai-chat", "resumes when its gateway drains", "openai (Python)")
async def test_stream_of_a_draining_gateway_is_not_complete(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """The SDK takes a clean end for a complete answer, so the gateway breaks the connection; another one has the
    rest.
    """
    received: list[ChatCompletionChunk] = []
    leaving = await new_gateway(system.nats_url)
    async with sdk_of(leaving.url) as sdk, sdk_of(gateway.url) as other:
        stream = await sdk.chat.completions.create(model=MODEL, messages=user_message(SLOWER), stream=True)
        reading = asyncio.create_task(read_until_cut(stream, received))
        await until(lambda: text_of(received))
        leaving.stopping.set()
        assert not await reading
        received, cursor = complete_entries(received)
        assert await read_until_cut(await resume_turn(other, turn_of(received[0].id), cursor), received)
    assert text_of(received) == TEXT


@pytest.mark.proves("openai-chat", "restart of the answer", "openai (Python)")
async def test_partial_tool_call_is_not_mixed_with_the_new_answer(takeover: Takeover) -> None:
    """A generator was killed within a tool call, which cannot be continued: the SDK raises, and the turn has the
    whole answer.
    """
    line = '#sim words=2 rate=100 tool=look json={"query":"' + "the sky " * 20 + '"}'
    received: list[ChatCompletionChunk] = []
    async with sdk_of(takeover.gateway.url) as sdk:
        stream = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=user_message(line), stream=True))
        async with takeover.run_and_kill_after(12):
            with pytest.raises(openai.APIError, match="starts again") as raised:
                await read_until_cut(await stream, received)
            turn = turn_of(received[0].id)
            chunks = [chunk async for chunk in await resume_turn(sdk, turn)]
    assert raised.value.code == "backend_broken"
    assert raised.value.message.endswith(f"/v1/turns/{turn}/events?dialect=openai-chat")
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert (text_of(chunks), json.loads(arguments)) == (words(2), {"query": "the sky " * 20})


@pytest.mark.proves("openai-chat", "read after the log has dropped the turn", "openai (Python)")
async def test_answer_is_read_after_the_log_has_dropped_it(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, sdk: AsyncOpenAI
) -> None:
    line = "#sim words=5 thinking=2 rate=0 tool=look"
    made = await sdk.chat.completions.create(model=MODEL, messages=user_message(line))
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn_of(made.id))))
    chunks = [chunk async for chunk in await resume_turn(sdk, turn_of(made.id))]
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {(made.id, made.created, made.model)}
    assert (text_of(chunks), chunks[-1].choices[0].finish_reason) == (words(5), "tool_calls")


@pytest.mark.proves("openai-chat", "cancel", "openai (Python)")
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_answer_is_cancelled(gateway: Gateway, sdk: AsyncOpenAI, *, is_streamed: bool) -> None:
    """Its readers receive an error, and the text stays in the history."""
    name = f"to-cancel-{is_streamed}"
    line = "#sim words=900 rate=50"
    given = {"session_id": name}
    chunks: list[ChatCompletionChunk] = []

    async def turns() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await gateway.client.get(f"/v1/sessions/{name}/turns")).json().get("turns")
        return found

    async def read() -> None:
        made: Any = await sdk.chat.completions.create(
            model=MODEL, messages=user_message(line), stream=is_streamed, extra_body=given
        )
        await read_until_cut(made, chunks)

    reading = asyncio.create_task(read())
    turn = (await until(turns))[0]["turn"]
    await until(lambda: text_of(chunks) or not is_streamed)
    assert (await gateway.client.post(f"/v1/turns/{turn}/cancel")).json()["outcome"] == "cancelled"
    with pytest.raises(openai.APIError) as raised:
        await reading
    assert raised.value.code == "turn_cancelled"
    assert (await gateway.client.get(f"/v1/turns/{turn}")).json()["outcome"] == "cancelled"


@pytest.mark.proves("openai-chat", "repeated POST returns the same turn", "openai (Python)")
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_retry_with_an_idempotency_key_gets_the_same_turn(gateway: Gateway, *, is_streamed: bool) -> None:
    """The SDK's own retry after a lost connection sends the same key, which it makes itself."""
    given = {"session_id": f"retried-{is_streamed}"}
    async with Cutting(gateway.port, [Cut(0)]) as proxy, sdk_of(proxy.url) as sdk:
        sdk._idempotency_header = "Idempotency-Key"
        made: Any = await sdk.chat.completions.create(
            model=MODEL, messages=user_message(LINE), stream=is_streamed, extra_body=given
        )
        text = text_of([chunk async for chunk in made]) if is_streamed else made.choices[0].message.content
        assert (proxy.left, proxy.connections) == ([], 2)
    page = (await gateway.client.get(f"/v1/sessions/{given['session_id']}/turns")).json()
    assert [turn["text"] for turn in page["turns"]] == [text] == [TEXT]


@pytest.mark.proves("openai-chat", "errors before the first token", "openai (Python)")
@pytest.mark.parametrize(
    ("fault", "on_interrupt", "code"),
    [("error@5", "fail", "interrupted"), ("garbage@5+", "continue", "backend_unreadable")],
)
async def test_the_sdk_does_not_pay_again_for_an_answer_that_failed(
    gateway: Gateway, sdk: AsyncOpenAI, fault: str, on_interrupt: str, code: str
) -> None:
    """With its default settings it repeats a POST after each status 5xx, if `x-should-retry` does not forbid it."""
    session = {"session_id": "failed", "on_interrupt": on_interrupt}
    with pytest.raises(openai.InternalServerError) as raised:
        await sdk.chat.completions.create(
            model=MODEL, messages=user_message(f"#sim words=9 rate=0 fault={fault}"), extra_body=session
        )
    assert raised.value.code == code
    assert len((await gateway.client.get("/v1/sessions/failed/turns")).json()["turns"]) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("headers", "posts"), [({}, 3), ({"Idempotency-Key": "auto"}, 3), ({"Idempotency-Key": "a"}, 1)]
)
async def test_the_sdk_does_not_wait_for_the_same_failure_again(
    gateway: Gateway, sdk: AsyncOpenAI, stream: bool, headers: dict[str, str], posts: int
) -> None:
    """The same key gets the same turn. Without one, or with `auto`, a repeated POST starts another turn."""
    asked = user_message("#sim words=9 fault=429 retry_after=0")
    with pytest.raises(openai.RateLimitError) as raised:
        await sdk.chat.completions.create(model=MODEL, messages=asked, stream=stream, extra_headers=headers)
    assert raised.value.response.request.headers["x-stainless-retry-count"] == str(posts - 1)


@pytest.mark.proves("openai-chat", "resumes in another dialect", "openai (Python)")
async def test_answer_is_resumed_in_another_dialect(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """A cursor is valid in all dialects."""
    stream = await sdk.chat.completions.create(model=MODEL, messages=user_message(SLOW), stream=True)
    received: list[ChatCompletionChunk] = []
    async for chunk in stream:
        received.append(chunk)
        if len(text_of(received)) > 40:
            break
    for dialect in ("tailrace", "anthropic", "text", "openai-chat-usage"):
        url = f"/v1/turns/{turn_of(received[0].id)}/events?dialect={dialect}&after={cursor_of(received[-1])}"
        rest = (await gateway.client.get(url)).content
        assert text_of(received) + SAYS[dialect](rest) == TEXT
