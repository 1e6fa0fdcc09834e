"""AI SDK's routes on a running gateway: requests, resume, stop and history."""

import asyncio
import base64
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.gateway.http.last_event_id import QUERY_NAMES
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.records import record_from_fold
from tailrace.protocols.ai_sdk.gateway import EARLIER_BYTES_MAX, LATE_S, is_over
from tests.harness.displayed_text import ui as shown
from tests.harness.generator_in_loop import words
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.turn_builder import completed_turn
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

Json = dict[str, Any]


def user(text: str) -> Json:
    return {"id": "u", "role": "user", "parts": [{"type": "text", "text": text}]}


def assistant(text: str) -> Json:
    return {"id": "a", "role": "assistant", "parts": [{"type": "text", "text": text}]}


async def ask(gateway: Gateway, *messages: Json, **given: Any) -> httpx2.Response:
    answer = await gateway.client.post("/api/chat", json={"messages": messages, **given})
    assert answer.status_code == 200, answer.text
    return answer


async def test_response_headers_have_the_run_and_ignored_fields(gateway: Gateway) -> None:
    """The headers of AI SDK's own servers, and Tailrace's."""
    chat = new_id()
    answer = await ask(gateway, user("#sim words=2 rate=0"), id=chat, temperature=1, webSearch=True)
    run = answer.headers["x-workflow-run-id"]
    assert shown(answer.content) == words(2)
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert (answer.headers["tailrace-turn"], answer.headers["x-session-id"]) == (run, chat)
    assert answer.headers["tailrace-ignored"] == "temperature, webSearch"


@pytest.mark.parametrize("parts", [{}, {"parts": [{"type": "text", "text": "#sim words=1 rate=0"}]}], ids=["3", "4"])
async def test_ai_sdk_3_and_4_are_refused_before_a_model_call(gateway: Gateway, parts: Json) -> None:
    """They cannot read the stream. Newer ones send `trigger`, and may send messages that an older one has stored."""
    old = {"role": "user", "content": "#sim words=1 rate=0", **parts}
    chat = new_id()
    refused = await gateway.client.post("/api/chat", json={"id": chat, "messages": [old]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")
    assert "AI SDK 5 or newer" in refused.json()["error"]["message"]
    assert (await gateway.client.get(f"/api/chat/{chat}/messages")).status_code == 404
    if parts:
        await ask(gateway, old, id=chat, trigger="submit-message")


@pytest.mark.parametrize(("key", "retry"), [(None, None), ("auto", None), ("a-key", "false")])
async def test_a_failed_turn_is_repeated_unless_the_client_chose_its_key(
    gateway: Gateway, key: str | None, retry: str | None
) -> None:
    """The key of the client names the failed turn for ever; `auto` names another one after it."""
    body = {"messages": [user("#sim words=1 fault=429 retry_after=0")], "idempotency_key": key}
    answer = await gateway.client.post("/api/chat", json=body)
    assert (answer.status_code, answer.headers.get("x-should-retry")) == (429, retry)


@pytest.mark.parametrize(
    "output", [1, {"long": "long " * 20_000}, "x" * (EARLIER_BYTES_MAX + 1)], ids=["number", "object", "too long"]
)
async def test_stream_of_a_reloaded_page_continues_after_any_chunk(gateway: Gateway, output: object) -> None:
    """It begins with the earlier steps of the message, which `startIndex` does not count without `replay`.

    It lacks steps that are too long: each reader would hold them in memory. The history has them.
    """
    chat = new_id()
    question = user("#sim words=2 rate=0 tool=look")
    await ask(gateway, question, id=chat)
    _, called = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    call = {**called["parts"][-1], "state": "output-available", "output": output}
    answer = await ask(gateway, question, {**called, "parts": [*called["parts"][:-1], call]}, id=chat)
    chunks = data_lines(await gateway.client.get(f"/api/chat/{chat}/stream"))
    results = [msgspec.json.decode(line)["output"] for line in chunks if b"tool-output-available" in line]
    if isinstance(output, str):
        assert (results, chunks) == ([], data_lines(answer))
    else:
        assert results == [output]
        assert len(chunks) > len(data_lines(answer))
    run = answer.headers["tailrace-turn"]
    for index in range(len(chunks)):
        rest = await gateway.client.get(f"/api/chat/{run}/stream?startIndex={index}&replay=true")
        assert data_lines(rest) == chunks[index:]


@pytest.mark.parametrize("name", ["header", *QUERY_NAMES])
async def test_stream_continues_after_the_last_event_id(gateway: Gateway, name: str) -> None:
    """Of an EventSource, or a polyfill of it, which repeats its URL."""
    chat = new_id()
    answer = await ask(gateway, user("#sim words=9 rate=0"), id=chat)
    received = parse(answer.content)
    ids = [str(event.id) for event in received if event.id is not None]
    assert len(ids) > 3
    for last in ids[:-1]:
        given: Json = {"headers": {"last-event-id": last}} if name == "header" else {"params": {name: last}}
        rest = await gateway.client.get(f"/api/chat/{chat}/stream", **given)
        after = max(number for number, event in enumerate(received) if str(event.id) == last) + 1
        assert [event.data for event in parse(rest.content)] == [event.data for event in received[after:]]
    at_end = await gateway.client.get(f"/api/chat/{chat}/stream", headers={"last-event-id": ids[-1]})
    assert at_end.status_code == 204


def data_lines(response: httpx2.Response) -> list[bytes]:
    """Returns the chunks of a stream."""
    lines = response.content.splitlines()
    return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: {")]


async def test_message_in_a_busy_chat_interrupts_the_running_answer(gateway: Gateway) -> None:
    """`stop()` sends no request. `useChat` sends the whole conversation: a message without an answer is stored once."""
    chat = new_id()
    first = asyncio.create_task(ask(gateway, user("#sim wait=3600"), id=chat))
    await until(lambda: is_begun(gateway, chat))
    second = await ask(gateway, user("#sim wait=3600"), user("#sim words=3 rate=0"), id=chat)
    interrupted = (await first).headers["x-workflow-run-id"]
    record = (await gateway.client.get(f"/v1/turns/{second.headers['x-workflow-run-id']}")).json()
    assert (record["parent"], record["input"]) == (interrupted, [{"role": "user", "content": "#sim words=3 rate=0"}])
    assert (shown(second.content), record["text"]) == (words(3), words(3))
    assert (await gateway.client.get(f"/v1/turns/{interrupted}")).json()["outcome"] == "cancelled"


async def test_chat_that_is_not_stored_belongs_to_no_session(gateway: Gateway) -> None:
    """Its run can be resumed by its id until it is erased; its chat has no history."""
    chat, sent = new_id(), [user("#sim words=2 rate=0"), assistant(words(2)), user("#sim words=3 rate=0")]
    answer = await ask(gateway, *sent, id=chat, store=False)
    assert (shown(answer.content), "tailrace-ignored" in answer.headers) == (words(3), False)
    assert (await gateway.client.get(f"/api/chat/{chat}/messages")).status_code == 404
    run = answer.headers["x-workflow-run-id"]
    again = await gateway.client.get(f"/api/chat/{run}/stream?startIndex=0")
    assert data_lines(again) == data_lines(answer)
    record = (await gateway.client.get(f"/v1/turns/{run}")).json()
    assert [message["role"] for message in record["input"]] == ["user", "assistant", "user"]
    assert run not in (await gateway.client.get("/v1/turns")).text


async def is_begun(gateway: Gateway, chat: str) -> bool:
    return (await gateway.client.get(f"/api/chat/{chat}/messages")).status_code == 200


async def test_unknown_chat_has_nothing_to_resume(gateway: Gateway, second_gateway: Gateway) -> None:
    """`useChat` asks on every page load and treats every status but 204 as an error. A chat without turns is known."""
    for chat in (new_id(), "what ever", "a.b:c", "*", ">"):
        answers = [await one.client.get(f"/api/chat/{chat}/stream") for one in (gateway, second_gateway)]
        assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2
        assert (await gateway.client.get(f"/api/chat/{chat}/stream?startIndex=0")).status_code == 404
        assert (await gateway.client.post(f"/api/chat/{chat}/stop")).status_code == 404
        assert (await gateway.client.get(f"/api/chat/{chat}/messages")).status_code == 404
    await gateway.client.post("/v1/sessions", json={"id": (chat := new_id())})
    answer = await gateway.client.get(f"/api/chat/{chat}/messages")
    assert (answer.status_code, answer.json()) == (200, [])


async def test_invalid_start_index_is_refused(gateway: Gateway) -> None:
    """Also one beyond the end: after an empty stream the workflow transport would reconnect at once, forever."""
    run = (await ask(gateway, user("#sim words=1 rate=0"))).headers["x-workflow-run-id"]
    stream = f"/api/chat/{run}/stream?startIndex="
    whole = await gateway.client.get(f"{stream}0")
    last = int(whole.headers["x-workflow-stream-tail-index"])
    end = (await gateway.client.get(f"{stream}{last}")).content
    assert whole.content.endswith(end)
    assert end.startswith(b'data: {"type":"finish"')
    invalid = dict.fromkeys(("", "x", "1.5", "+1", "٣", "12345678901", "--1"), "request_invalid")
    for index, code in (invalid | {str(last + 1): "cursor_invalid"}).items():
        answer = await gateway.client.get(f"{stream}{index}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), index


async def test_a_start_index_beyond_the_last_chunk_of_a_running_answer_is_refused(gateway: Gateway) -> None:
    line = {"role": "user", "parts": [{"type": "text", "text": "#sim words=900 rate=50"}]}
    async with gateway.client.stream("POST", "/api/chat", json={"messages": [line]}) as running:
        run = running.headers["x-workflow-run-id"]
        answer = await gateway.client.get(f"/api/chat/{run}/stream?startIndex=100000")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid")
        await gateway.client.post(f"/api/chat/{run}/stop")


async def test_a_run_that_has_left_the_log_is_sent_again_after_a_reset(
    gateway: Gateway, tenant: Tenant, system_log: TurnLog
) -> None:
    """The database has joined its deltas, so its reader may have more chunks than it has there."""
    sent = await ask(gateway, user("#sim words=40 rate=40"))
    run, seen = sent.headers["x-workflow-run-id"], sent.content.count(b"data: ") - 2
    # Persistence answers after it has recorded the turn's end.
    (recorded,) = (await gateway.client.get(f"/v1/sessions/{sent.headers['x-session-id']}/turns")).json()["turns"]
    assert recorded["outcome"] == "completed"
    await system_log.purge(TurnKey(tenant, TurnId(run)))
    rest = await gateway.client.get(f"/api/chat/{run}/stream?startIndex={seen}")
    assert seen > int(rest.headers["x-workflow-stream-tail-index"])
    assert rest.content.startswith(b'data: {"type":"reset-step"}')
    assert shown(rest.content) == words(40)


def test_ended_turn_can_be_resumed_for_some_seconds() -> None:
    """A page may have loaded its messages while the answer ran; afterwards the history has the answer."""
    ended = record_from_fold(TurnKey(Tenant("alice"), TurnId("t")), completed_turn("hi").turn)
    assert ended.ended_at is not None
    seconds = [0.0, LATE_S - 1, LATE_S + 1]
    assert [is_over(ended, ended.ended_at + timedelta(seconds=after)) for after in seconds] == [False, False, True]
    running = msgspec.structs.replace(ended, outcome="running", ended_at=None)
    assert not is_over(running, datetime.now(UTC))


async def test_history_has_every_page_of_the_newest_branch(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited message in another tab starts a branch."""
    monkeypatch.setattr("tailrace.protocols.common.newest_branch.PAGE_TURNS", 1)
    chat = new_id()
    await ask(gateway, user("#sim words=1 rate=0"), id=chat)
    sent = [user("#sim words=1 rate=0"), assistant(words(1))]
    await ask(gateway, *sent, user("#sim words=2 rate=0"), id=chat)
    await ask(gateway, *sent, user("#sim words=3 rate=0"), id=chat)
    messages = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    texts = ["".join(part.get("text", "") for part in message["parts"]) for message in messages]
    assert texts == ["#sim words=1 rate=0", words(1), "#sim words=3 rate=0", words(3)]


async def test_history_contains_images_and_long_texts(
    gateway: Gateway, system: System, new_gateway: NewGateway
) -> None:
    """They are stored as blobs, once each, and returned as sent, so a page can send them again.

    A history that is larger than a request body is refused.
    """
    chat = new_id()
    picture = "data:image/png;base64," + base64.b64encode(os.urandom(100_000)).decode()
    parts: list[Json] = [
        {"type": "file", "mediaType": "image/png", "url": picture},
        {"type": "file", "mediaType": "image", "url": "https://host.example/a.webp"},
        {"type": "file", "mediaType": "text/plain", "url": "data:text/plain;base64,YSBi", "filename": "a.txt"},
        {"type": "text", "text": "#sim words=1 rate=0\n" + "long " * 20_000},
    ]
    messages: list[Json] = []
    for number in range(2):
        await ask(gateway, *messages, {"id": f"u{number}", "role": "user", "parts": parts}, id=chat)
        messages = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    assert [message["parts"] for message in messages if message["role"] == "user"] == [parts] * 2
    again = await ask(gateway, *messages, user("#sim words=2 rate=0"), id=chat)
    record = (await gateway.client.get(f"/v1/turns/{again.headers['tailrace-turn']}")).json()
    assert record["input"] == [{"role": "user", "content": "#sim words=2 rate=0"}]
    small = await new_gateway(system.nats_url, body_bytes_max=250_000)
    answer = await small.client.get(f"/api/chat/{chat}/messages")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert f"/v1/sessions/{chat}/turns" in answer.json()["error"]["message"]
