"""WorkflowChatTransport of @ai-sdk/workflow in Node: it resumes by the count of chunks."""

import asyncio
import json
from typing import Any

import pytest

from tests.clients import node
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway

CLIENT = "WorkflowChatTransport"
LONG = "#sim words=120 rate=60"
TEXT = words(120)

Json = dict[str, Any]


def question(text: str, **body: object) -> Json:
    return {"messages": [{"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}], "body": body}


async def run_cases(*urls_and_cases: tuple[str, Json]) -> list[Json]:
    """Returns what the transport gave for each case."""
    arguments = [text for url, given in urls_and_cases for text in (url, json.dumps(given))]
    return await node.run("workflow.mjs", KEY, *arguments)


def text_of(one: Json) -> str:
    return "".join(part["text"] for part in one["message"]["parts"] if part["type"] == "text")


def kinds(one: Json) -> list[str]:
    return [chunk["type"] for chunk in one["chunks"]]


@pytest.mark.proves("ui", "resumes from the end", CLIENT)
async def test_negative_index_counts_from_the_end(gateway: Gateway) -> None:
    """While the answer runs, after it, and when it is cut: a header has the index of the last chunk.

    The transport itself drops deltas of a part that began before.
    """
    (shown,) = await run_cases((gateway.url, question("#sim words=20 rate=0")))
    count = len(shown["chunks"])
    answer = await gateway.client.get(f"/api/chat/{shown['run']}/stream?startIndex=-3")
    assert answer.headers["x-workflow-stream-tail-index"] == str(count - 1)
    assert answer.headers["x-workflow-run-id"] == shown["run"]
    last, all_, beyond = await run_cases(
        (gateway.url, {"run": shown["run"], "startIndex": -2}),
        (gateway.url, {"run": shown["run"], "startIndex": -count}),
        (gateway.url, {"run": shown["run"], "startIndex": -count - 50}),
    )
    assert last["chunks"] == shown["chunks"][-2:]
    assert all_["chunks"] == beyond["chunks"] == shown["chunks"]
    # Still running when Node has started.
    asking = asyncio.create_task(run_cases((gateway.url, question("#sim words=300 rate=25", session_id="chat-tail"))))
    await until(lambda: has_answer_begun(gateway, "chat-tail"))
    async with Cutting(gateway.port, random_cuts(12, count=1, bytes_max=1700, bytes_min=1100)) as proxy:
        (late,) = await run_cases((proxy.url, {"run": "chat-tail", "startIndex": -4}))
        assert proxy.left == []
    (first,) = await asking
    assert late["chunks"] == first["chunks"][-2:]
    assert (text_of(first), late["asked"]) == (words(300), ["GET ?startIndex=-4", late["asked"][1]])
    assert "Dropping orphan" in late["warned"][0]


async def has_answer_begun(gateway: Gateway, chat: str) -> bool:
    """Whether the answer has begun, by the name of the chat."""
    answer = await gateway.client.get(f"/api/chat/{chat}/messages")
    return answer.status_code == 200


@pytest.mark.proves("ui", "tools", CLIENT)
@pytest.mark.proves("ui", "thinking", CLIENT)
@pytest.mark.proves("ui", "errors before the first event", CLIENT)
@pytest.mark.proves("ui", "errors during the stream", CLIENT)
@pytest.mark.proves("ui", "restart of the answer", CLIENT)
async def test_transport_ends_with_every_outcome(gateway: Gateway) -> None:
    """Without `finish` it would reconnect for ever: a failed and a restarted answer have one too."""
    called, failed, anew, refused = await run_cases(
        (gateway.url, question("#sim words=3 rate=0 thinking=2 tool=look")),
        (gateway.url, question("#sim words=30 rate=50 fault=error@10", on_interrupt="fail")),
        (gateway.url, question("anew, in Node\n#sim words=30 rate=50 fault=cut@10x1", on_interrupt="restart")),
        (gateway.url, question("#sim fault=529")),
    )
    assert [part["type"] for part in called["message"]["parts"]] == [
        "data-tailrace",
        "step-start",
        "reasoning",
        "text",
        "tool-look",
    ]
    assert called["chunks"][-1]["finishReason"] == "tool-calls"
    assert kinds(failed)[-4:] == ["finish-step", "message-metadata", "error", "finish"]
    assert (text_of(failed), len(failed["errors"]), len(failed["asked"])) == (words(10), 1, 1)
    assert "reset-step" in kinds(anew)
    assert text_of(anew) == words(30)
    assert "529" in refused["thrown"]


@pytest.mark.proves("ui", "heartbeats before the first event", CLIENT)
async def test_heartbeats_are_not_counted(system: System, gateway: Gateway, new_gateway: NewGateway) -> None:
    beating = await new_gateway(system.nats_url, heartbeat_s=0.1)
    prompt = question("#sim words=3 rate=0 wait=1")
    sent, (one,) = await asyncio.gather(beating.client.post("/api/chat", json=prompt), run_cases((beating.url, prompt)))
    assert sent.content.count(b": hb\n") > 3
    (late,) = await run_cases((gateway.url, {"run": one["run"], "startIndex": 3}))
    assert (text_of(one), late["chunks"]) == (words(3), one["chunks"][3:])


@pytest.mark.proves("ui", "cancel", CLIENT)
async def test_stopped_run_ends_for_the_transport(gateway: Gateway) -> None:
    """`abort` alone does not end it."""
    asking = asyncio.create_task(run_cases((gateway.url, question(LONG, session_id="chat-stopped"))))
    await until(lambda: has_answer_begun(gateway, "chat-stopped"))
    stopped = (await gateway.client.post("/api/chat/chat-stopped/stop")).json()
    (one,) = await asking
    assert kinds(one)[-3:] == ["finish-step", "abort", "finish"]
    assert (one["chunks"][-1]["finishReason"], len(one["asked"])) == ("other", 1)
    assert stopped == {"turn": one["run"], "outcome": "cancelled"}
    assert (await gateway.client.post(f"/api/chat/{one['run']}/stop")).json() == stopped
