"""Stock clients of AG-UI: HttpAgent, TanStack AI's ChatClient, and the agent behind CopilotKit's `<CopilotChat>`.

HttpAgent checks the order of the events and warns about what it does not know. `js/agui.mjs` checks each event with the
client's own schema.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any

import pytest

from tailrace.proto.ids import new_id
from tests.clients import node
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY, Gateway

Json = dict[str, Any]
VERSIONS = ("1.0.0", "0.0.59")
TOOLS = [{"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}]
# Cuts at each tenth byte, each in a run of its own. The first event, whose id the client needs, ends at byte 770.
BYTES_MIN, BYTES_STEP, BYTES_MAX = 790, 10, 2790
# The same in the stream of a run with a call of the page.
TOOL_BYTES_STEP, TOOL_BYTES_MAX = 25, 2300


async def run_cases(*urls_and_cases: tuple[str, Json], deadline_s: float = node.DEADLINE_S) -> list[Json]:
    """Returns what the clients gave for each case."""
    arguments = [text for url, given in urls_and_cases for text in (url, json.dumps(given))]
    return await node.run("agui.mjs", KEY, *arguments, deadline_s=deadline_s)


async def turns_of(gateway: Gateway, thread: str) -> list[Json]:
    found: list[Json] = (await gateway.client.get(f"/v1/sessions/{thread}/turns")).json()["turns"]
    return found


def batched(items: list[Cut], size: int) -> Iterator[list[Cut]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def agent(version: str, *runs: Json) -> Json:
    return {"client": "http", "version": version, "thread": new_id(), "runs": runs}


def shown(one: Json) -> list[tuple[str, Any]]:
    return [(message["role"], message.get("content")) for message in one["messages"]]


@pytest.mark.proves("ag-ui", "thinking, tool calls, errors; each event is valid", "HttpAgent 1.0.0 and 0.0.59")
@pytest.mark.parametrize("version", VERSIONS)
async def test_http_agent_takes_each_stream_without_a_warning(gateway: Gateway, version: str) -> None:
    """Text, thinking that comes back, a tool, an error, a restart, a decision, and what it may not understand."""
    restart = f"restart {new_id()}\n#sim words=4 thinking=6 rate=0 fault=cut@8x1"
    texts, tool, failed, restarted, decided, others = await run_cases(
        (gateway.url, agent(version, {"text": "#sim words=4 thinking=2 rate=0"}, {"text": "#sim words=2 rate=0"})),
        (gateway.url, agent(version, {"text": "#sim words=2 tool=look rate=0", "tools": TOOLS}, {"result": "blue"})),
        (gateway.url, agent(version, {"text": "#sim nonsense"})),
        (gateway.url, agent(version, {"text": restart, "forwardedProps": {"on_interrupt": "restart"}})),
        (
            gateway.url,
            agent(
                version,
                {"text": "#sim words=1 tool=look rate=0", "tools": TOOLS, "forwardedProps": {"approve": ["look"]}},
                {"decide": {"result": "blue"}},
            ),
        ),
        (
            gateway.url,
            agent(version, {"text": "#sim words=3 server=web_search rate=0"}, {"text": "#sim words=1 rate=0"}),
        ),
    )
    for one in (texts, tool, failed, restarted, decided, others):
        assert (one["warnings"], one["invalid"]) == ([], [])
    assert shown(texts) == [
        ("user", "#sim words=4 thinking=2 rate=0"),
        ("reasoning", "t000000 t000001"),
        ("assistant", words(4)),
        ("user", "#sim words=2 rate=0"),
        ("assistant", words(2)),
    ]
    (first, second) = await turns_of(gateway, texts["ended"][0]["finished"]["threadId"])
    assert second["parent"] == first["turn"]
    assert [role for role, _ in shown(tool)] == ["user", "assistant", "tool", "assistant"]
    assert failed["ended"][0]["error"] == "backend_refused_request"
    assert shown(restarted) == [("user", restart), ("reasoning", words(6, "t")), ("assistant", words(4))]
    finished = [ended["finished"]["outcome"]["type"] for ended in decided["ended"]]
    assert finished == ["interrupt", "success"]
    has_version = version == "1.0.0"
    assert [("usage" in ended["finished"]) for ended in tool["ended"]] == [has_version] * 2
    # Without the field, clients before 1.0 go on with the calls that have no result.
    assert ("outcome" in tool["ended"][0]["finished"]) == has_version
    if has_version:
        assert tool["ended"][0]["finished"]["outcome"]["pendingToolCallIds"]


async def run_cut(gateway: Gateway, given: Json, cuts: Sequence[Cut]) -> tuple[dict[str, Json], list[Cut]]:
    """Runs a case once for each cut, in a thread of its own; returns the outcomes by thread, and the unused cuts."""
    threads = [new_id() for _ in cuts]
    # A connection has several requests, so each run has a proxy of its own.
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Cutting(gateway.port, [cut])) for cut in cuts]
        cases = [(proxy.url, {**given, "thread": one}) for proxy, one in zip(proxies, threads, strict=True)]
        outcomes = await run_cases(*cases)
        return dict(zip(threads, outcomes, strict=True)), [cut for proxy in proxies for cut in proxy.left]


@pytest.mark.proves("ag-ui", "resumes after any byte", "TanStack AI ChatClient 0.33")
@pytest.mark.timeout(240)
async def test_chat_client_resumes_after_a_cut_at_each_tenth_byte(gateway: Gateway) -> None:
    """And pays once. Before the first event it has no id, and reports an error."""
    given = {"client": "tanstack", "text": "#sim words=8 thinking=3 rate=0"}
    places = [Cut(place) for place in range(BYTES_MIN, BYTES_MAX, BYTES_STEP)]
    for cuts in batched(places, 20):
        outcomes, left = await run_cut(gateway, given, cuts)
        assert left == []
        for outcome in outcomes.values():
            assert (outcome["text"], outcome["thinking"], outcome["errors"]) == (words(8), words(3, "t"), [])
        for thread in outcomes:
            assert len(await turns_of(gateway, thread)) == 1


@pytest.mark.proves("ag-ui", "runs the tools of the page once, after a cut at any byte", "TanStack AI ChatClient 0.33")
@pytest.mark.timeout(240)
async def test_chat_client_runs_its_own_tool_once_after_a_cut_at_each_place(gateway: Gateway) -> None:
    """The run with the call is cut. The client sends the result with the next run."""
    given = {"client": "tanstack", "text": '#sim words=2 rate=0 tool=look json={"query":"sky"}', "result": "blue"}
    places = [Cut(place) for place in range(BYTES_MIN, TOOL_BYTES_MAX, TOOL_BYTES_STEP)]
    left: list[Cut] = []
    for cuts in batched(places, 20):
        outcomes, more = await run_cut(gateway, given, cuts)
        left += more
        for outcome in outcomes.values():
            assert (outcome["ran"], outcome["errors"]) == ([{"query": "sky"}], []), outcome
        for thread in outcomes:
            first, second = await turns_of(gateway, thread)
            assert (second["parent"], second["outcome"]) == (first["turn"], "completed")
            (result,) = second["input"][-1]["content"]
            assert (result["type"], result["content"]) == ("tool_result", "blue")
    assert left == []


@pytest.mark.proves("ag-ui", "a second tab joins, a third one stops", "CopilotKit core 1.74")
async def test_tabs_of_copilotkit_join_and_stop_a_run(gateway: Gateway) -> None:
    """Without a runtime of CopilotKit."""
    case = {
        "client": "copilot",
        "thread": new_id(),
        "text": "#sim words=40 thinking=3 rate=40",
        "stopped": "#sim words=600 rate=40",
    }
    (one,) = await run_cases((gateway.url, case))
    assert one["isRunning"]
    again, joined = one["whole"]
    assert joined == [["user", case["text"]], ["reasoning", words(3, "t")], ["assistant", words(40)]]
    assert sorted(again) == sorted([*joined, ["reasoning", ""]])
    first, third = one["stopped"]
    assert [message for message in first if message != ["reasoning", ""]] == third
    assert (await turns_of(gateway, str(case["thread"])))[-1]["outcome"] == "cancelled"
