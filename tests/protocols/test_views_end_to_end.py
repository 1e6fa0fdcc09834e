"""One state, every view, on a running gateway: each state of test_views.py once, with the routes of its protocols."""

import json
from typing import Any

import httpx2
import pytest

from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness.generator_in_loop import words
from tests.harness.requests import run_turn
from tests.harness.sse_parser import parse
from tests.integration.conftest import Gateway
from tests.protocols.test_views import FOUND, LOOK, SEARCH, TEXT

Json = dict[str, Any]
MODEL = "claude-sonnet-5-5"
TOOLS = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in ("look", "buy")]
SERVER_TOOL = {"type": "web_search_20250305", "name": "web_search"}
AGENT_TOOLS = [{"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}]


def events_of(answer: httpx2.Response) -> list[Json]:
    assert answer.status_code == 200, answer.text
    return [json.loads(event.data) for event in parse(answer.content) if event.data != "[DONE]"]


def case_of(stop_reason: str, *blocks: Json) -> bytes:
    """Returns the case of the simulated Claude that answers with these blocks."""
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    usage = {"input_tokens": 3, "output_tokens": 1}
    found: list[Json] = [{"type": "message_start", "message": {**head, "usage": usage}}]
    for index, block in enumerate(blocks):
        found += [
            {"type": "content_block_start", "index": index, "content_block": block},
            {"type": "content_block_stop", "index": index},
        ]
    found.append({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": usage})
    return b"\n".join(json.dumps(event).encode() for event in [*found, {"type": "message_stop"}])


class Script:
    """The model's next answer to `line`."""

    def __init__(self, claude: str) -> None:
        self.claude = claude
        self.name = new_id()
        self.line = f"#sim case={self.name}"

    async def set(self, stop_reason: str, *blocks: Json) -> None:
        body = case_of(stop_reason, *blocks)
        async with httpx2.AsyncClient() as client:
            (await client.post(f"{self.claude}/_sim/cases/{self.name}", content=body)).raise_for_status()


@pytest.fixture
async def script(claude: str) -> Script:
    """First the model calls a server tool beside a client's tool, as Anthropic's page "Server tools" has it."""
    script = Script(claude)
    await script.set("tool_use", SEARCH, LOOK)
    return script


async def test_a_response_has_the_result_of_a_search_beside_a_function(gateway: Gateway, script: Script) -> None:
    """By `previous_response_id`, and for a client that sends the items back: the model gets the call again."""
    tools = [{"type": "web_search"}, {"type": "function", "name": "look", "parameters": TOOLS[0]["input_schema"]}]

    async def respond(*items: Json, **given: Any) -> Json:
        body = {"model": MODEL, "tools": tools, "input": list(items), **given}
        answer = await gateway.client.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    question = {"role": "user", "content": script.line}
    first = await respond(question)
    search, call = first["output"]
    assert (search["type"], search["status"], call["type"]) == ("web_search_call", "in_progress", "function_call")
    await script.set("end_turn", FOUND, TEXT)
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "blue"}
    for one in (
        await respond(output, previous_response_id=first["id"]),
        await respond(question, *first["output"], output),
    ):
        shown, text = one["output"]
        assert (shown["type"], shown["status"], text["type"]) == ("web_search_call", "completed", "message")
        assert [page["url"] for page in shown["action"]["sources"]] == [FOUND["content"][0]["url"]]
        assert (await gateway.client.get(f"/v1/responses/{one['id']}")).json()["output"] == one["output"]
        turn = one["id"].removeprefix("resp_")
        sent = (await gateway.client.get(f"/v1/turns/{turn}")).json()["input"]
        if one["previous_response_id"] is None:
            assert [block["type"] for block in sent[1]["content"]] == ["server_tool_use", "tool_use"]
        # The result goes back with the answer.
        later = await respond({"role": "user", "content": "#sim words=1 rate=0"}, previous_response_id=one["id"])
        assert later["status"] == "completed"


async def test_a_page_has_the_result_of_a_search_beside_its_tool(gateway: Gateway, script: Script) -> None:
    """The stream that continues the message, the messages, and the stream of a page that is loaded again."""
    chat, question = new_id(), {"id": "u", "role": "user", "parts": [{"type": "text", "text": script.line}]}
    body = {"id": chat, "model": MODEL, "tools": [*TOOLS, SERVER_TOOL]}
    await gateway.client.post("/api/chat", json={**body, "messages": [question]})
    _, asked = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    states = {part["toolCallId"]: part["state"] for part in asked["parts"] if "toolCallId" in part}
    assert states == {SEARCH["id"]: "input-available", LOOK["id"]: "input-available"}
    await script.set("end_turn", FOUND, TEXT)
    done = {"state": "output-available", "output": "blue"}
    parts = [part | (done if part.get("toolCallId") == LOOK["id"] else {}) for part in asked["parts"]]
    posted = await gateway.client.post("/api/chat", json={**body, "messages": [question, {**asked, "parts": parts}]})
    loaded = await gateway.client.get(f"/api/chat/{chat}/stream")
    for found in (events_of(posted), events_of(loaded)):
        (result,) = [one for one in found if one["type"] == "tool-output-available" and one.get("providerExecuted")]
        assert (result["toolCallId"], result["output"]) == (SEARCH["id"], FOUND["content"])
    _, answered = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
    states = {part["toolCallId"]: part["state"] for part in answered["parts"] if "toolCallId" in part}
    assert states == {SEARCH["id"]: "output-available", LOOK["id"]: "output-available"}
    assert (answered["id"], answered["parts"][-1]["text"]) == (asked["id"], TEXT["text"])


async def test_a_run_has_the_result_of_a_search_beside_a_tool_of_the_page(gateway: Gateway, script: Script) -> None:
    """In the next run, in the thread, and when a client connects."""
    thread, question = new_id(), {"id": "u", "role": "user", "content": script.line}
    props = {"model": MODEL, "tools": [SERVER_TOOL]}
    body = {"threadId": thread, "tools": AGENT_TOOLS, "context": [], "forwardedProps": props}
    first = events_of(await gateway.client.post("/api/agui", json={**body, "runId": new_id(), "messages": [question]}))
    assert "TOOL_CALL_RESULT" not in [event["type"] for event in first]
    assert "outcome" not in first[-1]
    await script.set("end_turn", FOUND, TEXT)
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["input"])},
        }
        for call in (SEARCH, LOOK)
    ]
    result = {"id": "t", "role": "tool", "toolCallId": LOOK["id"], "content": "blue"}
    messages = [question, {"id": "a", "role": "assistant", "toolCalls": calls}, result]
    second = await gateway.client.post("/api/agui", json={**body, "runId": new_id(), "messages": messages})
    connected = await gateway.client.post(
        "/api/copilotkit/agent/default/connect", json={**body, "runId": new_id(), "messages": []}
    )
    for found in (events_of(second), events_of(connected)):
        (shown,) = [one for one in found if one["type"] == "TOOL_CALL_RESULT"]
        assert (shown["toolCallId"], json.loads(shown["content"])) == (SEARCH["id"], FOUND["content"])
    page = (await gateway.client.get("/api/agui", params={"threadId": thread})).json()
    outputs = {
        part["id"]: part.get("output")
        for one in page["messages"]
        for part in one["parts"]
        if part["type"] == "tool-call"
    }
    assert outputs == {SEARCH["id"]: FOUND["content"], LOOK["id"]: "blue"}


async def test_a_page_goes_on_after_a_question_beside_results(gateway: Gateway) -> None:
    """Each view has the question of `/v1/turns` as a message of its own, and no branch begins behind it."""
    session, line = new_id(), "#sim words=1 rate=0"

    async def ask(content: Any) -> Json:
        messages = [{"role": "user", "content": content}]
        return await run_turn(gateway, messages=messages, session=session, create_session=True, tools=TOOLS)

    call = (await ask(f"{line} tool=look"))["content"][-1]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "blue"}
    last = await ask([result, {"type": "text", "text": line}])
    shown = (await gateway.client.get(f"/api/chat/{session}/messages")).json()
    assert [one["role"] for one in shown] == ["user", "assistant", "user", "assistant"]
    further = {"id": "u", "role": "user", "parts": [{"type": "text", "text": line}]}
    await gateway.client.post("/api/chat", json={"id": session, "tools": TOOLS, "messages": [*shown, further]})
    (newest,) = (await gateway.client.get(f"/v1/sessions/{session}/turns?limit=1&order=desc")).json()["data"]
    assert (newest["parent"], len(newest["input"])) == (last["turn"], 1)


async def decide(gateway: Gateway, session: str, name: str, result: str) -> Json:
    calls = (await gateway.client.get(f"/v1/sessions/{session}/calls")).json()["calls"]
    (call,) = [one["call"] for one in calls if one["name"] == name]
    answer = await gateway.client.post(f"/v1/sessions/{session}/calls/{call}", json={"result": result})
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def test_a_page_shows_what_others_have_decided(gateway: Gateway, tenant: Tenant, system_log: TurnLog) -> None:
    """After a reload amid the decisions, and in the turn that they have started: from the log and from the database."""
    chat = new_id()
    line = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "#sim words=2 rate=0 tool=look,buy"}]}
    await gateway.client.post("/api/chat", json={"id": chat, "tools": TOOLS, "messages": [line]})

    async def parts() -> tuple[str, Json]:
        _, message = (await gateway.client.get(f"/api/chat/{chat}/messages")).json()
        found = [part for part in message["parts"] if "toolCallId" in part]
        return message["id"], {part["type"]: (part["state"], part.get("output")) for part in found}

    await decide(gateway, chat, "look", "blue")
    name, waiting = await parts()
    assert waiting == {"tool-look": ("output-available", "blue"), "tool-buy": ("input-available", None)}
    following = (await decide(gateway, chat, "buy", "1 kg"))["next"]
    whole = events_of(await gateway.client.get(f"/api/chat/{following}/stream?startIndex=0&replay=true"))
    outputs = [one["output"] for one in whole if one["type"] == "tool-output-available"]
    assert (whole[0]["messageId"], outputs) == (name, ["blue", "1 kg"])
    assert [one["type"] for one in whole].index("tool-input-available") > 0
    assert events_of(await gateway.client.get(f"/api/chat/{chat}/stream")) == whole
    assert await parts() == (
        name,
        {"tool-look": ("output-available", "blue"), "tool-buy": ("output-available", "1 kg")},
    )
    await system_log.purge(TurnKey(tenant, TurnId(following)))
    stored = events_of(await gateway.client.get(f"/api/chat/{following}/stream?startIndex=0&replay=true"))
    assert (stored[0]["messageId"], [one["output"] for one in stored if "output" in one]) == (name, outputs)


async def test_a_thread_shows_what_others_have_decided(gateway: Gateway) -> None:
    """Decided calls are no interrupts any more, and a page that joins the run after them gets their results."""
    thread, run = new_id(), new_id()
    body = {"threadId": thread, "runId": run, "context": [], "forwardedProps": {"approve": True}}
    tools = [*AGENT_TOOLS, {**AGENT_TOOLS[0], "name": "buy"}]
    line = {"id": "u", "role": "user", "content": "#sim words=2 rate=0 tool=look,buy"}
    await gateway.client.post("/api/agui", json={**body, "tools": tools, "messages": [line]})

    async def views() -> tuple[Json, list[Json]]:
        page = (await gateway.client.get("/api/agui", params={"threadId": thread})).json()
        connected = await gateway.client.post(
            "/api/copilotkit/agent/default/connect", json={**body, "tools": [], "messages": []}
        )
        return page, events_of(connected)

    look = (await decide(gateway, thread, "look", "blue"))["calls"][0]["call"]
    page, connected = await views()
    outputs = [part.get("output") for one in page["messages"] for part in one["parts"] if part["type"] == "tool-call"]
    assert outputs == ["blue", None]
    assert [one["toolCallId"] for one in connected if one["type"] == "TOOL_CALL_RESULT"] == [look]
    (pending,) = page["interrupts"]["pending"]
    assert connected[-1]["outcome"]["interrupts"] == [pending]
    assert pending["id"] != look
    following = (await decide(gateway, thread, "buy", "1 kg"))["next"]
    joined = events_of(await gateway.client.get("/api/agui", params={"runId": following}))
    assert [one["content"] for one in joined if one["type"] == "TOOL_CALL_RESULT"] == ["blue", "1 kg"]
    assert "".join(one.get("delta", "") for one in joined) == words(2)
