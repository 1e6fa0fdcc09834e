"""The user of turns and sessions: from each API and from a JWT, in lists, and in usage."""

import json
from typing import Any

import httpx2
import pytest

from tailrace.proto.ids import Tenant
from tests.harness import jwts
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

QUICK = "#sim words=1 rate=0"
MESSAGES = [{"role": "user", "content": QUICK}]
MODEL = "claude-haiku-5-5"
# A body that names the user `ann` in each API, and its route.
NAMING_ANN: list[tuple[str, dict[str, Any]]] = [
    ("/v1/turns", {"message": QUICK, "user": "ann", "metadata": {"team": "search"}}),
    ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "user": "ann"}),
    ("/v1/responses", {"model": MODEL, "input": QUICK, "safety_identifier": "ann", "user": "bob"}),
    ("/v1/messages", {"model": MODEL, "max_tokens": 9, "messages": MESSAGES, "metadata": {"user_id": "ann"}}),
    (
        "/v1/messages",
        {"model": MODEL, "max_tokens": 9, "messages": MESSAGES, "metadata": {"user_id": "ann_session_1"}},
    ),
]


async def list_users(gateway: Gateway, path: str, **query: str) -> list[dict[str, Any]]:
    answer = await gateway.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.rule("R89")
async def test_turns_and_sessions_are_listed_and_summed_by_user(gateway: Gateway, second_tenant: Gateway) -> None:
    """Also by metadata and day. Another tenant's user of the same name is another user."""
    for path, body in NAMING_ANN:
        answer = await gateway.client.post(path, json=body)
        assert answer.status_code in (200, 202), answer.text
    await gateway.client.post("/v1/turns", json={"message": QUICK, "session": "of-nobody", "create_session": True})
    found = await list_users(gateway, "/v1/turns", user="ann")
    assert [turn["user"] for turn in found] == ["ann"] * len(NAMING_ANN)
    assert found == sorted(found, key=lambda turn: turn["asked_at"], reverse=True)
    assert [turn["user"] for turn in await list_users(gateway, "/v1/sessions", user="ann")] == ["ann"] * len(NAMING_ANN)
    first, rest = [
        await list_users(gateway, "/v1/turns", user="ann", model=model) for model in (MODEL, found[-1]["model"])
    ]
    assert len(first) + len(rest) == len(NAMING_ANN)
    assert [turn["metadata"] for turn in await list_users(gateway, "/v1/turns", **{"metadata[team]": "search"})] == [
        {"team": "search"}
    ]
    assert len(await list_users(gateway, "/v1/turns")) == len(NAMING_ANN) + 1
    assert await list_users(gateway, "/v1/turns", user="ann", to="2020-01-01") == []
    by_user = {one["key"]: one["turns"] for one in await list_users(gateway, "/v1/usage", by="user")}
    assert by_user == {None: 1, "ann": len(NAMING_ANN)}
    assert [one["turns"] for one in await list_users(gateway, "/v1/usage", by="user", user="ann")] == [len(NAMING_ANN)]
    by_team = await list_users(gateway, "/v1/usage", by="metadata.team")
    assert [(one["key"], one["turns"]) for one in by_team] == [(None, len(NAMING_ANN)), ("search", 1)]
    for path in ("/v1/turns", "/v1/sessions"):
        assert await list_users(second_tenant, path, user="ann") == []


@pytest.mark.rule("R39")
async def test_the_models_api_knows_a_user_with_an_email_address_by_a_pseudonym(
    system: System, gateway: Gateway, new_gateway: NewGateway, claude: str
) -> None:
    """The same from each API and gateway; lists name the user as the client does."""
    other, sent = await new_gateway(system.nats_url), set()
    counted = {"model": MODEL, "messages": MESSAGES, "metadata": {"user_id": "ann"}}
    for path, body in (*NAMING_ANN[1:4], ("/v1/messages/count_tokens", counted)):
        named = json.loads(json.dumps(body).replace('"ann"', '"ann@example.com"'))
        for one in (gateway, other):
            answer = await one.client.post(path, json=named)
            assert answer.status_code == 200, answer.text
            async with httpx2.AsyncClient(trust_env=False) as client:
                last = (await client.get(f"{claude}/_sim/last")).json()["body"]
            sent.add(last["metadata"]["user_id"])
    assert len(sent) == 1
    assert sent.pop().startswith("user_")
    assert len(await list_users(gateway, "/v1/turns", user="ann@example.com")) == 6


@pytest.mark.rule("R89")
async def test_a_session_is_created_for_a_user(gateway: Gateway) -> None:
    """A turn of another user does not change it."""
    answer = await gateway.client.post("/v1/sessions", json={"id": "trip", "user": "ann"})
    assert (answer.status_code, answer.json()["user"]) == (200, "ann")
    await gateway.client.post("/v1/turns", json={"message": QUICK, "user": "bob", "session": "trip"})
    assert [one["turns"] for one in await list_users(gateway, "/v1/sessions", user="ann")] == [1]
    assert await list_users(gateway, "/v1/sessions", user="bob") == []
    refused = (await gateway.client.post("/v1/sessions", json={"user": ""})).json()["error"]
    assert (refused["code"], refused["param"]) == ("request_invalid", "user")


@pytest.fixture
async def second_tenant(system: System, new_gateway: NewGateway) -> Gateway:
    """A gateway where the same key belongs to another tenant."""
    gateway = await new_gateway(system.nats_url, api_keys="", **jwts.settings(jwt_user_claim="email"))
    gateway.client.headers["authorization"] = f"Bearer {jwts.token(sub='other-tenant', email='eve').decode()}"
    return gateway


@pytest.mark.rule("R89")
@pytest.mark.parametrize("claim", ["email", "", "department"])
async def test_the_user_of_a_jwt_cannot_be_changed_by_a_body(
    system: System, new_gateway: NewGateway, generator: object, persistence: object, tenant: Tenant, claim: str
) -> None:
    """Without the setting or the claim the body names the user. Each API."""
    gateway = await new_gateway(system.nats_url, **jwts.settings(jwt_user_claim=claim))
    token = jwts.token(sub=tenant, email="eve@example.com").decode()
    gateway.client.headers["authorization"] = f"Bearer {token}"
    for path, body in NAMING_ANN:
        await gateway.client.post(path, json=body)
    session = (await gateway.client.post("/v1/sessions", json={"user": "ann"})).json()
    user = "eve@example.com" if claim == "email" else "ann"
    assert session["user"] == user
    assert {turn["user"] for turn in await list_users(gateway, "/v1/turns")} == {user}
    gateway.client.headers["authorization"] = f"Bearer {KEY}"
    assert [turn["user"] for turn in await list_users(gateway, "/v1/turns", user=user)] == [user] * len(NAMING_ANN)
