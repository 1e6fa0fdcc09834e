"""The same question gets the same answer, from the log: with `Idempotency-Key: auto`, at once or at its pace."""

import asyncio
import hashlib
import json
from typing import Any

import pytest

from tailrace.gateway.turns import auto_idempotency
from tailrace.proto.ids import new_id
from tests.harness.displayed_text import SAYS
from tests.harness.readers import read
from tests.harness.sse_parser import EventStream, Sent, turns_own
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway

AUTO = {"idempotency-key": "auto"}
EVENTS = {"accept": "text/event-stream"}


def question(line: str = "words=3 rate=0") -> dict[str, Any]:
    """One that nobody else asks."""
    return {"message": f"#sim {line}\n{new_id()}"}


async def posted(gateway: Gateway, body: dict[str, Any], **headers: str) -> str:
    answer = await gateway.client.post("/v1/turns", json=body, headers=AUTO | headers)
    assert answer.status_code == 202, answer.text
    turn: str = answer.json()["turn"]
    return turn


@pytest.mark.rule("R62")
async def test_the_same_question_is_the_same_turn(gateway: Gateway, second_gateway: Gateway) -> None:
    """At any gateway, while it is answered and afterwards, and however its JSON is written; another one is not."""
    body = question() | {"metadata": {"a": "1", "b": "2"}}
    first = await posted(gateway, body)
    turned = {"metadata": {"b": "2", "a": "1"}, "message": body["message"]}
    await read(gateway.client, first)
    again = [await posted(one, told) for one in (gateway, second_gateway) for told in (body, turned)]
    spaced = await gateway.client.post(
        "/v1/turns",
        content=json.dumps(turned, indent=4),
        headers=AUTO | {"content-type": "application/json"},
    )
    assert {*again, spaced.json()["turn"]} == {first}
    others = [body | {"max_tokens": 9}, body | {"message": "Hi"}, body | {"metadata": {"a": "1"}}]
    assert first not in {await posted(gateway, other) for other in others}


@pytest.mark.rule("R62")
async def test_of_many_who_ask_at_once_one_is_answered(gateway: Gateway, second_gateway: Gateway) -> None:
    """One turn, one call of the model, and all of them read it."""
    body = question()
    turns = await asyncio.gather(*(posted(one, body) for _ in range(10) for one in (gateway, second_gateway)))
    assert len({*turns}) == 1


async def test_other_protocols_ask_so_too(gateway: Gateway) -> None:
    """The same words in another protocol's body are the same there."""
    asked = [{"role": "user", "content": question()["message"]}]
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": asked}
    first, again = [await gateway.client.post("/v1/messages", json=body, headers=AUTO) for _ in range(2)]
    assert (again.headers["tailrace-turn"], again.content) == (first.headers["tailrace-turn"], first.content)
    other = await gateway.client.post("/v1/messages", json=body | {"max_tokens": 8}, headers=AUTO)
    assert other.headers["tailrace-turn"] != first.headers["tailrace-turn"]


@pytest.mark.rule("R62")
@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_what_came_to_nothing_is_no_answer(gateway: Gateway, how: str) -> None:
    """Who asks once more gets a new turn; once that is answered, everybody gets it."""
    body = question("words=3 rate=0 fault=error@1x1" if how == "failed" else "words=50 rate=1")
    body |= {"on_interrupt": "fail"}
    first = await posted(gateway, body)
    if how == "cancelled":
        await gateway.client.post(f"/v1/turns/{first}/cancel")
    await read(gateway.client, first)
    assert (await gateway.client.get(f"/v1/turns/{first}")).json()["outcome"] == how
    again = [await posted(gateway, body) for _ in range(3)]
    assert len({*again}) == 1
    assert first not in again
    await gateway.client.post(f"/v1/turns/{again[0]}/cancel")


async def test_a_question_that_always_fails_is_asked_all_the_same(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many failures nobody looks any further back."""
    monkeypatch.setattr(auto_idempotency, "FAILED_MAX", 2)
    body = question("words=3 rate=0 fault=error@1") | {"on_interrupt": "fail"}
    turns = []
    for _ in range(4):
        turns.append(await posted(gateway, body))
        await read(gateway.client, turns[-1])
    assert len({*turns}) == 4


async def test_another_tenants_answer_is_not_given(gateway: Gateway, new_gateway: NewGateway, system: System) -> None:
    """Whoever asks the same there is answered there."""
    other = f"tenant-{new_id()}:{hashlib.sha256(b'other').hexdigest()}"
    theirs = await new_gateway(system.nats_url, api_keys=other)
    theirs.client.headers["authorization"] = "Bearer other"
    body = question()
    assert await posted(gateway, body) != await posted(theirs, body)


async def slowly(gateway: Gateway) -> str:
    """A turn that was written over half a second."""
    turn = await posted(gateway, question("words=5 rate=10"))
    await read(gateway.client, turn)
    return turn


@pytest.mark.parametrize("dialect", SAYS)
async def test_at_a_pace_a_reader_gets_what_others_get(gateway: Gateway, dialect: str) -> None:
    """Byte for byte: only the time is another."""
    turn = await slowly(gateway)
    at_once, paced = [
        await gateway.client.get(f"/v1/turns/{turn}/events?dialect={dialect}{pace}") for pace in ("", "&pace=20")
    ]
    assert turns_own(paced.content) == turns_own(at_once.content)


async def test_what_is_not_due_is_not_told_yet(system: System, generator: object, new_gateway: NewGateway) -> None:
    """A reader is kept by heartbeats, may leave, and comes back to exactly what follows."""
    gateway = await new_gateway(system.nats_url, heartbeat_s=0.1)
    turn = await slowly(gateway)
    stream = EventStream()
    events: list[Sent] = []
    async with gateway.client.stream("GET", f"/v1/turns/{turn}/events?pace=0.001") as response:
        async for received in response.aiter_raw():
            events += stream.feed(received)
            if len(stream.comments) >= 3:
                break
    assert [event.data for event in events if '"delta"' in event.data] == []
    assert events[-1].id is not None
    whole = await read(gateway.client, turn)
    rest = await gateway.client.get(f"/v1/turns/{turn}/events?pace=999", headers={"last-event-id": str(events[-1].id)})
    told = b"".join(event.raw for event in events) + turns_own(rest.content)
    assert told == turns_own(b"".join(frame.sent for frame in whole.frames))


async def test_a_turn_that_is_being_written_is_told_as_it_is(gateway: Gateway) -> None:
    """What has just been written is due."""
    turn = await posted(gateway, question("words=5 rate=20"))
    paced = await gateway.client.get(f"/v1/turns/{turn}/events?dialect=text&pace=1")
    assert paced.text == "w000000 w000001 w000002 w000003 w000004"


async def test_a_question_may_name_a_pace(gateway: Gateway) -> None:
    """On its own stream, in our protocol and in others'."""
    body = question("words=5 rate=10")
    told = [
        await gateway.client.post(f"/v1/turns?dialect=text{pace}", json=body, headers=AUTO | EVENTS)
        for pace in ("", "&pace=20")
    ]
    assert [answer.text for answer in told] == ["w000000 w000001 w000002 w000003 w000004"] * 2
    assert len({answer.headers["tailrace-turn"] for answer in told}) == 1
    messages = {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": True}
    messages |= {"messages": [{"role": "user", "content": body["message"]}]}
    streams = [
        await gateway.client.post(f"/v1/messages{pace}", json=messages, headers=AUTO) for pace in ("", "?pace=20")
    ]
    assert streams[0].content == streams[1].content


@pytest.mark.parametrize("path", ["/v1/turns", "/v1/messages", "/v1/turns/{turn}/events"])
async def test_a_pace_that_is_none_is_refused(gateway: Gateway, path: str) -> None:
    """Before anything is asked."""
    turn = await posted(gateway, question())
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    method = "GET" if "{" in path else "POST"
    answer = await gateway.client.request(
        method, path.format(turn=turn) + "?pace=0", json=None if method == "GET" else body
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
