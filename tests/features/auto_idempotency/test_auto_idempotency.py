"""`Idempotency-Key: auto`, by which equal requests are one turn."""

import asyncio
import hashlib
import json
from typing import Any

import msgspec
import pytest

from tailrace.features.auto_idempotency import gateway as auto_idempotency
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness import jwts
from tests.harness.readers import read
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
async def test_a_turn_that_failed_or_lost_its_readers_is_not_reused(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, how: str
) -> None:
    """The next request gets a new turn, and later ones get that turn."""
    body = question("words=3 rate=0 fault=error@1x1" if how == "failed" else "words=50 rate=1")
    body |= {"on_interrupt": "fail"}
    first = await post_chat(gateway, body)
    if how == "cancelled":
        await cancel(system_log, ScopedKey.whole(TurnKey(tenant, TurnId(first))), "on_disconnect")
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
