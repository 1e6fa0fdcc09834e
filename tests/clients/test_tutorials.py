"""The tutorial routes with the loops of tutorials: they show the text of the log."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
import pytest
from httpx_sse import aconnect_sse

from tailrace.proto.entries import Failure
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.clients.conftest import read_stored_text
from tests.clients.matrix import post_with
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.harness.refusals import problem_of
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.integration.conftest import KEY, Gateway, NewGateway

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


@pytest.mark.proves("delta", "stream", "a tutorial's fetch loop")
async def test_chat_stream_loop_shows_the_answer(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """`delta`, `delta`, …, `done`, and no other kind."""
    body = {"message": LINE, "max_tokens": 100, "system": "Be brief."}
    turn, *events = [event async for event in lines_of(page, f"{gateway.url}/chat/stream", body)]
    assert {event["type"] for event in events[:-1]} == {"delta"}
    assert events[-1] == {"type": "done", "cursor": events[-1]["cursor"]}
    assert "".join(event["text"] for event in events[:-1]) == TEXT == await read_stored_text(gateway, turn["turn"])


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        ("/chat/stream", {"message": SLOW}, "delta"),
        ("/ai/chat", {"messages": [{"role": "user", "content": SLOW}]}, "content"),
    ],
)
async def test_a_loop_that_splits_at_blank_lines_reads_past_heartbeats(
    system: System, gateway: Gateway, new_gateway: NewGateway, path: str, body: object, dialect: str
) -> None:
    """Glued to a heartbeat, an event would not begin with `data: `."""
    quick = await new_gateway(system.nats_url, heartbeat_s=0.02)
    shown = await post_with("posts.mjs", "loop", f"{quick.url}{path}", body, dialect)
    assert shown["others"] > 1
    assert shown["text"] == words(4) == await read_stored_text(quick, shown["turn"])


async def test_a_client_that_accepts_server_sent_events_receives_ids(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """From the tutorial route and from `GET /v1/turns/{turn}/events`."""
    accept = {"accept": "text/event-stream"}
    sent = await page.post(f"{gateway.url}/chat/stream", json={"message": "#sim words=2 rate=0"}, headers=accept)
    events = f"{gateway.url}/v1/turns/{sent.headers['tailrace-turn']}/events?dialect=delta"
    assert all(event.id is not None and "cursor" not in event.data for event in parse(sent.content))
    assert (await page.get(events, headers=accept)).content == sent.content
    assert all(event.id is None and "cursor" in event.data for event in parse((await page.get(events)).content))


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (
            Failure("backend_rate_limited", "slow down", 6.2),
            {
                "type": "error",
                "error": "rate_limit",
                "code": "backend_rate_limited",
                "message": "slow down",
                "retry_after": 7,
            },
        ),
        (
            Failure("backend_overloaded", "too many"),
            {"type": "error", "error": "network_error", "code": "backend_overloaded", "message": "too many"},
        ),
    ],
)
async def test_failure_is_an_error_event(
    lone_gateway: Gateway,
    log: TurnLog,
    tenant: Tenant,
    page: httpx.AsyncClient,
    failure: Failure,
    shown: dict[str, Any],
) -> None:
    """A code, a message, and the model's Retry-After in whole seconds."""
    events = lines_of(page, f"{lone_gateway.url}/chat/stream", {"message": "hi"})
    turn = (await anext(events))["turn"]
    writer = Writer(log, TurnKey(tenant, TurnId(turn)))
    writer.chain = (await log.read_turn(writer.key)).chain
    await writer.begin("half")
    await writer.end("failed", failure)
    delta, error = [event async for event in events]
    assert (delta["text"], error) == ("half", shown | {"cursor": error["cursor"]})


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


@pytest.mark.parametrize("cookie", ["", "short", "a" * 33, "../../etc", "claude-code:1234567890123456789"])
async def test_unknown_cookie_starts_a_conversation(gateway: Gateway, page: httpx.AsyncClient, cookie: str) -> None:
    """A made-up cookie opens no conversation and names none."""
    line = {"message": "#sim words=1 rate=0"}
    response = await page.post(f"{gateway.url}/chat", json=line, headers={"cookie": f"tailrace_chat={cookie}"})
    name = response.headers["set-cookie"].removeprefix("tailrace_chat=").partition(";")[0]
    assert response.status_code == 200
    assert len(name) == 32
    assert cookie != name
    assert response.headers["x-session-id"] == f"chat:{hashlib.sha256(name.encode()).hexdigest()}"


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


@pytest.mark.proves("job", "resumes after cuts", "httpx-sse")
async def test_job_resumes_after_cuts_and_completes_with_the_result(gateway: Gateway, page: httpx.AsyncClient) -> None:
    """202 with its id; then `progress`, …, `complete` with the whole result."""
    started = await page.post(f"{gateway.url}/api/start-job", json={"prompt": LINE})
    job = started.json()["job_id"]
    assert (started.status_code, started.headers["location"]) == (202, f"/api/stream/{job}")
    sent, last = b"", "0"
    async with Cutting(gateway.port, random_cuts(11, count=3, bytes_max=1700)) as proxy:
        while b"event: complete" not in sent:
            with suppress(httpx.TransportError):
                url = f"{proxy.url}/api/stream/{job}"
                async with aconnect_sse(page, "GET", url, headers={"last-event-id": last}) as source:
                    async for event in source.aiter_sse():
                        sent += f"event: {event.event}\ndata: {event.data}\n\n".encode()
                        last = event.id or last
        assert proxy.left == []
    pieces = [json.loads(line.removeprefix(b"data: ")) for line in sent.splitlines() if line.startswith(b"data: ")]
    named = [piece for piece in pieces if "type" in piece]
    assert "".join(piece.get("text", "") for piece in named) == TEXT
    assert (named[-1]["type"], named[-1]["status"], named[-1]["result"]) == ("complete", "completed", TEXT)
    assert await read_stored_text(gateway, job) == TEXT


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
    """An EventSource reconnects after every end until it receives 204."""
    job = (await page.post(f"{gateway.url}/api/start-job", json={"message": "#sim words=1 rate=0"})).json()["job_id"]
    async with aconnect_sse(page, "GET", f"{gateway.url}/api/stream/{job}") as source:
        events = [event async for event in source.aiter_sse()]
    again = await page.get(f"{gateway.url}/api/stream/{job}", headers={"last-event-id": events[-1].id})
    assert again.status_code == 204


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"message": 5}),
        ("/ai/chat", {"messages": [{"role": "tool", "content": "x"}]}),
        ("/ai/chat", {"messages": []}),
        ("/api/start-job", {}),
        ("/api/start-job", {"prompt": "a", "message": "b"}),
    ],
)
async def test_invalid_body_is_refused_by_name(
    gateway: Gateway, page: httpx.AsyncClient, path: str, body: object
) -> None:
    """400 in the error envelope."""
    refused = await page.post(f"{gateway.url}{path}", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")


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
    gateway: Gateway, page: httpx.AsyncClient, body: object, headers: dict[str, str], status: int, code: str
) -> None:
    """Its loop reads the body without looking at the status, which is that of other routes."""
    url = f"{gateway.url}/chat/stream"
    refused = await page.post(url, json=body, headers=headers)
    assert (refused.status_code, problem_of(refused.content).code) == (status, code)
    assert refused.headers["content-type"] == "text/event-stream"
    envelope = await page.post(url, json=body, headers=headers | {"accept": "application/json"})
    assert (envelope.status_code, envelope.json()["error"]["code"]) == (status, code)
