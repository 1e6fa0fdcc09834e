"""AI SDK's routes on a running gateway: what they take, from whom, and what a chat is to the rest of the house."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.gateway.clients.ai_sdk.routes import LATE_S, is_over
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import TurnKey
from tests.answering import words
from tests.handwritten import answered
from tests.integration.conftest import Gateway, House, NewGateway
from tests.saying import ui as said
from tests.until import until
from tests.writing import Writer

Json = dict[str, Any]
TEXT = {"content-type": "text/plain;charset=UTF-8"}


def user(text: str) -> Json:
    return {"id": "u", "role": "user", "parts": [{"type": "text", "text": text}]}


def assistant(text: str) -> Json:
    return {"id": "a", "role": "assistant", "parts": [{"type": "text", "text": text}]}


async def ask(gateway: Gateway, *messages: Json, **given: Any) -> httpx2.Response:
    answer = await gateway.client.post("/api/chat", json={"messages": messages, **given})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture
async def keyless(house: House, gateway: Gateway, new_gateway: NewGateway) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway that asks for no key."""
    open_gateway = await new_gateway(house.nats_url, api_keys="")
    async with httpx2.AsyncClient(base_url=open_gateway.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "{own}"}, 200),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
async def test_json_as_text_is_taken_from_no_strangers_page(
    keyless: httpx2.AsyncClient, headers: dict[str, str], status: int
) -> None:
    """The workflow transport sends it so, and a browser sends it anywhere without asking."""
    own = {name: value.format(own=str(keyless.base_url).rstrip("/")) for name, value in headers.items()}
    body = msgspec.json.encode({"messages": [user("#sim words=1 rate=0")]})
    answer = await keyless.post("/api/chat", content=body, headers={**TEXT, **own})
    assert answer.status_code == status, answer.text
    others = await keyless.post("/chat/stream", content=b'{"message": "hi"}', headers=TEXT)
    assert others.status_code == 415


async def test_an_answer_names_its_run_and_what_was_asked_in_vain(gateway: Gateway) -> None:
    """Headers that AI SDK's own servers send, and ours; a body's unknown fields are an app's business."""
    chat = new_id()
    answer = await ask(gateway, user("#sim words=2 rate=0"), id=chat, temperature=1, webSearch=True)
    run = answer.headers["x-workflow-run-id"]
    assert said(answer.content) == words(2)
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert (answer.headers["tailrace-turn"], answer.headers["x-session-id"]) == (run, chat)
    assert answer.headers["tailrace-ignored"] == "temperature, webSearch"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"messages": []}, "request_invalid"),
        ({}, "request_invalid"),
        ({"messages": [{"role": "user", "parts": []}]}, "request_invalid"),
        ({"messages": [{"role": "robot", "parts": []}]}, "request_invalid"),
        ({"messages": [assistant("hi")]}, "request_invalid"),
        ({"messages": [user("hi")], "id": "no spaces"}, "request_invalid"),
        ({"messages": [user("hi")], "model": "gpt-1"}, "model_unknown"),
    ],
)
async def test_what_cannot_be_asked_is_refused(gateway: Gateway, body: Json, code: str) -> None:
    """With a status, before anything is stored: `useChat` shows the body of what is not ok."""
    answer = await gateway.client.post("/api/chat", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_who_asks_in_a_busy_chat_has_done_with_what_runs_there(gateway: Gateway) -> None:
    """`stop()` closes a connection and tells nobody; the answer until then is a part of the conversation."""
    chat = new_id()
    first = asyncio.create_task(ask(gateway, user("#sim words=100 rate=20"), id=chat))
    await until(lambda: is_begun(gateway, chat))
    second = await ask(gateway, user("#sim words=100 rate=20"), user("#sim words=3 rate=0"), id=chat)
    run = (await first).headers["x-workflow-run-id"]
    interrupted = (await gateway.client.get(f"/v1/turns/{run}")).json()
    assert (said(second.content), interrupted["outcome"]) == (words(3), "cancelled")


async def is_begun(gateway: Gateway, chat: str) -> bool:
    return (await gateway.client.get(f"/api/chat/{chat}/messages")).status_code == 200


async def test_a_chat_that_was_never_begun_has_nothing_to_resume(gateway: Gateway, second_gateway: Gateway) -> None:
    """`useChat` asks on every page, and takes anything but 204 for an error; so says every gateway, of any name."""
    for chat in (new_id(), "what ever", "a.b:c", "*", ">"):
        answers = [await one.client.get(f"/api/chat/{chat}/stream") for one in (gateway, second_gateway)]
        assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2
        assert (await gateway.client.get(f"/api/chat/{chat}/stream?startIndex=0")).status_code == 404
        assert (await gateway.client.post(f"/api/chat/{chat}/stop")).status_code == 404


@pytest.mark.parametrize("index", ["", "x", "1.5", "+1", "٣", "12345678901", "--1"])
async def test_an_index_that_is_no_number_is_refused(gateway: Gateway, index: str) -> None:
    run = (await ask(gateway, user("#sim words=1 rate=0"))).headers["x-workflow-run-id"]
    answer = await gateway.client.get(f"/api/chat/{run}/stream?startIndex={index}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")


async def test_an_index_after_the_end_is_refused(gateway: Gateway) -> None:
    """An empty stream would bring the workflow transport back at once, for ever."""
    run = (await ask(gateway, user("#sim words=1 rate=0"))).headers["x-workflow-run-id"]
    whole = await gateway.client.get(f"/api/chat/{run}/stream?startIndex=0")
    count = int(whole.headers["x-workflow-stream-tail-index"]) + 1
    last = await gateway.client.get(f"/api/chat/{run}/stream?startIndex={count - 1}")
    beyond = await gateway.client.get(f"/api/chat/{run}/stream?startIndex={count}")
    assert whole.content.endswith(last.content)
    assert last.content.startswith(b'data: {"type":"finish"')
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (400, "cursor_invalid")


def test_a_page_may_come_a_little_late() -> None:
    """It has loaded its messages while the answer ran; after that the history has it, and nothing is told twice."""
    ended = record_from_fold(TurnKey(Tenant("alice"), TurnId("t")), answered("hi").turn)
    assert ended.ended_at is not None
    seconds = [0.0, LATE_S - 1, LATE_S + 1]
    assert [is_over(ended, ended.ended_at + timedelta(seconds=after)) for after in seconds] == [False, False, True]
    running = msgspec.structs.replace(ended, outcome="running", ended_at=None)
    assert not is_over(running, datetime.now(UTC))


async def test_an_answer_that_ended_a_moment_ago_is_resumed(gateway: Gateway) -> None:
    """From its beginning, under the same message's id, so that it replaces what the page may have."""
    chat = new_id()
    answer = await ask(gateway, user("#sim words=2 rate=0"), id=chat)
    late = await gateway.client.get(f"/api/chat/{chat}/stream")
    assert (late.status_code, late.content) == (200, answer.content)


async def test_a_run_is_told_and_stopped_under_either_name(gateway: Gateway) -> None:
    """The chat's newest turn, or the turn's own name; also one that another protocol has begun."""
    posted = (await gateway.client.post("/v1/turns", json={"message": "#sim words=2 rate=0"})).json()
    told = [
        (await gateway.client.get(f"/api/chat/{name}/stream?startIndex=0")).content
        for name in (posted["turn"], posted["session"])
    ]
    other = (await gateway.client.get(f"/v1/turns/{posted['turn']}/events?dialect=ui")).content
    assert told[0] == told[1] == other
    assert said(other) == words(2)
    stopped = (await gateway.client.post(f"/api/chat/{posted['session']}/stop")).json()
    assert stopped == {"turn": posted["turn"], "outcome": "completed"}


async def test_a_stream_that_a_gateway_closes_lacks_its_end(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """Without `finish` and with a clean end it would look like success to `useChat`."""
    writer = Writer(log, key)
    await writer.open("half")
    with pytest.raises(httpx2.RemoteProtocolError):
        await read_until_closed(lone_gateway, key)


async def read_until_closed(gateway: Gateway, key: TurnKey) -> None:
    """The gateway is told to go away once the reader has something."""
    async with gateway.client.stream("GET", f"/api/chat/{key.turn}/stream") as response:
        async for received in response.aiter_raw():
            if b"half" in received:
                gateway.stopping.set()


async def test_a_page_sees_other_tabs_edits(gateway: Gateway) -> None:
    """Another question in the place of the second begins a branch; the history is the newest one."""
    chat = new_id()
    await ask(gateway, user("#sim words=1 rate=0"), id=chat)
    told = [user("#sim words=1 rate=0"), assistant(words(1))]
    await ask(gateway, *told, user("#sim words=2 rate=0"), id=chat)
    await ask(gateway, *told, user("#sim words=3 rate=0"), id=chat)
    messages = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    texts = ["".join(part.get("text", "") for part in message["parts"]) for message in messages]
    assert texts == ["#sim words=1 rate=0", words(1), "#sim words=3 rate=0", words(3)]


async def test_pictures_and_long_texts_are_in_the_history_as_they_were_sent(gateway: Gateway) -> None:
    """They are lifted out of the log; a page that is loaded anew shows them all the same, and may send them again."""
    chat = new_id()
    picture = "data:image/png;base64," + base64.b64encode(os.urandom(100_000)).decode()
    parts: list[Json] = [
        {"type": "file", "mediaType": "image/png", "url": picture},
        {"type": "file", "mediaType": "image", "url": "https://host.example/a.webp"},
        {"type": "file", "mediaType": "text/plain", "url": "data:text/plain,a%20b", "filename": "a.txt"},
        {"type": "text", "text": "#sim words=1 rate=0\n" + "long " * 20_000},
    ]
    await ask(gateway, {"id": "u", "role": "user", "parts": parts}, id=chat)
    messages = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    assert messages[0]["parts"] == parts
    again = await ask(gateway, *messages, user("#sim words=2 rate=0"), id=chat)
    record = (await gateway.client.get(f"/v1/turns/{again.headers['tailrace-turn']}")).json()
    assert record["input"] == [{"role": "user", "content": "#sim words=2 rate=0"}]


async def test_a_picture_that_was_sent_again_is_told_as_often(
    gateway: Gateway, house: House, new_gateway: NewGateway
) -> None:
    """It is one blob, wherever it stands; and what a client may not say in one body it is not told in one."""
    chat = new_id()
    picture = "data:image/png;base64," + base64.b64encode(os.urandom(100_000)).decode()
    messages: list[Json] = []
    for number in range(1, 4):
        parts: list[Json] = [
            {"type": "file", "mediaType": "image/png", "url": picture},
            {"type": "text", "text": f"#sim words={number} rate=0"},
        ]
        await ask(gateway, *messages, {"id": f"u{number}", "role": "user", "parts": parts}, id=chat)
        messages = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    pictures = [part["url"] for message in messages for part in message["parts"] if part["type"] == "file"]
    assert (len(messages), pictures) == (6, [picture] * 3)
    small = await new_gateway(house.nats_url, body_bytes_max=350_000)
    answer = await small.client.get(f"/api/chat/{chat}/messages")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_chat_of_any_length_is_told_from_its_beginning_to_its_end(
    gateway: Gateway, house: House, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By as many pages as it takes, each of which may be as short as one turn; too long is what no body could say."""
    monkeypatch.setattr("tailrace.gateway.clients.ai_sdk.history.PAGE_TURNS", 1)
    chat, told = new_id(), list[Json]()
    for number in range(1, 24):
        told.append(user(f"#sim words={number} rate=0"))
        await ask(gateway, *told, id=chat)
        told.append(assistant(words(number)))
    url = f"/api/chat/{chat}/messages"
    messages = (await gateway.client.get(url)).json()
    texts = ["".join(part.get("text", "") for part in message["parts"]) for message in messages]
    assert texts == [part["text"] for message in told for part in message["parts"]]
    small = await new_gateway(house.nats_url, body_bytes_max=10_000)
    answer = await small.client.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert f"/v1/sessions/{chat}/turns" in answer.json()["error"]["message"]


async def test_a_chat_that_was_made_and_never_asked_has_no_messages(gateway: Gateway) -> None:
    """A page that begins with them begins; of a chat that was never made there are none to tell."""
    chat = new_id()
    assert (await gateway.client.get(f"/api/chat/{chat}/messages")).status_code == 404
    await gateway.client.post("/v1/sessions", json={"id": chat})
    answer = await gateway.client.get(f"/api/chat/{chat}/messages")
    assert (answer.status_code, answer.json()) == (200, [])
