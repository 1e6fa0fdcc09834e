"""Where a question goes on: sessions that clients name, conversations told whole, and sessions that are busy."""

import asyncio
from typing import Any

import pytest

from tailrace.gateway.streaming.sse import HEARTBEAT
from tailrace.proto.entries import Failure, Request
from tailrace.proto.ids import SessionId, Tenant, TurnId, new_id
from tailrace.proto.nats import Claims, Connection, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

SHORT = "#sim words=1 rate=0"
LONG = "#sim words=2000 rate=20"


async def posted(gateway: Gateway, **body: object) -> TurnId:
    answer = await gateway.client.post("/v1/turns", json=body)
    assert answer.status_code == 202, answer.text
    return TurnId(answer.json()["turn"])


async def whole(gateway: Gateway, turn: TurnId) -> dict[str, Any]:
    await gateway.client.get(f"/v1/turns/{turn}/events")
    told: dict[str, Any] = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    return told


async def request_of(log: TurnLog, tenant: Tenant, turn: TurnId) -> Request:
    asked = (await log.turn(TurnKey(tenant, turn))).request
    assert asked is not None
    return asked


async def test_a_session_is_begun_by_the_name_that_a_client_gives_it(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Its first turn begins it, its second goes on from there; who does not ask for that gets a 404."""
    name = f"user:42.{new_id()}"
    unknown = await gateway.client.post("/v1/turns", json={"message": SHORT, "session": name})
    first = await posted(gateway, message=SHORT, session=name, create_session=True)
    assert (await whole(gateway, first))["session"] == name
    second = await posted(gateway, message=SHORT, session=name, create_session=True)
    asked = await request_of(system_log, tenant, second)
    assert unknown.status_code == 404
    assert (asked.session, asked.parent, asked.history) == (name, first, 2)


@pytest.mark.parametrize("name", ["", "a b", "ü", "a/b", "x" * 129, "a\n"])
async def test_what_cannot_be_the_name_of_a_session_is_refused(gateway: Gateway, name: str) -> None:
    body = {"message": SHORT, "session": name, "create_session": True}
    answer = await gateway.client.post("/v1/turns", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")


async def test_a_conversation_that_is_told_whole_goes_on_where_it_agrees(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """A client that sends everything each time: what the session holds is not said twice, an edit is a branch."""
    name = SessionId(new_id())
    told = [{"role": "user", "content": f"{SHORT} tag=a"}]
    first = await posted(gateway, messages=told, session=name, create_session=True, full_history=True)
    answer = (await whole(gateway, first))["text"]
    told += [{"role": "assistant", "content": answer}, {"role": "user", "content": f"{SHORT} tag=b"}]
    second = await posted(gateway, messages=told, session=name, create_session=True, full_history=True)
    await whole(gateway, second)
    edited = [*told[:2], {"role": "user", "content": f"{SHORT} tag=c"}]
    third = await posted(gateway, messages=edited, session=name, create_session=True, full_history=True)
    asked = [await request_of(system_log, tenant, turn) for turn in (second, third)]
    assert [(one.parent, one.history, len(one.messages)) for one in asked] == [(first, 2, 3), (first, 2, 3)]


async def test_a_busy_session_is_interrupted_if_that_is_asked_for(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """The running turn ends, and the next one knows what it had said."""
    name = new_id()
    running = await posted(gateway, message=LONG, session=name, create_session=True)
    async with gateway.client.stream("GET", f"/v1/turns/{running}/events") as stream:
        async for line in stream.aiter_lines():
            if "delta" in line:
                break
    following = await posted(gateway, message=SHORT, session=name, on_busy="interrupt")
    cut = await whole(gateway, running)
    asked = await request_of(system_log, tenant, following)
    assert cut["outcome"] == "cancelled"
    assert (asked.parent, [message.content for message in asked.messages]) == (running, [LONG, cut["text"], SHORT])


async def test_a_repeat_does_not_interrupt_its_own_turn(gateway: Gateway) -> None:
    """The session is busy with the very turn that is asked for again."""
    body = {"message": LONG, "session": new_id(), "create_session": True, "on_busy": "interrupt"}
    headers = {"idempotency-key": "key-1"}
    first, again = [await gateway.client.post("/v1/turns", json=body, headers=headers) for _ in range(2)]
    turn = first.json()["turn"]
    assert again.json()["turn"] == turn
    assert (await gateway.client.get(f"/v1/turns/{turn}")).json()["outcome"] == "running"
    await gateway.client.post(f"/v1/turns/{turn}/cancel")


async def test_a_busy_session_gets_a_branch_if_that_is_asked_for(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Both go on: the new turn follows what the running one follows."""
    name = new_id()
    first = await posted(gateway, message=SHORT, session=name, create_session=True)
    await whole(gateway, first)
    running = await posted(gateway, message=LONG, session=name)
    branch = await posted(gateway, message=SHORT, session=name, on_busy="branch")
    rooted = await posted(gateway, message=SHORT, session=name, parent=running, on_busy="branch")
    asked = [await request_of(system_log, tenant, turn) for turn in (branch, rooted)]
    assert [one.parent for one in asked] == [first, first]
    assert (await gateway.client.get(f"/v1/turns/{running}")).json()["outcome"] == "running"
    await gateway.client.post(f"/v1/turns/{running}/cancel")


async def test_the_first_turn_of_a_session_can_be_branched_off_too(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Before it is nothing: so is before its branch."""
    running = await posted(gateway, message=LONG)
    session = (await gateway.client.get(f"/v1/turns/{running}")).json()["session"]
    branch = await posted(gateway, message=SHORT, session=session, on_busy="branch")
    asked = await request_of(system_log, tenant, branch)
    assert (asked.session, asked.parent, asked.history) == (session, None, 0)
    await gateway.client.post(f"/v1/turns/{running}/cancel")


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (Failure("backend_rate_limited", "slow down", 6.2), 429, "7"),
        (Failure("backend_overloaded", "too many"), 529, None),
        (Failure("backend_refused_request", "no"), 400, None),
    ],
)
async def test_a_turn_that_fails_before_its_first_word_has_a_status(
    lone_gateway: Gateway,
    connection: Connection,
    log: TurnLog,
    tenant: Tenant,
    failure: Failure,
    status: int,
    retry_after: str | None,
) -> None:
    """Where a client looks for it: its SDK raises, and waits as long as the model wants."""
    question = {"messages": [{"role": "user", "content": "hi"}]}
    asking = asyncio.create_task(
        lone_gateway.client.post("/ai/chat", json=question, headers={"idempotency-key": "key-1"})
    )
    claim = await until(lambda: Claims(connection).find(tenant, "key-1"))
    assert claim is not None
    writer = Writer(log, TurnKey(tenant, claim.turn))
    await until(lambda: is_asked(writer))
    writer.chain = (await log.turn(writer.key)).chain
    await writer.end("failed", failure)
    answer = await asking
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["message"]) == (status, failure.code, failure.message)
    assert answer.headers.get("retry-after") == retry_after


async def test_silence_before_the_first_word_is_filled(new_gateway: NewGateway, nats_url: str) -> None:
    """A proxy in between gives up on who sends nothing: the status goes out, and heartbeats after it."""
    patient = await new_gateway(nats_url, heartbeat_s=0.05)
    async with patient.client.stream(
        "POST", "/ai/chat", json={"messages": [{"role": "user", "content": "hi"}]}
    ) as answer:
        assert answer.status_code == 200
        assert await anext(answer.aiter_raw()) == HEARTBEAT


async def is_asked(writer: Writer) -> bool:
    return bool(await writer.log.replay(writer.key))


async def test_a_model_goes_by_its_other_names_too(
    new_gateway: NewGateway, nats_url: str, log: TurnLog, tenant: Tenant
) -> None:
    """Claude's own, and those that an operator gives; the log has the one name that it has for everybody."""
    gateway = await new_gateway(nats_url, model_aliases="gpt-4o=claude-haiku-5-5")
    turns = [await posted(gateway, message="hi", model=name) for name in ("gpt-4o", "claude-haiku-5-5")]
    assert {(await request_of(log, tenant, turn)).model for turn in turns} == {"claude-haiku-5-5"}
