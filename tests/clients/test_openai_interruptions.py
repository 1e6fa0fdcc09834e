"""OpenAI's Python SDK when a gateway drains, an answer restarts, a turn is cancelled or a POST is repeated."""

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.clients.openai_chat import (
    CUT,
    LINE,
    MODEL,
    TEXT,
    collect,
    complete_entries,
    event_text,
    resume_turn,
    sdk_of,
    text_of,
    turn_of,
    user_message,
)
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, forget

# A busy machine drains the gateway before its end.
SLOWER = "#sim words=40 rate=20"


@pytest.mark.proves("openai-chat", "heartbeats before the first event", "openai (Python)")
@pytest.mark.proves("openai-responses", "heartbeats before the first event", "openai (Python)")
async def test_heartbeats_are_comments(system: System, gateway: Gateway, new_gateway: NewGateway) -> None:
    """Before the first word and between two words. The SDK ignores them."""
    beating = await new_gateway(system.nats_url, heartbeat_s=0.1)
    line = "#sim words=3 rate=2 wait=1"
    bodies: dict[str, Any] = {
        "chat/completions": {"messages": user_message(line)},
        "responses": {"input": line},
    }
    for path, body in bodies.items():
        sent = (await beating.client.post(f"/v1/{path}", json={"model": MODEL, "stream": True, **body})).content
        assert 0 <= sent.find(b": hb\n") < sent.find(b"w000000") < sent.rfind(b": hb\n"), sent
    async with sdk_of(beating.url) as sdk:
        stream = await sdk.chat.completions.create(model=MODEL, messages=user_message(line), stream=True)
        assert text_of([chunk async for chunk in stream]) == words(3)
        async with sdk.responses.stream(model=MODEL, input=line) as streamed:
            assert (await streamed.get_final_response()).output_text == words(3)


@pytest.mark.proves("openai-chat", "resumes when its gateway drains", "openai (Python)")
@pytest.mark.proves("openai-responses", "resumes when its gateway drains", "openai (Python)")
async def test_stream_of_a_draining_gateway_is_not_complete(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """The SDK takes a clean end for a complete answer, so the gateway breaks the connection; another one has the
    rest.
    """
    leaving = await new_gateway(system.nats_url)
    chunks: list[ChatCompletionChunk] = []
    events: list[Any] = []
    async with sdk_of(leaving.url) as sdk:
        chat = await sdk.chat.completions.create(model=MODEL, messages=user_message(SLOWER), stream=True)
        response = await sdk.responses.create(model=MODEL, input=SLOWER, stream=True)
        reading = asyncio.gather(collect(chat, chunks), collect(response, events), return_exceptions=True)
        await until(lambda: text_of(chunks) and event_text(events))
        leaving.stopping.set()
        assert [isinstance(error, CUT) for error in await reading] == [True, True]
    async with sdk_of(gateway.url) as sdk:
        chunks, cursor = complete_entries(chunks)
        await collect(await resume_turn(sdk, turn_of(chunks[0].id), cursor), chunks)
        response_id, last = events[0].response.id, events[-1].sequence_number
        await collect(await sdk.responses.retrieve(response_id, stream=True, starting_after=last), events)
    assert text_of(chunks) == event_text(events) == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.proves("openai-chat", "restart of the answer", "openai (Python)")
@pytest.mark.proves("openai-responses", "restart of the answer", "openai (Python)")
async def test_restarted_answer_is_not_mixed_with_the_old_one(
    lone_gateway: Gateway, log: TurnLog, tenant: Tenant
) -> None:
    """The SDK raises, and a new request receives the new answer."""
    writer = Writer(log, TurnKey(tenant, TurnId(new_id())))
    await writer.open("old")
    turn, response = writer.key.turn, f"resp_{writer.key.turn}"
    chunks: list[ChatCompletionChunk] = []
    events: list[Any] = []
    async with sdk_of(lone_gateway.url) as sdk:
        streams = await resume_turn(sdk, turn), await sdk.responses.retrieve(response, stream=True)
        reading = asyncio.gather(collect(streams[0], chunks), collect(streams[1], events), return_exceptions=True)
        await until(lambda: text_of(chunks) == event_text(events) == "old")
        await writer.begin("new", mode="restart")
        await writer.end()
        of_chat, of_responses = await reading
        new_chunks = [chunk async for chunk in await resume_turn(sdk, turn)]
        beyond = events[-1].sequence_number
        again, further = [
            [event async for event in await sdk.responses.retrieve(response, stream=True, **given)]
            for given in ({}, {"starting_after": beyond})
        ]
    assert isinstance(of_chat, openai.APIError)
    assert (of_chat.code, "starts again" in of_chat.message) == ("backend_broken", True)
    assert of_chat.message.endswith(f"/v1/turns/{turn}/events?dialect=openai-chat")
    assert (isinstance(of_responses, CUT), events[-1].type) == (True, "error")
    assert text_of(new_chunks) == event_text(again) == "new"
    assert [event.to_dict() for event in again] == [event.to_dict() for event in further]
    assert [event.sequence_number for event in (*events, *again)] == list(range(len(events) + len(again)))


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
        await collect(made, chunks)

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
        sdk._idempotency_header = "Idempotency-Key"  # noqa: SLF001  # the SDK has no option for it
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


@pytest.mark.parametrize(
    ("headers", "posts", "stream"),
    [({}, 3, True), ({"Idempotency-Key": "auto"}, 3, False), ({"Idempotency-Key": "a"}, 1, True)],
    ids=["no key", "auto", "a key"],
)
async def test_the_sdk_does_not_wait_for_the_same_failure_again(
    sdk: AsyncOpenAI, headers: dict[str, str], posts: int, *, stream: bool
) -> None:
    """The same key gets the same turn. Without one, or with `auto`, a repeated POST starts another turn."""
    messages = user_message("#sim words=9 fault=429 retry_after=0")
    with pytest.raises(openai.RateLimitError) as raised:
        await sdk.chat.completions.create(model=MODEL, messages=messages, stream=stream, extra_headers=headers)
    assert raised.value.response.request.headers["x-stainless-retry-count"] == str(posts - 1)


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
