"""AG-UI's routes on a running gateway: runs, resume, threads, interrupts, and bad input."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.protocols.ag_ui import runs
from tailrace.protocols.common.newest_branch import newest_branch
from tests.harness.displayed_text import ag_ui as shown
from tests.harness.generator_in_loop import words
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway, api_keys

Json = dict[str, Any]
DOCS = Path(__file__).parents[3] / "docs/AG_UI.md"
AGENT = "/api/copilotkit/agent/default"
TOOLS = [{"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}]


def user(text: str) -> Json:
    return {"id": new_id(), "role": "user", "content": text}


def body_of(*messages: Json, thread: str = "", run: str = "", **given: Any) -> Json:
    names = {"threadId": thread or new_id(), "runId": run or new_id()}
    return {**names, "messages": list(messages), "tools": [], "context": [], "protocolVersion": "1.0", **given}


async def post(gateway: Gateway, body: Json, last: str = "", path: str = "/api/agui") -> httpx2.Response:
    return await gateway.client.post(path, json=body, headers={"last-event-id": last} if last else {})


def events_of(answer: httpx2.Response | bytes) -> list[Json]:
    content = answer if isinstance(answer, bytes) else answer.content
    return [json.loads(event.data) for event in parse(content)]


def ids_of(content: bytes) -> list[str]:
    return [line.removeprefix("id: ") for line in content.decode().splitlines() if line.startswith("id: ")]


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def calls_of(gateway: Gateway, thread: str) -> int:
    return len((await gateway.client.get(f"/v1/sessions/{thread}/turns")).json()["turns"])


async def test_run_is_answered_with_events_in_order(gateway: Gateway) -> None:
    """The id of each event comes before its data, and is its own."""
    body = body_of(user("#sim words=3 thinking=2 rate=0"), odd=1)
    answer = await post(gateway, body)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["tailrace-ignored"] == "odd"
    events = events_of(answer)
    assert (events[0]["type"], events[0]["threadId"], events[0]["runId"]) == (
        "RUN_STARTED",
        body["threadId"],
        body["runId"],
    )
    assert shown(answer.content) == words(3)
    assert (events[-1]["type"], events[-1]["outcome"]) == ("RUN_FINISHED", {"type": "success"})
    ids = ids_of(answer.content)
    assert len(set(ids)) == len(events)
    assert all(block.startswith(b"id: ") for block in answer.content.split(b"\n\n") if block)


async def test_repeated_post_resumes_after_each_event(gateway: Gateway) -> None:
    """TanStack AI repeats the POST with the last id that it has received. Nothing is sent twice, nor paid twice."""
    body = body_of(user("#sim words=4 thinking=2 tool=look rate=0"), tools=TOOLS)
    whole = (await post(gateway, body)).content
    blocks = [block + b"\n\n" for block in whole.split(b"\n\n") if block]
    for number, last in enumerate(ids_of(whole)[:-1], 1):
        rest = await post(gateway, body, last)
        assert rest.content == b"".join(blocks[number:]), last
    again = await post(gateway, body, ids_of(whole)[-1])
    # TanStack AI takes an empty response for an error, and drops an event with a known id.
    assert events_of(again) == events_of(whole)[-1:]
    assert ids_of(again.content)[0] not in ids_of(whole)
    third = await post(gateway, body, ids_of(again.content)[0])
    assert events_of(third) == events_of(whole)[-1:]
    assert ids_of(third.content) != ids_of(again.content)
    assert await calls_of(gateway, body["threadId"]) == 1


async def test_run_is_joined_by_its_id(gateway: Gateway) -> None:
    """From the start, and after any event. The id of the turn names the run, too."""
    body = body_of(user("#sim words=4 rate=0"), protocolVersion=None)
    posted = await post(gateway, body)
    for name in (body["runId"], posted.headers["tailrace-turn"]):
        joined = await gateway.client.get("/api/agui", params={"runId": name, "offset": "-1"})
        assert joined.content == posted.content
    ids = ids_of(posted.content)
    for given in ({"params": {"offset": ids[1]}}, {"params": {"offset": "-1"}, "headers": {"last-event-id": ids[1]}}):
        params = {"runId": body["runId"], **given["params"]}
        rest = await gateway.client.get("/api/agui", params=params, headers=given.get("headers", {}))
        assert ids_of(rest.content) == ids[2:]


async def test_thread_has_its_messages_and_its_interrupts(gateway: Gateway) -> None:
    """A page of TanStack AI loads them; one of CopilotKit connects."""
    thread = new_id()
    await post(gateway, body_of(user("#sim words=2 rate=0"), thread=thread))
    question = user("#sim words=1 tool=look rate=0")
    history = [user("#sim words=2 rate=0"), {"id": "a", "role": "assistant", "content": words(2)}, question]
    second = body_of(*history, thread=thread, tools=TOOLS, forwardedProps={"approve": True})
    outcome = events_of(await post(gateway, second))[-1]["outcome"]
    page = (await gateway.client.get("/api/agui", params={"threadId": thread})).json()
    assert [(one["role"], [part["type"] for part in one["parts"]]) for one in page["messages"]] == [
        ("user", ["text"]),
        ("assistant", ["text"]),
        ("user", ["text"]),
        ("assistant", ["text", "tool-call"]),
    ]
    assert page["activeRun"] is None
    assert page["interrupts"] == {"runId": second["runId"], "pending": outcome["interrupts"]}
    connected = await post(gateway, body_of(thread=thread), path="/api/copilotkit/agent/default/connect")
    events = events_of(connected)
    # A client that connects again drops the messages that it has.
    started = [event for event in events if event["type"] == "RUN_STARTED"]
    assert ["input" in event for event in started] == [False, True]
    assert events[1]["type"] == "MESSAGES_SNAPSHOT"
    asked = (events[1]["messages"], started[1]["input"]["messages"])
    assert [[one["content"] for one in messages] for messages in asked] == [
        ["#sim words=2 rate=0"],
        ["#sim words=1 tool=look rate=0"],
    ]
    assert events[-1]["outcome"] == outcome
    assert events[3]["messageId"] == page["messages"][1]["id"]
    assert shown(connected.content) == words(2) + words(1)


async def test_interrupt_is_decided_once(gateway: Gateway) -> None:
    """The same decision from another tab joins the run; another one is refused."""
    thread = new_id()
    asked = body_of(user("#sim words=1 tool=look rate=0"), thread=thread, tools=TOOLS, forwardedProps={"approve": True})
    (interrupt,) = events_of(await post(gateway, asked))[-1]["outcome"]["interrupts"]
    decision = {"interruptId": interrupt["id"], "status": "resolved", "payload": {"result": "blue"}}
    decided = body_of(*asked["messages"], thread=thread, resume=[decision])
    answer = await post(gateway, decided)
    events = events_of(answer)
    assert (events[0]["runId"], events[-1]["outcome"]) == (decided["runId"], {"type": "success"})
    # Without the result, the client would leave the call out of its next run.
    results = [(event["toolCallId"], event["content"]) for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert results == [(interrupt["id"], "blue")]
    other_tab = await post(gateway, body_of(*asked["messages"], thread=thread, resume=[decision]))
    assert shown(other_tab.content) == shown(answer.content)
    assert other_tab.headers["tailrace-turn"] == answer.headers["tailrace-turn"]
    joined = await gateway.client.get("/api/agui", params={"runId": decided["runId"]})
    assert shown(joined.content) == shown(answer.content)
    rest = await post(gateway, decided, ids_of(answer.content)[0])
    assert ids_of(rest.content) == ids_of(answer.content)[1:]
    denied = {"interruptId": interrupt["id"], "status": "cancelled"}
    assert code_of(await post(gateway, body_of(thread=thread, resume=[denied]))) == (409, "call_decided")
    unknown = {"interruptId": "none", "status": "cancelled"}
    assert code_of(await post(gateway, body_of(thread=thread, resume=[unknown]))) == (404, "call_not_found")
    reused = body_of(*asked["messages"], thread=thread, run=decided["runId"], resume=[denied])
    assert code_of(await post(gateway, reused)) == (409, "run_id_reused")
    assert await calls_of(gateway, thread) == 2


async def test_page_joins_the_run_that_a_decision_has_started(gateway: Gateway) -> None:
    """The turn has the labels of the turn before, and so the id of that run."""
    thread = new_id()
    asked = body_of(
        user("#sim words=40 tool=look rate=100"), thread=thread, tools=TOOLS, forwardedProps={"approve": True}
    )
    (interrupt,) = events_of(await post(gateway, asked))[-1]["outcome"]["interrupts"]
    decision = {"interruptId": interrupt["id"], "status": "resolved", "payload": "blue"}
    decided = body_of(*asked["messages"], thread=thread, resume=[decision])
    page: Json = {}
    async with gateway.client.stream("POST", "/api/agui", json=decided) as stream:
        received = b""
        async for piece in stream.aiter_raw():
            received += piece
            if b"CONTENT" in received and not page:
                page = (await gateway.client.get("/api/agui", params={"threadId": thread})).json()
    assert page["interrupts"] is None
    joined = await gateway.client.get("/api/agui", params=page["activeRun"])
    assert joined.headers["tailrace-turn"] == stream.headers["tailrace-turn"]
    assert shown(joined.content) == shown(received) == words(40)


async def test_interrupt_is_decided_with_the_id_of_the_interrupted_run(gateway: Gateway) -> None:
    """As `useInterrupt` of CopilotKit sends it, with a message of the result. Another body without it is refused."""
    thread = new_id()
    asked = body_of(user("#sim words=1 tool=look rate=0"), thread=thread, tools=TOOLS, forwardedProps={"approve": True})
    (interrupt,) = events_of(await post(gateway, asked))[-1]["outcome"]["interrupts"]
    payload = {"result": "blue"}
    result = {"id": new_id(), "role": "tool", "toolCallId": interrupt["id"], "content": json.dumps(payload)}
    decision = {"interruptId": interrupt["id"], "status": "resolved", "payload": payload}
    decided = body_of(*asked["messages"], result, thread=thread, run=asked["runId"], resume=[decision])
    unknown = {**decided, "messages": [], "resume": [{**decision, "interruptId": "toolu_other"}]}
    assert code_of(await post(gateway, unknown)) == (409, "run_id_reused")
    answer, again = await post(gateway, decided), await post(gateway, decided)
    events = events_of(answer)
    assert (events[0]["runId"], events[-1]["outcome"]) == (asked["runId"], {"type": "success"})
    assert again.content == answer.content
    assert "TOOL_CALL_RESULT" not in [event["type"] for event in events]
    first, second = (await gateway.client.get(f"/v1/sessions/{thread}/turns")).json()["turns"]
    assert [block["content"] for block in second["input"][-1]["content"]] == ["blue"]
    assert [first["metadata"]["agui_run"], second["parent"]] == [asked["runId"], first["turn"]]
    page = (await gateway.client.get("/api/agui", params={"threadId": thread})).json()
    # As TanStack AI keeps the call after the stream: a page shows it as one that has run.
    (call,) = [part for one in page["messages"] for part in one["parts"] if part["type"] == "tool-call"]
    assert (call["input"], call["state"], call["output"]) == ({"query": "tailrace"}, "complete", "blue")
    # It sends the text behind the result back as another message.
    assert [(one["role"], [part["type"] for part in one["parts"]]) for one in page["messages"]] == [
        ("user", ["text"]),
        ("assistant", ["text", "tool-call", "tool-result"]),
        ("assistant", ["text"]),
    ]


@pytest.mark.parametrize("is_same_id", [False, True])
async def test_question_that_comes_with_decisions_is_answered(gateway: Gateway, *, is_same_id: bool) -> None:
    """HttpAgent sends none while interrupts wait: the next run has the question and the decisions.

    `useInterrupt` of CopilotKit sends the id of the interrupted run.
    """
    thread = new_id()
    two = [*TOOLS, {**TOOLS[0], "name": "book"}]
    given: Json = {"thread": thread, "tools": two, "forwardedProps": {"approve": True}}
    asked = body_of(user("#sim words=1 tool=look,book rate=0"), **given)
    events = events_of(await post(gateway, asked))
    first, second = [interrupt["id"] for interrupt in events[-1]["outcome"]["interrupts"]]
    calls = [
        {"id": call, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for call, name in ((first, "look"), (second, "book"))
    ]
    shown_call = {"id": new_id(), "role": "assistant", "content": words(1), "toolCalls": calls}
    resume = [
        {"interruptId": second, "status": "resolved", "payload": {"result": "blue"}},
        {"interruptId": first, "status": "resolved", "payload": {"approved": False, "reason": "too dear"}},
    ]
    history = [*asked["messages"], shown_call, user("#sim words=2 tag=b rate=0")]
    run = asked["runId"] if is_same_id else ""
    body = body_of(*history, run=run, resume=resume, **given)
    answer, again = await post(gateway, body), await post(gateway, body)
    assert shown(answer.content) == "b000000 b000001"
    assert again.content == answer.content
    events = events_of(answer)
    assert (events[0]["runId"], events[-1]["outcome"]) == (body["runId"], {"type": "success"})
    results = [(event["toolCallId"], event["content"]) for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert results == [(first, "the user denied this tool call: too dear"), (second, "blue")]
    late = body_of(*history, resume=resume[:1], **given)
    assert code_of(await post(gateway, late)) == (409, "call_decided")
    turns = (await gateway.client.get(f"/v1/sessions/{thread}/turns")).json()["turns"]
    assert [turn["parent"] for turn in turns] == [None, turns[0]["turn"]]


async def test_thread_waits_for_the_database(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart it is behind the log, and TanStack AI would show an empty thread after an error."""
    thread, refusals = new_id(), [Refused("persistence_unavailable", "behind")] * 2
    await post(gateway, body_of(user("#sim words=2 rate=0"), thread=thread))

    async def refuse_first(*given: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await newest_branch(*given)

    monkeypatch.setattr(runs, "newest_branch", refuse_first)
    monkeypatch.setattr(runs, "BEHIND_WAIT_S", 0.0)
    page = (await gateway.client.get("/api/agui", params={"threadId": thread})).json()
    assert (len(page["messages"]), refusals) == (2, [])
    refusals += [Refused("persistence_unavailable", "behind")] * 2
    monkeypatch.setattr(runs, "BEHIND_S_MAX", -1.0)
    assert code_of(await gateway.client.get("/api/agui", params={"threadId": thread})) == (
        503,
        "persistence_unavailable",
    )


async def test_run_is_stopped_by_its_thread(gateway: Gateway) -> None:
    """By any tab: a run of the thread, or its newest one. A run that has ended stays."""
    body = body_of(user("#sim words=400 rate=50"))
    stop = f"/api/copilotkit/agent/default/stop/{body['threadId']}"
    assert code_of(await gateway.client.post(stop)) == (404, "session_not_found")
    path = "/api/copilotkit/agent/default/run"
    async with gateway.client.stream("POST", path, json=body) as stream:
        received = b""
        async for piece in stream.aiter_raw():
            if b"TEXT_MESSAGE_CONTENT" in piece and not received.count(b"CONTENT"):
                stopped = await gateway.client.post(stop, json={"runId": body["runId"]})
                assert (stopped.json()["stopped"], stopped.json()["outcome"]) == (True, "cancelled")
            received += piece
    assert events_of(received)[-1]["outcome"] == {"type": "cancelled"}
    assert (await gateway.client.post(stop)).json()["stopped"] is False
    elsewhere = await gateway.client.post("/api/copilotkit/agent/default/stop/other", json={"runId": body["runId"]})
    assert code_of(elsewhere) == (404, "turn_not_found")


async def test_agent_of_copilotkit_is_a_model(gateway: Gateway) -> None:
    """`default` is the session's model, or the operator's default."""
    info = (await gateway.client.get("/api/copilotkit/info")).json()
    assert {"default", "claude-haiku-5-5"} <= set(info["agents"])
    body = body_of(user("#sim words=1 rate=0"))
    answer = await post(gateway, body, path="/api/copilotkit/agent/claude-haiku-5-5/run")
    assert events_of(answer)[-1]["usage"][0]["model"] == "claude-haiku-5-5"
    unknown = await post(gateway, body_of(user("Hi")), path="/api/copilotkit/agent/weather/run")
    assert code_of(unknown) == (404, "model_not_found")
    new = await post(gateway, body_of(), path="/api/copilotkit/agent/default/connect")
    assert (new.status_code, new.content) == (200, b"")


@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "claude-sonnet-5"])
async def test_context_of_each_question_keeps_thinking_and_history(gateway: Gateway, model: str) -> None:
    """The client does not send earlier contexts. The simulated Claude refuses thinking behind a changed prompt."""
    thread, messages = new_id(), []
    for page in ("cart", "checkout", "thanks"):
        messages.append(user(f"#sim words=2 thinking=3 rate=0 tag={page}"))
        context = [{"description": "page", "value": page}]
        body = body_of(*messages, thread=thread, context=context, forwardedProps={"model": model})
        answer = await post(gateway, body)
        assert events_of(answer)[-1]["type"] == "RUN_FINISHED"
        messages.append({"id": new_id(), "role": "assistant", "content": shown(answer.content)})
    turns = (await gateway.client.get(f"/v1/sessions/{thread}/turns")).json()["turns"]
    assert [turn["parent"] for turn in turns] == [None, *(turn["turn"] for turn in turns[:-1])]
    is_reminder = model == "claude-sonnet-5-5"
    assert [len(turn["input"]) for turn in turns] == [1 + is_reminder] * 3
    assert [turn["unchanged_prompt_tokens"] is not None for turn in turns] == [False, True, True]


async def test_restart_sends_the_messages_before_the_answer(gateway: Gateway) -> None:
    """With the client's own ids, so that it drops only the half answer."""
    question = user(f"restart {new_id()}\n#sim words=5 thinking=4 rate=0 fault=cut@6x1")
    body = body_of(question, forwardedProps={"on_interrupt": "restart"})
    events = events_of(await post(gateway, body))
    (snapshot,) = [event["messages"] for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
    assert snapshot[0] == question
    # HttpAgent keeps its reasoning unless the snapshot has some.
    (empty,) = snapshot[1:]
    begun = [event["messageId"] for event in events if event["type"] == "REASONING_MESSAGE_START"]
    assert (empty["role"], empty["content"], begun[-1]) == ("reasoning", "", empty["id"])


@pytest.mark.rule("R15")
async def test_a_client_that_has_a_part_of_a_run_that_has_left_the_log_gets_all_of_it_after_a_snapshot(
    gateway: Gateway, tenant: Tenant, system_log: TurnLog
) -> None:
    """The snapshot has the thread before the answer. The database does not know which part the client has."""
    first = body_of(user("#sim words=2 rate=0"))
    sent = [
        *first["messages"],
        {"id": "a", "role": "assistant", "content": shown((await post(gateway, first)).content)},
    ]
    body = body_of(*sent, user("#sim words=9 rate=0"), thread=first["threadId"])
    answer = await post(gateway, body)
    whole, ids, turn = answer.content, ids_of(answer.content), answer.headers["tailrace-turn"]
    # Persistence answers after it has recorded the turn's end.
    assert await calls_of(gateway, body["threadId"]) == 2
    await system_log.purge(TurnKey(tenant, TurnId(turn)))
    for at in range(len(ids) - 1):
        rest = (await gateway.client.get("/api/agui", params={"runId": body["runId"], "offset": ids[at]})).content
        snapshot = events_of(rest)[0]
        assert [one["role"] for one in snapshot["messages"]] == ["user", "assistant", "user"]
        assert not set(ids_of(rest)[:-1]) & set(ids)
        assert shown(b"\n\n".join(whole.split(b"\n\n")[: at + 1]) + b"\n\n" + rest) == words(9)


async def test_one_run_at_two_gateways_at_the_same_moment_is_paid_once(
    gateway: Gateway, second_gateway: Gateway
) -> None:
    """Both responses have the same run."""
    body = body_of(user("#sim words=3 rate=0"))
    answers = await asyncio.gather(*(post(one, body) for one in 3 * (gateway, second_gateway)))
    assert len({answer.content for answer in answers}) == 1
    assert await calls_of(gateway, body["threadId"]) == 1


async def test_steered_run_goes_on_in_the_same_stream(gateway: Gateway) -> None:
    """HttpAgent allows a run behind one that has ended. A cut at any event resumes in the right turn."""
    body = body_of(user("#sim words=2000 rate=100"))
    received = b""
    async with gateway.client.stream("POST", "/api/agui", json=body) as stream:
        async for piece in stream.aiter_raw():
            if b"w000003" in piece and b"w000003" not in received:
                steer = f"/v1/turns/{stream.headers['tailrace-turn']}/steer"
                steered = await gateway.client.post(steer, json={"message": "#sim words=2 tag=s rate=0"})
                assert steered.is_success, steered.text
            received += piece
    events = events_of(received)
    starts = [at for at, event in enumerate(events) if event["type"] == "RUN_STARTED"]
    assert [events[at - 1].get("outcome") for at in starts[1:]] == [{"type": "cancelled"}]
    assert events[-1]["outcome"] == {"type": "success"}
    assert shown(received).endswith(words(2, "s"))
    ids = ids_of(received)
    for at in (1, starts[1] - 2, starts[1] - 1, starts[1], len(ids) - 2):
        rest = await post(gateway, body, ids[at])
        assert ids_of(rest.content) == ids[at + 1 :], at
    again = await post(gateway, body, ids[-1])
    assert events_of(again) == events[-1:]


async def test_resume_without_a_free_stream_is_a_cut_body(system: System, new_gateway: NewGateway) -> None:
    """TanStack AI treats every status but 200 as final. The limit of streams is kept."""
    gateway = await new_gateway(system.nats_url, streams_tenant_max=1)
    done = body_of(user("#sim words=3 rate=0"))
    ids = ids_of((await post(gateway, done)).content)
    running = body_of(user("#sim words=400 rate=50"))
    headers = {"last-event-id": ids[1], "x-run-id": done["runId"]}
    join = {"offset": "-1", "runId": done["runId"]}
    async with gateway.client.stream("POST", "/api/agui", json=running) as first:
        assert first.status_code == 200
        for method, sent, params in (("POST", done, {}), ("GET", None, join)):
            async with gateway.client.stream(method, "/api/agui", headers=headers, json=sent, params=params) as second:
                assert second.status_code == 200
                with pytest.raises(httpx2.RemoteProtocolError):
                    await second.aread()
        assert code_of(await post(gateway, body_of(user("#sim words=1 rate=0")))) == (429, "too_many_streams")
    rest = await gateway.client.post("/api/agui", json=done, headers=headers)
    assert ids_of(rest.content) == ids[2:]


async def test_a_request_to_another_route_gets_advice(gateway: Gateway) -> None:
    """A run that is sent to the route of AI SDK, and routes of CopilotKit's runtime that do not exist here."""
    wrong = await post(gateway, body_of(user("Why?")), path="/api/chat")
    assert code_of(wrong) == (400, "request_invalid")
    assert "POST /api/agui" in wrong.json()["error"]["message"]
    for path, said in (("/api/copilotkit/threads", "/v1/sessions"), ("/api/copilotkit", "/agent/{agent}/run")):
        absent = await gateway.client.post(path, json={"method": "info"})
        assert code_of(absent) == (404, "route_not_found")
        assert said in absent.json()["error"]["message"]


def documented_answers() -> dict[str, set[tuple[int, str]]]:
    """Returns the statuses and codes of each row of the table in docs/AG_UI.md."""
    _, _, table = DOCS.read_text().partition("| request | answer |\n|---|---|\n")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    found: dict[str, set[tuple[int, str]]] = {}
    for asked, answer in rows:
        status = 0
        found[asked] = set()
        for number, code in re.findall(r"\b([2-5]\d\d)\b|`([a-z_]+)`", answer):
            status = int(number or status)
            found[asked] |= {(status, code)} if code else set()
    return found


async def test_each_bad_input_in_the_documentation_has_its_answer(
    gateway: Gateway, system: System, new_gateway: NewGateway
) -> None:
    """Nothing is stored or paid for. A row without a code has a test of its own."""
    body = body_of(user("#sim words=1 rate=0"))
    posted = await post(gateway, body)
    elsewhere = body_of(user("#sim words=1 rate=0"))
    other_id = ids_of((await post(gateway, elsewhere)).content)[0]
    theirs = await new_gateway(system.nats_url, api_keys=api_keys(Tenant(new_id())))
    small = await new_gateway(system.nats_url, body_bytes_max=2000)
    asked = body_of(user("#sim words=1 tool=look rate=0"), tools=TOOLS, forwardedProps={"approve": True})
    (interrupt,) = events_of(await post(gateway, asked))[-1]["outcome"]["interrupts"]
    thread, run = body["threadId"], body["runId"]
    stop = f"{AGENT}/stop"

    def decide(call: str, **payload: Any) -> Json:
        return body_of(
            thread=asked["threadId"], resume=[{"interruptId": call, "status": "resolved", "payload": payload}]
        )

    async def join(one: Gateway = gateway, **params: str) -> httpx2.Response:
        return await one.client.get("/api/agui", params=params)

    assert (await post(gateway, decide(interrupt["id"], result="blue"))).status_code == 200
    orphan = {"id": "1", "role": "tool", "toolCallId": "none", "content": "blue"}
    audio = {"type": "audio", "source": {"type": "url", "value": "https://example.com/a.mp3"}}
    answers = {
        "a `runId` with another body": [await post(gateway, body | {"messages": [user("Other")]})],
        "an unknown run, or one of another tenant; a run of another thread to be stopped": [
            await join(runId="none"),
            await join(runId="calls none"),
            await join(theirs, runId=run),
            await gateway.client.post(f"{stop}/other", json={"runId": run}),
            await theirs.client.post(f"{stop}/{thread}", json={"runId": run}),
        ],
        "an unknown thread": [
            await gateway.client.post(f"{stop}/{new_id()}"),
            await theirs.client.post(f"{stop}/{thread}"),
        ],
        "a `Last-Event-ID` or `offset` of another run": [
            await post(gateway, body_of(user("Other"), thread=thread), ids_of(posted.content)[0]),
            await join(runId=run, offset=other_id),
            await join(runId=run, offset="x"),
        ],
        "an unknown role, a part that Claude does not take, a result without its call, a wrong type": [
            await post(gateway, body_of({"id": "1", "role": "robot"})),
            await post(gateway, body_of({"id": "1", "role": "user", "content": [audio]})),
            await post(gateway, body_of(user("Why?"), orphan)),
            await post(gateway, body_of(user("Why?"), forwardedProps={"max_tokens": "many"})),
            await post(gateway, body_of(user("Why?"), run="calls none")),
            await post(gateway, {"threadId": "t", "messages": []}),
            await join(),
        ],
        "another decision about a decided call": [await post(gateway, decide(interrupt["id"], approved=False))],
        "a decision about an unknown call": [await post(gateway, decide("none", result="blue"))],
        "a body that is too large": [
            await post(small, body_of(user("x" * 3000)), path=path)
            for path in ("/api/agui", f"{AGENT}/run", f"{AGENT}/connect")
        ],
    }
    documented = documented_answers()
    assert {row: {code_of(one) for one in found} for row, found in answers.items()} == {
        row: codes for row, codes in documented.items() if codes
    }
    for one in (gateway, theirs):
        unknown = (await join(one, threadId=thread if one is theirs else new_id())).json()
        assert unknown == {"messages": [], "activeRun": None, "interrupts": None}
    counts = [await calls_of(gateway, one) for one in (thread, elsewhere["threadId"], asked["threadId"])]
    assert counts == [1, 1, 2]
    assert len((await gateway.client.get("/v1/turns")).json()["data"]) == sum(counts)


async def test_joined_run_that_was_steered_resumes_after_each_event(gateway: Gateway) -> None:
    """TanStack AI has joined it with the id of the first turn, and resumes within the next one, and behind its end."""
    body = body_of(user("#sim words=400 rate=100"), protocolVersion=None)
    async with gateway.client.stream("POST", "/api/agui", json=body) as stream:
        received = b""
        async for piece in stream.aiter_raw():
            if b"w000003" in piece and b"w000003" not in received:
                steer = f"/v1/turns/{stream.headers['tailrace-turn']}/steer"
                await gateway.client.post(steer, json={"message": "#sim words=2 tag=s rate=0"})
            received += piece
    events, ids = events_of(received), ids_of(received)
    start = max(at for at, event in enumerate(events) if event["type"] == "RUN_STARTED")
    params = {"runId": body["runId"], "offset": "-1"}
    joined = await gateway.client.get("/api/agui", params=params)
    assert joined.content == received
    for at in (1, start - 2, start - 1, start, len(ids) - 2):
        rest = await gateway.client.get("/api/agui", params=params, headers={"last-event-id": ids[at]})
        assert ids_of(rest.content) == ids[at + 1 :], at
    again = await gateway.client.get("/api/agui", params=params, headers={"last-event-id": ids[-1]})
    assert events_of(again) == events[-1:]


async def test_stream_of_a_ticket_resumes_after_each_event(gateway: Gateway) -> None:
    """Each id is `PROOF.SEQ` or `PROOF.SEQ-N`, also that of an event within an entry (ADR 16)."""
    turn = (await post(gateway, body_of(user("#sim words=3 thinking=2 rate=0")))).headers["tailrace-turn"]
    made = (await gateway.client.post(f"/v1/turns/{turn}/tickets", json={})).json()
    url = f"{made['events']}&dialect=ag-ui"
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as reader:
        whole = (await reader.get(url)).content
        ids = ids_of(whole)
        proof = ids[0].partition(".")[0]
        assert all(one.startswith(f"{proof}.") for one in ids)
        assert any("-" in one.removeprefix(proof) for one in ids)
        blocks = [block + b"\n\n" for block in whole.split(b"\n\n") if block]
        for at, last in enumerate(ids[:-1], 1):
            rest = await reader.get(url, headers={"last-event-id": last})
            assert rest.content == b"".join(blocks[at:]), last
        assert (await reader.get(url, headers={"last-event-id": "3-0"})).status_code == 401
