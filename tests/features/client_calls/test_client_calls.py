"""Calls of client tools that wait for a decision, from the answer with the calls to the turn that continues it."""

import asyncio
from typing import Any

import pytest

from tailrace.client import AsyncClient, TailraceError
from tailrace.features.client_calls import continuations
from tailrace.features.client_calls.gateway import RESULT_BYTES_MAX, DecisionBody, decision_of
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.ids import Tenant, TurnId
from tests.harness import jwts
from tests.harness.processes import Process
from tests.harness.requests import get, post_until_ended, run_turn
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway

TOOL = {"tools": [{"name": name, "input_schema": {"type": "object"}} for name in ("look", "listen")]}
CALL = "#sim words=2 rate=0 tool=look"


async def decide(gateway: Gateway, session: str, call: str, **body: object) -> tuple[int, dict[str, Any]]:
    answer = await gateway.client.post(f"/v1/sessions/{session}/calls/{call}", json=body)
    return answer.status_code, answer.json()


async def park(gateway: Gateway, **given: object) -> tuple[str, str, dict[str, Any]]:
    """Returns the session and the call of a turn that has ended with a call, and the turn."""
    turn = await run_turn(gateway, message=CALL, **TOOL | given)
    return turn["session"], turn["content"][-1]["id"], turn


@pytest.mark.rule("R136")
async def test_a_decided_call_starts_the_next_turn(gateway: Gateway) -> None:
    """With the result, and the tools, model and system prompt of the turn with the call."""
    session, call, turn = await park(gateway, system="Be brief.", metadata={"team": "a"})
    assert (turn["outcome"], turn["stop_reason"]) == ("completed", "tool_use")
    parked = await get(gateway, "/v1/sessions?state=requires_action")
    assert [one["session"] for one in parked["data"]] == [session]
    calls = await get(gateway, f"/v1/sessions/{session}/calls")
    assert (calls["turn"], [one["call"] for one in calls["calls"]], calls["next"]) == (turn["turn"], [call], None)
    status, decided = await decide(gateway, session, call, result="blue")
    assert (status, decided["undecided_calls"], decided["waits_because"]) == (200, [], None)
    await gateway.client.get(f"/v1/turns/{decided['next']}/events")
    following = await get(gateway, f"/v1/turns/{decided['next']}")
    assert (following["parent"], following["outcome"], following["model"]) == (turn["turn"], "completed", turn["model"])
    assert following["metadata"] == {"team": "a"}
    result = {"type": "tool_result", "tool_use_id": call, "content": "blue"}
    assert following["input"] == [{"role": "user", "content": [result]}]
    assert (await get(gateway, "/v1/sessions?state=requires_action"))["data"] == []
    assert (await get(gateway, f"/v1/sessions/{session}/calls"))["calls"] == []


@pytest.mark.rule("R136")
async def test_two_calls_that_are_decided_at_the_same_moment_start_one_turn(
    gateway: Gateway, new_gateway: NewGateway, system: System
) -> None:
    """At two gateways, and each decision several times."""
    other = await new_gateway(system.nats_url)
    turn = await run_turn(gateway, message=f"{CALL},listen", **TOOL)
    calls, session = [block["id"] for block in turn["content"] if block["type"] == "tool_use"], turn["session"]
    bodies: list[dict[str, Any]] = [{"result": "blue"}, {"decision": "denied", "reason": "It is night."}]
    found = await asyncio.gather(
        *(
            decide(one, session, call, **body)
            for one in 3 * [gateway, other]
            for call, body in zip(calls, bodies, strict=True)
        )
    )
    assert {status for status, _ in found} == {200}
    [following] = {decided["next"] for _, decided in found} - {None}
    await gateway.client.get(f"/v1/turns/{following}/events")
    turns = (await get(gateway, f"/v1/sessions/{session}/turns"))["turns"]
    assert [one["turn"] for one in turns] == [turn["turn"], following]
    contents = [block["content"] for block in turns[1]["input"][0]["content"]]
    assert contents == ["blue", "the user denied this tool call: It is night."]
    # Long after: the same answer, and no other turn.
    for call, body in zip(calls, bodies, strict=True):
        assert (await decide(other, session, call, **body))[1]["next"] == following
    assert len((await get(gateway, f"/v1/sessions/{session}/turns"))["turns"]) == 2
    decided = await get(gateway, f"/v1/sessions/{session}/calls?turn={turn['turn']}")
    assert [one["decided_by"] is not None for one in decided["calls"]] == [True, True]


async def test_a_turn_that_another_request_has_started_meanwhile_is_named(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the decision and the start, the turn was started and recorded: the session waits no more."""
    start = continuations.Continuations.start

    async def start_late(service: continuations.Continuations, principal: Principal, session: str) -> TurnId:
        await start(service, principal, session)
        await until(lambda: is_recorded(session))
        return await start(service, principal, session)

    async def is_recorded(session: str) -> bool:
        return len((await get(gateway, f"/v1/sessions/{session}/turns"))["turns"]) == 2

    monkeypatch.setattr(continuations.Continuations, "start", start_late)
    session, call, _ = await park(gateway)
    _, decided = await decide(gateway, session, call, result="blue")
    turns = (await get(gateway, f"/v1/sessions/{session}/turns"))["turns"]
    assert (decided["next"], decided["waits_because"]) == (turns[1]["turn"], None)


async def test_the_python_client_decides_in_one_line(gateway: Gateway) -> None:
    """Also again: the same decision changes nothing."""
    session, call, _ = await park(gateway)
    async with AsyncClient(gateway.url, KEY) as client:
        found = [await client.decide(session, call, result="blue") for _ in range(2)]
        assert found[0]["next"] == found[1]["next"] is not None
        with pytest.raises(TailraceError) as refused:
            await client.decide(session, call, decision="denied")
    assert refused.value.code == "call_decided"


TEXT = {"type": "text", "text": "blue"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "`result` or `decision`"),
    ({"result": "a", "decision": "denied"}, "`result` or `decision`"),
    ({"result": 1}, "result"),
    ({"result": [1]}, "result"),
    ({"result": None}, "result"),
    ({"decision": "approved"}, "decision"),
    ({"decision": "denied", "is_error": True}, "is_error"),
    ({"decision": "denied", "reason": ""}, "reason"),
    ({"result": "a", "reason": "b"}, "reason"),
    ({"result": "", "is_error": True}, "result"),
    ({"result": "a", "id": "b"}, "id"),
    ({"result": [{"tailrace:blob": "0" * 64}]}, "tailrace:blob"),
    *(
        ({"result": [TEXT, block]}, "result")
        for block in (
            {},
            {"text": "no type"},
            {"type": "nope"},
            {"type": "tool_result", "tool_use_id": "toolu_0"},
            {"type": "tool_use", "id": "toolu_0", "name": "look", "input": {}},
            {"type": "text"},
            {"type": "text", "text": 1},
            {"type": "text", "text": " "},
            {"type": "image", "source": {"type": "url"}},
            {"type": "image", "source": {"type": "text", "media_type": "text/plain", "data": "a"}},
            {"type": "document", "source": {"type": "content", "content": [{"type": "nope"}]}},
            {"type": "search_result", "source": "a", "title": "b", "content": "c"},
            {"type": "search_result", "source": "a", "title": "b", "content": []},
            {"type": "image", "source": {"type": "base64", "media_type": "image/bmp", "data": "Qk0="}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}},
            {"type": "image", "source": {"type": "url", "url": "a.png"}},
            {"type": "document", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
            {"type": "document", "source": {"type": "text", "media_type": "text/html", "data": "a"}},
            {"type": "document", "source": {"type": "content", "content": []}},
            {"type": "tool_reference", "tool_name": ""},
        )
    ),
    ({"result": [TEXT, IMAGE], "is_error": True}, "result"),
]
# A block of each type that Anthropic's API accepts in a result, with fields that Tailrace does not know.
GOOD = [
    TEXT,
    IMAGE,
    # A wrong label: the next turn has the type of the bytes.
    {"type": "image", "source": {"type": "base64", "media_type": "image/jpg", "data": "/9j/4AAQSkZJRg=="}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
    {"type": "document", "title": "a", "source": {"type": "text", "media_type": "text/plain", "data": "a"}},
    {"type": "document", "source": {"type": "content", "content": [TEXT, IMAGE]}},
    {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
    {"type": "search_result", "source": "a", "title": "b", "content": [TEXT], "citations": {"enabled": True}},
    {"type": "tool_reference", "tool_name": "look"},
    {"type": "browser_state", "tabs": []},
]


@pytest.mark.parametrize("block", GOOD, ids=lambda block: str(block["type"]))
def test_a_decision_may_have_each_block_of_a_result(block: dict[str, Any]) -> None:
    assert decision_of(DecisionBody(result=[TEXT, block])).result == [TEXT, block]


async def test_marks_of_the_prompt_cache_in_a_decision_are_ignored_and_named(gateway: Gateway) -> None:
    """A call has at most four: otherwise the next turn would fail."""
    session, call, _ = await park(gateway)
    marked = TEXT | {"cache_control": {"type": "ephemeral"}}
    answer = await gateway.client.post(f"/v1/sessions/{session}/calls/{call}", json={"result": 5 * [marked]})
    assert (answer.status_code, answer.headers["tailrace-ignored"]) == (200, "cache_control")
    await gateway.client.get(f"/v1/turns/{answer.json()['next']}/events")
    following = await get(gateway, f"/v1/turns/{answer.json()['next']}")
    assert following["outcome"] == "completed"
    assert following["input"][0]["content"][0]["content"] == 5 * [TEXT]


async def test_a_decision_with_an_unknown_file_is_refused_and_the_session_still_waits(gateway: Gateway) -> None:
    session, call, _ = await park(gateway)
    image = {"type": "image", "source": {"type": "file", "file_id": "file_unknown"}}
    status, refused = await decide(gateway, session, call, result=[image])
    assert (status, refused["error"]["code"]) == (404, "file_not_found")
    status, decided = await decide(gateway, session, call, result="blue")
    assert (status, decided["waits_because"]) == (200, None)


async def test_an_invalid_decision_is_refused_and_stores_nothing(gateway: Gateway) -> None:
    session, call, _ = await park(gateway)
    for body, named in BAD:
        status, answer = await decide(gateway, session, call, **body)
        assert (status, answer["error"]["code"]) == (400, "request_invalid"), body
        assert named in answer["error"]["message"] or named == answer["error"]["param"], body
    status, answer = await decide(gateway, session, call, result="a" * RESULT_BYTES_MAX)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    for where, code in ((session, "call_not_found"), ("nowhere", "session_not_found")):
        status, answer = await decide(gateway, where, "toolu_0", result="blue")
        assert (status, answer["error"]["code"]) == (404, code)
    for query in ("state=other", "min_age_s=1", *(f"state=requires_action&{one}" for one in BAD_QUERIES)):
        assert (await gateway.client.get(f"/v1/sessions?{query}")).status_code == 400, query
    assert (await get(gateway, f"/v1/sessions/{session}/calls"))["calls"][0]["decision"] is None
    assert (await decide(gateway, session, call, result="blue"))[0] == 200
    status, answer = await decide(gateway, session, call, result="red")
    assert (status, answer["error"]["code"]) == (409, "call_decided")


BAD_QUERIES = ("min_age_s=-1", "min_age_s=x", "page=2", "per_page=1", "project_id=p", "after=x")


async def test_an_own_follow_up_ends_the_wait(gateway: Gateway) -> None:
    """A client that sends the results itself, as without decisions."""
    session, call, _ = await park(gateway)
    result = [{"type": "tool_result", "tool_use_id": call, "content": "blue"}]
    await post_until_ended(gateway, session=session, message=None, messages=[{"role": "user", "content": result}])
    status, answer = await decide(gateway, session, call, result="blue")
    assert (status, answer["error"]["code"]) == (404, "call_not_found")
    assert (await get(gateway, "/v1/sessions?state=requires_action"))["data"] == []


async def test_a_turn_that_is_not_stored_does_not_wait(gateway: Gateway) -> None:
    turn = await run_turn(gateway, message=CALL, store=False, **TOOL)
    assert turn["stop_reason"] == "tool_use"
    status, answer = await decide(gateway, turn["session"], turn["content"][-1]["id"], result="blue")
    assert (status, answer["error"]["code"]) == (404, "session_not_found")
    assert (await get(gateway, "/v1/sessions?state=requires_action"))["data"] == []


async def test_only_the_user_of_the_session_decides_with_a_jwt(
    system: System, new_gateway: NewGateway, generator: Process, persistence: Process, tenant: Tenant
) -> None:
    """A key of the tenant decides everywhere; a JWT without `write`, and a ticket, nowhere."""
    claims = {"jwt_user_claim": "email", "jwt_scopes_claim": "scope"}
    gateway = await new_gateway(system.nats_url, **jwts.settings(**claims))

    def use(email: str, scope: str = "read write") -> None:
        token = jwts.token(sub=tenant, email=email, scope=scope).decode()
        gateway.client.headers["authorization"] = f"Bearer {token}"

    own = gateway.client.headers["authorization"]
    session, call, turn = await park(gateway, user="ann")
    nobodys, nobodys_call, _ = await park(gateway)
    made = (await gateway.client.post(f"/v1/turns/{turn['turn']}/tickets", json={"is_shared": True})).json()
    del gateway.client.headers["authorization"]
    path = f"/v1/sessions/{session}/calls/{call}?ticket={made['ticket']}"
    assert (await gateway.client.post(path, json={"result": "blue"})).status_code in (401, 404)
    use("bob")
    for where, which in ((session, call), (nobodys, nobodys_call)):
        assert (await decide(gateway, where, which, result="blue"))[0] == 404
    use("ann", "read")
    assert (await decide(gateway, session, call, result="blue"))[0] == 403
    use("ann")
    status, decided = await decide(gateway, session, call, result="blue")
    assert (status, decided["calls"][0]["decided_by"][:4]) == (200, "jwt_")
    assert (await get(gateway, f"/v1/turns/{decided['next']}"))["user"] == "ann"
    gateway.client.headers["authorization"] = own
    assert (await decide(gateway, nobodys, nobodys_call, result="blue"))[0] == 200


@pytest.mark.rule("R136")
async def test_a_start_that_was_refused_is_repeated(
    gateway: Gateway, new_gateway: NewGateway, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the log is too full; the decision is stored all the same."""
    session, call, _ = await park(gateway)
    full = await new_gateway(system.nats_url, full_at=1e-12)
    status, decided = await decide(full, session, call, result="blue")
    assert (status, decided["undecided_calls"], decided["next"]) == (200, [], None)
    assert decided["waits_because"] is not None
    monkeypatch.setattr(continuations, "FIND_S", 0.1)
    finding = await new_gateway(system.nats_url)

    async def is_continued() -> bool:
        return len((await get(finding, f"/v1/sessions/{session}/turns"))["turns"]) == 2

    await until(is_continued, 20)
