"""Answers with a fetched document of 3 MB, from the model to each place where a client finds the answer again."""

import base64
import json
import os
from typing import Any

import httpx2
import pytest

from tailrace.proto import subjects
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import BODIES
from tests.integration.conftest import Gateway, forget

pytestmark = [pytest.mark.rule("R120"), pytest.mark.usefixtures("emptied_bodies")]

PDF = base64.b64encode(os.urandom(2_300_000)).decode()
CALL = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_fetch", "input": {"url": "https://example.com"}}
DOCUMENT = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}
RESULT = {
    "type": "web_fetch_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": {"type": "web_fetch_result", "url": "https://example.com", "content": DOCUMENT},
}
ANSWER = [CALL, RESULT, {"type": "text", "text": "I have read it."}]
HEAD = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "content": []}
USAGE = {"input_tokens": 3, "output_tokens": 1}


def case() -> bytes:
    """Returns the events of ANSWER, one a line."""
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**HEAD, "usage": USAGE}}]
    for index, block in enumerate(ANSWER):
        events += [
            {"type": "content_block_start", "index": index, "content_block": block},
            {"type": "content_block_stop", "index": index},
        ]
    events += [
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    ]
    return b"\n".join(json.dumps(event).encode() for event in events)


@pytest.fixture
async def line(claude: str) -> str:
    """The message that is answered with ANSWER."""
    name = new_id()
    async with httpx2.AsyncClient() as client:
        (await client.post(f"{claude}/_sim/cases/{name}", content=case())).raise_for_status()
    return f"#sim case={name}"


def documents(content: list[dict[str, Any]]) -> list[str]:
    """Returns the documents in an answer."""
    return [block["content"]["content"]["source"]["data"] for block in content if block["type"] == RESULT["type"]]


async def test_a_large_block_is_in_the_json_answer_and_in_the_stream(gateway: Gateway, line: str) -> None:
    """Of Anthropic's route, which the SDK uses."""
    body = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": line}]}
    answer = await gateway.client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text[:1000]
    assert answer.json()["content"] == ANSWER
    streamed = await gateway.client.post("/v1/messages", json=body | {"stream": True})
    started = [
        json.loads(data.removeprefix("data: "))["content_block"]
        for data in streamed.text.splitlines()
        if data.startswith("data: ") and '"content_block_start"' in data
    ]
    assert started == ANSWER


async def test_a_large_block_is_in_the_session_after_the_log_and_in_the_next_request(
    gateway: Gateway, line: str, system_log: TurnLog, tenant: Tenant
) -> None:
    """The next turn's entry refers to the document as a blob. A deletion removes the event."""
    session = {"session": f"large-{new_id()}", "create_session": True}
    first = (await gateway.client.post("/v1/turns", json={"message": line, **session})).json()["turn"]
    await gateway.client.get(f"/v1/turns/{first}/events")
    live = (await gateway.client.get(f"/v1/turns/{first}")).json()
    assert (live["outcome"], live["content"]) == ("completed", ANSWER)
    second = await gateway.client.post("/v1/turns", json={"message": "#sim words=2 rate=0", **session})
    assert second.status_code == 202, second.text
    key = TurnKey(tenant, TurnId(second.json()["turn"]))
    await gateway.client.get(f"/v1/turns/{key.turn}/events")
    turn = await system_log.read_turn(ScopedKey.whole(key))
    assert turn.outcome == "completed", turn.error
    assert turn.request is not None
    (question, answered, again) = turn.request.messages
    assert question.role == again.role == "user"
    assert isinstance(answered.content, list)
    assert answered.content[2] == ANSWER[2]
    assert documents(answered.content)[0].keys() == {"tailrace:blob", "bytes"}  # type: ignore[attr-defined]
    await forget(gateway, system_log, TurnKey(tenant, TurnId(first)))
    past = (await gateway.client.get(f"/v1/turns/{first}")).json()
    assert past["content"] == ANSWER


async def test_a_session_with_more_documents_than_one_message_of_nats_holds_goes_on(
    gateway: Gateway, line: str, system_log: TurnLog, tenant: Tenant
) -> None:
    """Its conversation has 9 MB. The gateway reads it from persistence in parts."""
    session = {"session": f"large-{new_id()}", "create_session": True}
    for message in (line, line, line, "#sim words=2 rate=0"):
        posted = await gateway.client.post("/v1/turns", json={"message": message, **session})
        assert posted.status_code == 202, posted.text
        turn = TurnId(posted.json()["turn"])
        await gateway.client.get(f"/v1/turns/{turn}/events")
    last = await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, turn)))
    assert (last.outcome, last.error) == ("completed", None)
    assert last.request is not None
    assert (last.request.history, len(last.request.messages)) == (6, 7)


@pytest.mark.rule("R28")
async def test_an_answer_that_is_larger_than_one_message_of_nats_is_read_from_the_database(
    gateway: Gateway, claude: str, system_log: TurnLog, tenant: Tenant
) -> None:
    """After the log, too: by its id, in lists, as a stream and as history."""
    large, name = base64.b64encode(os.urandom(7_500_000)).decode(), new_id()
    async with httpx2.AsyncClient() as client:
        body = case().replace(PDF.encode(), large.encode())
        (await client.post(f"{claude}/_sim/cases/{name}", content=body)).raise_for_status()
    session = {"session": f"large-{new_id()}", "create_session": True}
    turn = (await gateway.client.post("/v1/turns", json={"message": f"#sim case={name}", **session})).json()["turn"]
    await gateway.client.get(f"/v1/turns/{turn}/events")
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    past = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    assert documents(past["content"]) == [large]
    listed = (await gateway.client.get(f"/v1/sessions/{session['session']}/turns")).json()
    assert listed["turns"][0]["content"] == past["content"]
    streamed = await gateway.client.get(f"/v1/turns/{turn}/events?dialect=anthropic")
    assert large in streamed.text
    following = await gateway.client.post("/v1/turns", json={"message": "#sim words=2 rate=0", **session})
    assert following.status_code == 202, following.text


@pytest.mark.rule("R35")
async def test_the_deletion_of_a_turn_removes_its_large_events(
    gateway: Gateway, line: str, system_log: TurnLog, tenant: Tenant
) -> None:
    turn = TurnId((await gateway.client.post("/v1/turns", json={"message": line})).json()["turn"])
    await gateway.client.get(f"/v1/turns/{turn}/events")
    leader, chunks = Leader(system_log.connection, BODIES), subjects.event_chunks(TurnKey(tenant, turn))
    assert await leader.last(chunks) is not None
    deleted = await gateway.client.delete(f"/v1/turns/{turn}")
    assert deleted.status_code < 300, deleted.text
    assert await leader.last(chunks) is None


@pytest.mark.rule("R6")
async def test_the_largest_event_is_answered_by_one_call_while_other_turns_go_on(
    gateway: Gateway, claude: str, system_log: TurnLog, tenant: Tenant
) -> None:
    """Its generator renews the leases of all turns meanwhile: no other generator takes one over."""
    large, name = base64.b64encode(os.urandom(22_000_000)).decode(), new_id()
    async with httpx2.AsyncClient() as client:
        body = case().replace(PDF.encode(), large.encode())
        (await client.post(f"{claude}/_sim/cases/{name}", content=body, timeout=60)).raise_for_status()
    others = [
        TurnId((await gateway.client.post("/v1/turns", json={"message": "#sim words=60 rate=20"})).json()["turn"])
        for _ in range(5)
    ]
    posted = await gateway.client.post("/v1/turns", json={"message": f"#sim case={name}"})
    turn = TurnId(posted.json()["turn"])
    for one in (turn, *others):
        await gateway.client.get(f"/v1/turns/{one}/events", timeout=60)
        ended = await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, one)))
        assert (ended.outcome, ended.attempt, ended.error) == ("completed", 1, None)
    blocks = (await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, turn)))).blocks
    assert blocks[1].start["content"]["content"]["source"]["data"] == large
