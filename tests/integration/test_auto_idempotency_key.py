"""`Idempotency-Key: auto`, by which equal requests are one turn; and `pace`, which replays a turn at its speed."""

import asyncio
import hashlib
import json
from typing import Any

import msgspec
import pytest

from tailrace.features.auto_idempotency import gateway as auto_idempotency
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.ids import new_id
from tests.harness import jwts
from tests.harness.displayed_text import SAYS
from tests.harness.readers import read
from tests.harness.sse_parser import EventStream, SseEvent, without_retry
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway

AUTO = {"idempotency-key": "auto"}
EVENTS = {"accept": "text/event-stream"}


def question(line: str = "words=3 rate=0") -> dict[str, Any]:
    """Returns the body of a new question."""
    return {"message": f"#sim {line}\n{new_id()}"}


async def post_chat(gateway: Gateway, body: dict[str, Any], **headers: str) -> str:
    answer = await gateway.client.post("/v1/turns", json=body, headers=AUTO | headers)
    assert answer.status_code == 202, answer.text
    turn: str = answer.json()["turn"]
    return turn


@pytest.mark.rule("R62")
async def test_equal_requests_are_one_turn(gateway: Gateway, second_gateway: Gateway) -> None:
    """At any gateway, during and after the answer, in any JSON formatting; with another field they are not."""
    body = question() | {"metadata": {"a": "1", "b": "2"}}
    first = await post_chat(gateway, body)
    turned = {"metadata": {"b": "2", "a": "1"}, "message": body["message"]}
    await read(gateway.client, first)
    again = [await post_chat(one, other) for one in (gateway, second_gateway) for other in (body, turned)]
    spaced = await gateway.client.post(
        "/v1/turns",
        content=json.dumps(turned, indent=4),
        headers=AUTO | {"content-type": "application/json"},
    )
    assert {*again, spaced.json()["turn"]} == {first}
    others = [body | {"max_tokens": 9}, body | {"message": "Hi"}, body | {"metadata": {"a": "1"}}]
    assert first not in {await post_chat(gateway, other) for other in others}


@pytest.mark.rule("R62")
async def test_equal_requests_of_two_users_are_two_turns(system: System, new_gateway: NewGateway) -> None:
    """The JWT names the user, and each user's turns are counted and erased separately."""
    gateway, body = await new_gateway(system.nats_url, **jwts.settings(jwt_user_claim="email")), question()

    async def post_as(user: str) -> str:
        token = jwts.token(sub="acme", email=user).decode()
        return await post_chat(gateway, body, authorization=f"Bearer {token}")

    ann, eve, again = [await post_as(user) for user in ("ann@example.com", "eve@example.com", "ann@example.com")]
    assert ann == again != eve


@pytest.mark.rule("R62")
async def test_concurrent_equal_requests_are_one_turn(gateway: Gateway, second_gateway: Gateway) -> None:
    body = question()
    turns = await asyncio.gather(*(post_chat(one, body) for _ in range(10) for one in (gateway, second_gateway)))
    assert len({*turns}) == 1


@pytest.mark.rule("R62")
async def test_no_key_of_a_client_is_an_automatic_key(gateway: Gateway) -> None:
    body = question()
    first = await post_chat(gateway, body)
    sha256 = hashlib.sha256(msgspec.json.encode(NewTurn(**body), order="sorted")).hexdigest()
    own = await gateway.client.post("/v1/turns", json=question(), headers={"idempotency-key": f"auto:{sha256}"})
    assert own.status_code == 202, own.text
    assert await post_chat(gateway, body) == first


async def test_other_protocols_support_auto_keys(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": question()["message"]}]
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": messages}
    first, again = [await gateway.client.post("/v1/messages", json=body, headers=AUTO) for _ in range(2)]
    assert (again.headers["tailrace-turn"], again.content) == (first.headers["tailrace-turn"], first.content)
    other = await gateway.client.post("/v1/messages", json=body | {"max_tokens": 8}, headers=AUTO)
    assert other.headers["tailrace-turn"] != first.headers["tailrace-turn"]


@pytest.mark.rule("R62")
@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_a_failed_or_cancelled_turn_is_not_reused(gateway: Gateway, how: str) -> None:
    """The next request gets a new turn, and later ones get that turn."""
    body = question("words=3 rate=0 fault=error@1x1" if how == "failed" else "words=50 rate=1")
    body |= {"on_interrupt": "fail"}
    first = await post_chat(gateway, body)
    if how == "cancelled":
        await gateway.client.post(f"/v1/turns/{first}/cancel")
    await read(gateway.client, first)
    assert (await gateway.client.get(f"/v1/turns/{first}")).json()["outcome"] == how
    again = [await post_chat(gateway, body) for _ in range(3)]
    assert len({*again}) == 1
    assert first not in again
    await gateway.client.post(f"/v1/turns/{again[0]}/cancel")


async def test_a_request_that_always_fails_is_a_new_turn_each_time(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After FAILED_MAX failures older turns are not looked at."""
    monkeypatch.setattr(auto_idempotency, "FAILED_MAX", 2)
    body = question("words=3 rate=0 fault=error@1") | {"on_interrupt": "fail"}
    turns = []
    for _ in range(4):
        turns.append(await post_chat(gateway, body))
        await read(gateway.client, turns[-1])
    assert len({*turns}) == 4


async def slow_turn(gateway: Gateway) -> str:
    """Returns a turn that was written over half a second."""
    turn = await post_chat(gateway, question("words=5 rate=10"))
    await read(gateway.client, turn)
    return turn


async def test_a_paced_stream_has_the_same_bytes_in_every_dialect(gateway: Gateway) -> None:
    turn = await slow_turn(gateway)
    for dialect in SAYS:
        at_once, paced = [
            await gateway.client.get(f"/v1/turns/{turn}/events?dialect={dialect}{pace}") for pace in ("", "&pace=20")
        ]
        assert without_retry(paced.content) == without_retry(at_once.content), dialect


async def test_a_paced_stream_sends_heartbeats_until_the_next_entry_is_due(
    system: System, generator: object, new_gateway: NewGateway
) -> None:
    """A reader that disconnects and resumes gets exactly the rest."""
    gateway = await new_gateway(system.nats_url, heartbeat_s=0.1)
    turn = await slow_turn(gateway)
    stream = EventStream()
    events: list[SseEvent] = []
    async with gateway.client.stream("GET", f"/v1/turns/{turn}/events?pace=0.001") as response:
        async for received in response.aiter_raw():
            events += stream.feed(received)
            if len(stream.comments) >= 3:
                break
    assert [event.data for event in events if '"delta"' in event.data] == []
    assert events[-1].id is not None
    whole = await read(gateway.client, turn)
    rest = await gateway.client.get(f"/v1/turns/{turn}/events?pace=999", headers={"last-event-id": str(events[-1].id)})
    received = b"".join(event.raw for event in events) + without_retry(rest.content)
    assert received == without_retry(b"".join(frame.sent for frame in whole.frames))


async def test_a_paced_stream_of_a_running_turn_is_live(gateway: Gateway) -> None:
    turn = await post_chat(gateway, question("words=5 rate=20"))
    paced = await gateway.client.get(f"/v1/turns/{turn}/events?dialect=text&pace=1")
    assert paced.text == "w000000 w000001 w000002 w000003 w000004"


async def test_a_streamed_post_accepts_a_pace(gateway: Gateway) -> None:
    """In the native protocol and in others."""
    body = question("words=5 rate=10")
    answers = [
        await gateway.client.post(f"/v1/turns?dialect=text{pace}", json=body, headers=AUTO | EVENTS)
        for pace in ("", "&pace=20")
    ]
    assert [answer.text for answer in answers] == ["w000000 w000001 w000002 w000003 w000004"] * 2
    assert len({answer.headers["tailrace-turn"] for answer in answers}) == 1
    chat = {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": True}
    chat |= {"messages": [{"role": "user", "content": body["message"]}]}
    streams = [await gateway.client.post(f"/v1/messages{pace}", json=chat, headers=AUTO) for pace in ("", "?pace=20")]
    assert (await gateway.client.post("/v1/messages?pace=0", json=chat)).status_code == 400
    assert streams[0].content == streams[1].content
