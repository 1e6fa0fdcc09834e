"""Sessions of turns: named sessions, full histories, busy sessions, and the status of a turn that fails at once."""

from typing import Any

import pytest

from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.conversation_match import Position
from tailrace.proto.entries import Request
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.integration.conftest import Gateway

SHORT = "#sim words=1 rate=0"
LONG = "#sim words=2000 rate=20"
HI = {"messages": [{"role": "user", "content": "hi"}]}


class Sessions:
    """Posts turns to a gateway and reads their requests from the log."""

    def __init__(self, gateway: Gateway, log: TurnLog, tenant: Tenant) -> None:
        self.gateway = gateway
        self._log = log
        self._tenant = tenant

    async def post(self, message: str | None = SHORT, **body: object) -> TurnId:
        fields = body if message is None else {"message": message, **body}
        answer = await self.gateway.client.post("/v1/turns", json=fields)
        assert answer.status_code == 202, answer.text
        return TurnId(answer.json()["turn"])

    async def record(self, turn: TurnId) -> dict[str, Any]:
        return dict((await self.gateway.client.get(f"/v1/turns/{turn}")).json())

    async def wait_for_end(self, turn: TurnId) -> dict[str, Any]:
        await self.gateway.client.get(f"/v1/turns/{turn}/events")
        return await self.record(turn)

    async def first_delta(self, turn: TurnId) -> None:
        """Waits until the turn has a delta."""
        async with self.gateway.client.stream("GET", f"/v1/turns/{turn}/events") as stream:
            async for line in stream.aiter_lines():
                if "delta" in line:
                    break

    async def request(self, turn: TurnId) -> Request:
        request = (await self._log.read_turn(ScopedKey.whole(TurnKey(self._tenant, turn)))).request
        assert request is not None
        return request

    async def cancel(self, turn: TurnId) -> None:
        assert (await self.record(turn))["outcome"] == "running"
        await self.gateway.client.post(f"/v1/turns/{turn}/cancel")


@pytest.fixture
def sessions(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> Sessions:
    return Sessions(gateway, system_log, tenant)


async def test_a_client_may_name_a_new_session(sessions: Sessions) -> None:
    """Without `create_session` an unknown name is 404."""
    name = f"user:42.{new_id()}"
    unknown = await sessions.gateway.client.post("/v1/turns", json={"message": SHORT, "session": name})
    assert unknown.status_code == 404
    first = await sessions.post(session=name, create_session=True)
    assert (await sessions.wait_for_end(first))["session"] == name
    second = await sessions.request(await sessions.post(session=name, create_session=True))
    assert (second.session, second.parent, second.history) == (name, first, 2)


async def test_a_full_history_continues_where_it_agrees_with_the_session(sessions: Sessions) -> None:
    """An edited message is a branch."""
    whole = {"session": SessionId(new_id()), "create_session": True, "full_history": True}
    messages = [{"role": "user", "content": f"{SHORT} tag=a"}]
    first = await sessions.post(None, messages=messages, **whole)
    messages += [{"role": "assistant", "content": (await sessions.wait_for_end(first))["text"]}]
    for tag in "bc":
        next_message = {"role": "user", "content": f"{SHORT} tag={tag}"}
        turn = await sessions.post(None, messages=[*messages, next_message], **whole)
        await sessions.wait_for_end(turn)
        request = await sessions.request(turn)
        assert (request.parent, request.history, len(request.messages)) == (first, 2, 3)


async def test_interrupt_cancels_the_running_turn_of_a_busy_session(sessions: Sessions) -> None:
    """The next turn follows it, with the text that it had."""
    name = new_id()
    running = await sessions.post(LONG, session=name, create_session=True)
    await sessions.first_delta(running)
    following = await sessions.request(await sessions.post(session=name, on_busy="interrupt"))
    interrupted = await sessions.wait_for_end(running)
    assert interrupted["outcome"] == "cancelled"
    assert following.parent == running
    assert [message.content for message in following.messages] == [LONG, interrupted["text"], SHORT]


@pytest.mark.rule("R79")
async def test_queued_turns_follow_the_busy_turn_of_a_session(sessions: Sessions) -> None:
    """Each follows the one before it, also a cancelled one, and begins when no turn before it runs."""
    name = new_id()
    running = await sessions.post(LONG, session=name, create_session=True)
    await sessions.first_delta(running)
    queued = [await sessions.post(session=name, on_busy="queue") for _ in range(2)]
    requests = [await sessions.request(turn) for turn in queued]
    assert [(one.parent, one.is_queued, one.history) for one in requests] == [
        (running, True, 0),
        (queued[0], True, 0),
    ]
    await sessions.cancel(queued[0])
    assert [(await sessions.record(turn))["attempts"] for turn in queued] == [0, 0]
    await sessions.cancel(running)
    answer = (await sessions.wait_for_end(queued[1]))["text"]
    text = (await sessions.record(running))["text"]
    following = await sessions.request(await sessions.post(session=name))
    assert [message.content for message in following.messages] == [LONG, text, SHORT, SHORT, answer, SHORT]


async def test_interrupt_also_cancels_the_turn_that_a_cancelled_turn_waited_for(sessions: Sessions) -> None:
    name = new_id()
    running = await sessions.post(LONG, session=name, create_session=True)
    await sessions.cancel(await sessions.post(session=name, on_busy="queue"))
    following = await sessions.post(session=name, on_busy="interrupt")
    assert (await sessions.record(running))["outcome"] == "cancelled"
    assert (await sessions.wait_for_end(following))["outcome"] == "completed"
    whole = {"messages": HI["messages"], "session": name, "full_history": True, "on_busy": "queue"}
    refused = await sessions.gateway.client.post("/v1/turns", json=whole)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")


async def test_a_repeat_does_not_interrupt_its_own_turn(sessions: Sessions) -> None:
    body = {"message": LONG, "session": new_id(), "create_session": True, "on_busy": "interrupt"}
    headers = {"idempotency-key": "key-1"}
    answers = [await sessions.gateway.client.post("/v1/turns", json=body, headers=headers) for _ in range(2)]
    turn, again = [answer.json()["turn"] for answer in answers]
    assert again == turn
    await sessions.cancel(turn)


async def test_a_post_that_its_repetition_overtakes_does_not_interrupt_its_own_turn(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repetition stores the turn after the first POST has looked for it."""
    find_position, turns = Conversations.find_position, list[str]()
    body = {"message": LONG, "session": new_id(), "create_session": True, "on_busy": "interrupt"}

    async def post_once() -> None:
        answer = await sessions.gateway.client.post("/v1/turns", json=body, headers={"idempotency-key": "key-1"})
        turns.append(answer.json()["turn"])

    async def find_after_repetition(*arguments: Any) -> Position:
        monkeypatch.setattr(Conversations, "find_position", find_position)
        await post_once()
        return await find_position(*arguments)

    monkeypatch.setattr(Conversations, "find_position", find_after_repetition)
    await post_once()
    assert turns == [turns[0]] * 2
    await sessions.cancel(TurnId(turns[0]))


async def test_branch_follows_the_turn_before_the_running_one(sessions: Sessions) -> None:
    """Both run. A branch of the first turn of a session has no parent."""
    name = new_id()
    first = await sessions.post(session=name, create_session=True)
    await sessions.wait_for_end(first)
    running = await sessions.post(LONG, session=name)
    branches = [
        await sessions.post(session=name, on_busy="branch"),
        await sessions.post(session=name, parent=running, on_busy="branch"),
    ]
    assert [(await sessions.request(turn)).parent for turn in branches] == [first, first]
    await sessions.cancel(running)
    root = await sessions.post(LONG)
    session = (await sessions.record(root))["session"]
    branch = await sessions.request(await sessions.post(session=session, on_busy="branch"))
    assert (branch.session, branch.parent, branch.history) == (session, None, 0)
    await sessions.cancel(root)


TOOL = {"tools": [{"name": "look", "input_schema": {"type": "object"}}]}
CALL = "#sim words=2 rate=0 tool=look"


@pytest.mark.rule("R111")
async def test_a_tool_call_is_in_the_history_only_with_its_result(sessions: Sessions) -> None:
    """The model's API refuses a call without a result, and would refuse every later message of the session."""
    called = await sessions.wait_for_end(await sessions.post(CALL, **TOOL))
    assert [block["type"] for block in called["content"]] == ["text", "tool_use"]
    session, parent = called["session"], called["turn"]
    without = await sessions.post(session=session)
    request = await sessions.request(without)
    assert [message.content for message in request.messages] == [CALL, called["text"], SHORT]
    await sessions.wait_for_end(without)
    result = {"type": "tool_result", "tool_use_id": called["content"][-1]["id"], "content": "blue"}
    messages = [{"role": "user", "content": [result]}]
    request = await sessions.request(
        await sessions.post(None, session=session, parent=parent, messages=messages, **TOOL)
    )
    assert [message.content for message in request.messages] == [CALL, called["content"], [result]]
