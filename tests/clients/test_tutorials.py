"""The tutorial routes with the loops of tutorials: they show the text of the log."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tailrace.proto.entries import Failure
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.readers import render_frames
from tests.harness.refusals import problem_of
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.turn_builder import Handwritten
from tests.integration.conftest import KEY, Gateway, NewGateway, on_shared_loop

EXAMPLE = CHECKOUT / "examples/chat_stream.mjs"
TEXT = words(40)
LINE = "#sim words=40 rate=200"
SLOW = "#sim words=4 rate=8"


@pytest.fixture
async def page() -> AsyncIterator[httpx.AsyncClient]:
    """A client with cookies and an API key."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=20) as client:
        yield client


async def lines_of(page: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Returns the lines that a loop over `data: ` lines receives."""
    async with page.stream("POST", url, json=body) as response:
        assert response.status_code == 200, await response.aread()
        yield {"turn": response.headers["tailrace-turn"]}
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


async def test_the_example_of_a_loop_shows_the_answer_or_the_refusal(
    gateway: Gateway, page: httpx.AsyncClient, tmp_path: Path
) -> None:
    """A refused request is not repeated."""
    command = [str(node.NODE), str(EXAMPLE), "Name a river."]
    refused, answered = [
        await node.command(command, {"TAILRACE_URL": gateway.url, "TAILRACE_KEY": key}, tmp_path)
        for key in ("wrong", KEY)
    ]
    assert "credential_invalid" in refused
    answer = (await page.post(f"{gateway.url}/chat", json={"message": "Name a river."})).text
    assert answered.startswith(f"{answer}{{ type: 'done'")


@pytest.mark.proves("delta", "stream", "a tutorial's fetch loop")
async def test_chat_stream_loop_shows_the_answer(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """`delta`, `delta`, …, `done`, and no other kind."""
    body = {"message": LINE, "max_tokens": 100, "system": "Be brief."}
    turn, *events = [event async for event in lines_of(page, f"{gateway.url}/chat/stream", body)]
    assert {event["type"] for event in events[:-1]} == {"delta"}
    assert events[-1] == {"type": "done", "cursor": events[-1]["cursor"]}
    assert "".join(event["text"] for event in events[:-1]) == TEXT == await read_stored_text(gateway, turn["turn"])


async def test_a_loop_that_splits_at_blank_lines_reads_past_heartbeats(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """Glued to a heartbeat, an event would not begin with `data: `."""
    quick = await new_gateway(system.nats_url, heartbeat_s=0.02)
    for path, body, field in (
        ("/chat/stream", {"message": SLOW}, "text"),
        ("/ai/chat", {"messages": [{"role": "user", "content": SLOW}]}, "content"),
    ):
        pieces = (await quick.client.post(path, json=body)).text.split("\n\n")
        events = [json.loads(piece.removeprefix("data: ")) for piece in pieces if piece.startswith("data: ")]
        assert len(pieces) > len(events) + 2, path
        assert "".join(event.get(field, "") for event in events) == words(4), path


async def test_a_client_that_accepts_server_sent_events_receives_ids(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """From the tutorial route and from `GET /v1/turns/{turn}/events`."""
    accept = {"accept": "text/event-stream"}
    sent = await page.post(f"{gateway.url}/chat/stream", json={"message": "#sim words=2 rate=0"}, headers=accept)
    events = f"{gateway.url}/v1/turns/{sent.headers['tailrace-turn']}/events?dialect=delta"
    assert all(event.id is not None and "cursor" not in event.data for event in parse(sent.content))
    assert (await page.get(events, headers=accept)).content == sent.content
    assert all(event.id is None and "cursor" in event.data for event in parse((await page.get(events)).content))


def test_a_rate_limit_of_the_model_has_the_name_that_tutorials_expect() -> None:
    """With a time also where the model names none. Golden files have the other errors."""
    log = Handwritten()
    log.store_request()
    log.end("failed", Failure("backend_rate_limited", "slow down"))
    *_, frame = render_frames(TurnKey(Tenant("t"), TurnId("turn")), log.stored, "delta")
    event = json.loads(frame.sent.removeprefix(b"data: "))
    assert (event["error"], event["code"], event["retry_after"] > 0) == ("rate_limit", "backend_rate_limited", True)


@pytest.mark.proves("text", "conversation by cookie", "a tutorial's chat page")
async def test_conversation_of_the_cookie_outlives_the_gateway(
    gateway: Gateway, system: System, new_gateway: NewGateway, page: httpx.AsyncClient, claude: str
) -> None:
    """Another gateway answers the second message, and the model receives the first."""
    first = await page.post(f"{gateway.url}/chat", json={"message": f"one\n{LINE}"})
    assert (first.text, first.headers["content-type"]) == (TEXT, "text/plain; charset=utf-8")
    cookie = first.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    await gateway.stop()
    later = await new_gateway(system.nats_url)
    second = await page.post(f"{later.url}/chat", json={"message": f"two\n{LINE}"})
    messages = (await page.get(f"{claude}/_sim/last")).json()["body"]["messages"]
    assert [message["content"] for message in messages] == [f"one\n{LINE}", TEXT, f"two\n{LINE}"]
    assert first.headers["x-session-id"] == second.headers["x-session-id"]
    assert await read_stored_text(later, second.headers["tailrace-turn"]) == TEXT


async def test_unknown_cookie_starts_a_conversation(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """A made-up cookie opens no conversation and names none."""
    line = {"message": "#sim words=1 rate=0"}
    for cookie in ("", "short", "a" * 33, "../../etc", "claude-code:1234567890123456789"):
        response = await page.post(f"{gateway.url}/chat", json=line, headers={"cookie": f"tailrace_chat={cookie}"})
        name = response.headers["set-cookie"].removeprefix("tailrace_chat=").partition(";")[0]
        assert (response.status_code, len(name), name != cookie) == (200, 32, True), cookie
        assert response.headers["x-session-id"] == f"chat:{hashlib.sha256(name.encode()).hexdigest()}"
        page.cookies.clear()


async def test_cookie_is_not_in_sessions_or_headers(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """It is HttpOnly: a client with the tenant's key cannot read it from sessions or headers."""
    response = await page.post(f"{gateway.url}/chat", json={"message": "#sim words=1 rate=0"})
    listed = await page.get(f"{gateway.url}/v1/sessions")
    assert response.headers["x-session-id"] in listed.text
    assert page.cookies["tailrace_chat"] not in f"{listed.text} {response.headers['x-session-id']}"


async def test_idempotency_key_belongs_to_one_conversation(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """The same key and words with another cookie do not return the first answer."""

    async def ask(cookie: str) -> httpx.Response:
        headers = {"idempotency-key": "key-1", "cookie": f"tailrace_chat={cookie * 32}"}
        return await page.post(f"{gateway.url}/chat", json={"message": "#sim words=1 rate=0"}, headers=headers)

    first, again, other = await ask("a"), await ask("a"), await ask("b")
    assert first.headers["tailrace-turn"] == again.headers["tailrace-turn"]
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_repeated_first_post_is_one_turn_with_one_cookie(
    gateway: Gateway, system: System, new_gateway: NewGateway, claude: str
) -> None:
    """A page that lost the answer and its cookie receives both again, at any gateway."""
    key = {"idempotency-key": str(uuid4())}

    async def ask(gateway: Gateway, message: str, **headers: str) -> httpx.Response:
        # A client without a cookie jar: `headers` has its cookies.
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False) as page:
            return await page.post(f"{gateway.url}/chat", json={"message": message}, headers=headers)

    line = "#sim words=1 rate=0"
    elsewhere = await new_gateway(system.nats_url)
    first, again = await ask(gateway, line, **key), await ask(elsewhere, line, **key)
    cookie = first.headers["set-cookie"].partition(";")[0]
    kept = await ask(gateway, line, cookie=cookie, **key)
    for repeated in (again, kept):
        assert (repeated.text, repeated.status_code) == (first.text, 200)
        for name in ("tailrace-turn", "x-session-id", "set-cookie"):
            assert repeated.headers[name] == first.headers[name]
    following = await ask(gateway, f"two\n{line}", cookie=again.headers["set-cookie"].partition(";")[0])
    assert following.headers["x-session-id"] == first.headers["x-session-id"]
    async with httpx.AsyncClient(trust_env=False) as asking:
        messages = (await asking.get(f"{claude}/_sim/last")).json()["body"]["messages"]
    assert [message["content"] for message in messages] == [line, first.text, f"two\n{line}"]
    other = await ask(gateway, f"{line} tag=x", **key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_short_idempotency_key_of_a_first_post_is_refused(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """Two users with the key `1` and the same words would share a conversation."""
    for key in ("1", "a" * 21):
        answer = await page.post(f"{gateway.url}/chat", json={"message": "hello"}, headers={"idempotency-key": key})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_invalid")
        assert "set-cookie" not in answer.headers


async def test_first_post_without_a_key_starts_a_conversation(gateway: Gateway, page: httpx.AsyncClient) -> None:
    seen = set()
    for _ in range(2):
        page.cookies.clear()
        answer = await page.post(f"{gateway.url}/chat", json={"message": "#sim words=1 rate=0"})
        seen.add((answer.headers["x-session-id"], answer.headers["tailrace-turn"]))
    assert len({session for session, _ in seen}) == len({turn for _, turn in seen}) == 2


@pytest.mark.proves("content", "stream", "a tutorial's fetch loop")
async def test_ai_chat_loop_shows_the_answer(gateway: Gateway, page: httpx.AsyncClient, claude: str) -> None:
    """`{"content"}` only; the system message goes where Anthropic's API expects it."""
    body = {
        "model": "claude-haiku-5-5",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": LINE},
        ],
    }
    turn, *events = [event async for event in lines_of(page, f"{gateway.url}/ai/chat", body)]
    assert {tuple(event) for event in events} == {("content", "cursor")}
    assert "".join(event["content"] for event in events) == TEXT == await read_stored_text(gateway, turn["turn"])
    model_request = (await page.get(f"{claude}/_sim/last")).json()["body"]
    assert (model_request["model"], model_request["system"], len(model_request["messages"])) == (
        "claude-haiku-5-5",
        "Be brief.",
        3,
    )


async def test_unnamed_events_of_a_job_are_its_states(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """`POST /api/process`, and what `useSSE` receives at `/api/stream/{job}`: progress, then the result."""
    started = await page.post(f"{gateway.url}/api/process", json={"message": LINE})
    job = parse((await page.get(f"{gateway.url}{started.json()['stream']}")).content)
    events = f"{gateway.url}/v1/turns/{started.json()['job_id']}/events?dialect=state"
    states = [json.loads(event.data) for event in parse((await page.get(events)).content)]
    assert [json.loads(event.data) for event in job if not event.event] == states
    assert [state["progress"] for state in states] == sorted(state["progress"] for state in states)
    assert (states[0]["status"], states[-1]["progress"], states[-1]["result"]) == ("queued", 100, TEXT)


async def test_stream_after_the_end_of_a_job_is_empty(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """202 with its id. An EventSource reconnects after every end until it receives 204."""
    started = await page.post(f"{gateway.url}/api/start-job", json={"message": "#sim words=1 rate=0"})
    job = started.json()["job_id"]
    assert (started.status_code, started.headers["location"]) == (202, f"/api/stream/{job}")
    last = parse((await page.get(f"{gateway.url}/api/stream/{job}")).content)[-1]
    assert json.loads(last.data)["status"] == "completed"
    again = await page.get(f"{gateway.url}/api/stream/{job}", headers={"last-event-id": str(last.id)})
    assert again.status_code == 204


@on_shared_loop
@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        ({"message": "hi"}, {"authorization": "Bearer wrong"}, 401, "credential_invalid"),
        ({"message": "hi", "stream": True}, {}, 400, "request_invalid"),
        ({"message": "hi"}, {"idempotency-key": "a b"}, 400, "idempotency_key_invalid"),
        ({"message": "hi"}, {"content-type": "text/plain"}, 415, "content_type_unsupported"),
    ],
)
async def test_refusal_of_chat_stream_is_an_event(
    shared_gateway: Gateway, body: object, headers: dict[str, str], status: int, code: str
) -> None:
    """Its loop reads the body without looking at the status, which is that of other routes."""
    client = shared_gateway.client
    refused = await client.post("/chat/stream", json=body, headers=headers)
    assert (refused.status_code, problem_of(refused.content).code) == (status, code)
    assert refused.headers["content-type"] == "text/event-stream"
    envelope = await client.post("/chat/stream", json=body, headers=headers | {"accept": "application/json"})
    assert (envelope.status_code, envelope.json()["error"]["code"]) == (status, code)
