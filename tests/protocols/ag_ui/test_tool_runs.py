"""The calls that a page of TanStack AI runs by itself: one reader of the run gets each, over cuts, reloads and tabs."""

import asyncio
from typing import Any

import pytest

from tests.harness.until import until
from tests.integration.conftest import Gateway
from tests.protocols.ag_ui.test_ag_ui_runs import TOOLS, body_of, events_of, ids_of, post, user

Json = dict[str, Any]
ASKED = '#sim words=2 rate=0 tool=look json={"query":"sky"}'


def run_of(**given: Any) -> Json:
    """A run as TanStack AI posts it."""
    return body_of(user(given.pop("text", ASKED)), tools=TOOLS, **{"protocolVersion": None, **given})


def tools_in(content: bytes) -> list[Json]:
    return [one["value"] for one in events_of(content) if one.get("name") == "tool-input-available"]


async def join(gateway: Gateway, run: Json, offset: str = "-1") -> bytes:
    return (await gateway.client.get("/api/agui", params={"runId": run["runId"], "offset": offset})).content


async def load(gateway: Gateway, run: Json) -> Json:
    page: Json = (await gateway.client.get("/api/agui", params={"threadId": run["threadId"]})).json()
    return page


async def leave(gateway: Gateway, run: Json) -> None:
    """Posts a run, and leaves before its end."""
    async with gateway.client.stream("POST", "/api/agui", json=run) as answer:
        async for line in answer.aiter_lines():
            if "TEXT_MESSAGE_CONTENT" in line:
                return


async def wait_for_end(gateway: Gateway, run: Json) -> None:
    async def is_ended() -> bool:
        answer = await gateway.client.get(f"/v1/sessions/{run['threadId']}/turns")
        return answer.status_code == 200 and [one["outcome"] for one in answer.json()["turns"]] == ["completed"]

    await until(is_ended)


async def test_a_call_comes_once_before_the_end_of_the_run(gateway: Gateway) -> None:
    """Other readers get the end without it, and a reload does not follow the run again."""
    run = run_of()
    posted = (await post(gateway, run)).content
    events = events_of(posted)
    (call,) = (one["toolCallId"] for one in events if one["type"] == "TOOL_CALL_END")
    assert tools_in(posted) == [{"toolCallId": call, "toolName": "look", "input": {"query": "sky"}}]
    assert [one["type"] for one in events[-3:]] == ["CUSTOM", "CUSTOM", "RUN_FINISHED"]
    for _ in range(2):
        joined = await join(gateway, run)
        assert events_of(joined) == [one for one in events if one.get("name") != "tool-input-available"]
        page = await load(gateway, run)
        assert (page["activeRun"], page["messages"][-1]["parts"][-1]["type"]) == (None, "tool-call")


async def test_a_post_that_is_cut_anywhere_gets_the_rest(gateway: Gateway) -> None:
    """The page drops events whose ids it knows. An id of the last event is that of the entry."""
    run = run_of()
    posted = (await post(gateway, run)).content
    blocks, ids = [block + b"\n\n" for block in posted.split(b"\n\n") if block], ids_of(posted)
    assert len(set(ids)) == len(ids) == len(blocks)
    for number, last in enumerate(ids[:-1], 1):
        known = set(ids[:number])
        rest = (await post(gateway, run, last)).content
        new = [block + b"\n\n" for block in rest.split(b"\n\n") if block and ids_of(block)[0] not in known]
        assert new == blocks[number:], last
    (again,) = events_of((await post(gateway, run, ids[-1])).content)
    assert again["type"] == "RUN_FINISHED"


async def test_a_reloaded_page_gets_the_call_also_if_the_run_has_ended_meanwhile(gateway: Gateway) -> None:
    run = run_of(text='#sim words=30 rate=60 tool=look json={"query":"sky"}')
    await leave(gateway, run)
    running = await load(gateway, run)
    assert running["activeRun"] == {"runId": run["runId"]}
    await wait_for_end(gateway, run)
    page = await load(gateway, run)
    assert (page["activeRun"], [one["role"] for one in page["messages"]]) == (running["activeRun"], ["user"])
    first = await join(gateway, run)
    assert [one["toolName"] for one in tools_in(first)] == ["look"]
    assert (await load(gateway, run))["activeRun"] is None
    assert tools_in(await join(gateway, run)) == []


async def test_one_of_many_tabs_gets_the_call(gateway: Gateway, second_gateway: Gateway) -> None:
    run = run_of(text="#sim words=20 rate=40 tool=look")
    await leave(gateway, run)
    tabs = [join(one, run) for one in (gateway, second_gateway) for _ in range(4)]
    read = await asyncio.gather(*tabs)
    assert sum(len(tools_in(one)) for one in read) == 1
    assert {events_of(one)[-1]["type"] for one in read} == {"RUN_FINISHED"}


async def test_a_call_that_is_decided_elsewhere_does_not_come(gateway: Gateway) -> None:
    run = run_of()
    other = run_of(threadId=run["threadId"], runId=run["runId"], protocolVersion="1.0")
    (call,) = (one["toolCallId"] for one in events_of(await post(gateway, other)) if one["type"] == "TOOL_CALL_END")
    assert (await load(gateway, run))["activeRun"] == {"runId": run["runId"]}
    path = f"/v1/sessions/{run['threadId']}/calls/{call}"
    assert (await gateway.client.post(path, json={"result": "blue"})).json()["next"] is not None
    assert tools_in(await join(gateway, run)) == []


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"forwardedProps": {"approve": ["look"]}}, "/api/agui"),
        ({"protocolVersion": "1.0"}, "/api/agui"),
        ({}, "/api/copilotkit/agent/default/run"),
    ],
    ids=["a person decides", "another client", "CopilotKit"],
)
async def test_other_calls_do_not_come(gateway: Gateway, given: Json, path: str) -> None:
    answer = await post(gateway, run_of(**given), path=path)
    assert (tools_in(answer.content), events_of(answer)[-1]["type"]) == ([], "RUN_FINISHED")
