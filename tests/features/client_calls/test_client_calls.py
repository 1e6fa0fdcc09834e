"""Calls of client tools that wait for a decision, from the answer with the calls to the turn that continues it."""

from typing import Any

from tests.harness.requests import get, run_turn
from tests.integration.conftest import Gateway

TOOL = {"tools": [{"name": "look", "input_schema": {"type": "object"}}]}
CALL = "#sim words=2 rate=0 tool=look"


async def decide(gateway: Gateway, session: str, call: str, **body: object) -> tuple[int, dict[str, Any]]:
    answer = await gateway.client.post(f"/v1/sessions/{session}/calls/{call}", json=body)
    return answer.status_code, answer.json()


async def park(gateway: Gateway, **given: object) -> tuple[str, str, dict[str, Any]]:
    """Returns the session and the call of a turn that has ended with a call, and the turn."""
    turn = await run_turn(gateway, message=CALL, **TOOL | given)
    return turn["session"], turn["content"][-1]["id"], turn


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
