"""useChat with `resume: true` in Chromium, in StrictMode: the page shows the text of the log."""

import json
from typing import Any

import pytest

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway

LONG = "#sim words=100 rate=25"
# Its end is far away when the page stops it.
STOPPED = "#sim words=400 rate=25"
QUICK = "#sim words=100 rate=80"
TEXT = words(100)

Json = dict[str, Any]


async def shown_cases(browser: str, *cases: tuple[str, str, Json]) -> list[Json]:
    """Runs the cases, each in a chat of its own; returns what the pages show at the end."""
    arguments = [
        text for what, url, given in cases for text in (what, url, json.dumps({"id": f"chat-{what}", **given}))
    ]
    return await node.run("chat.mjs", *arguments, CHROMIUM=browser)


async def history(gateway: Gateway, chat: str) -> list[Json]:
    response = await gateway.client.get(f"/api/chat/{chat}/messages")
    assert response.status_code == 200, response.text
    messages: list[Json] = response.json()
    return messages


def turn_of(seen: Json) -> str:
    turn: str = seen["messages"][-1]["metadata"]["turn"]
    return turn


def without_ids(messages: list[Json]) -> list[Json]:
    """Removes the ids of user messages, which a page makes up."""
    return [message if message["role"] == "assistant" else {**message, "id": ""} for message in messages]


@pytest.mark.proves("ui", "resumes after one and two reloads, in StrictMode", "useChat (Chromium)")
@pytest.mark.proves("ui", "several readers", "useChat (Chromium)")
@pytest.mark.proves("ui", "continues without readers", "useChat (Chromium)")
@pytest.mark.proves("ui", "cancel", "useChat (Chromium)")
@pytest.mark.proves("ui", "resumes after cuts", "useChat (Chromium)")
async def test_page_shows_the_whole_answer_after_cuts_and_reloads(open_gateway: Gateway, browser: str) -> None:
    """Reloaded, in two tabs, without a page, stopped, cut: nothing is missing or repeated."""
    url, given = open_gateway.url, {"texts": [LONG], "chars": 80, "whole": len(TEXT), "reloads": [(80, 1), (160, 2)]}
    async with Cutting(open_gateway.port, random_cuts(5, count=3, bytes_max=6200, bytes_min=3200)) as proxy:
        doings = ("reload", "tabs", "leave")
        stop = given | {"texts": [STOPPED]}
        reloaded, tabs, left, stopped, resumed = await shown_cases(
            browser, *((what, url, given) for what in doings), ("stop", url, stop), ("resume", proxy.url, given)
        )
    for seen in (reloaded, tabs["first"], tabs["second"], left, resumed):
        assert seen["texts"] == [["user", LONG], ["assistant", TEXT]]
        assert (seen["status"], seen["error"]) == ("ready", None)
        assert await read_stored_text(open_gateway, turn_of(seen)) == TEXT
    assert turn_of(tabs["first"]) == turn_of(tabs["second"])
    assert resumed["lost"] == 3
    assert proxy.left == []
    await check_stopped(open_gateway, stopped)
    for what, seen in (("reload", reloaded), ("tabs", tabs["first"]), ("leave", left), ("stop", stopped)):
        assert without_ids(await history(open_gateway, f"chat-{what}")) == without_ids(seen["messages"])


async def check_stopped(gateway: Gateway, seen: Json) -> None:
    """The turn is cancelled; the page shows the text so far and no error."""
    record = (await gateway.client.get(f"/v1/turns/{turn_of(seen)}")).json()
    assert (seen["status"], seen["error"], record["outcome"]) == ("ready", None, "cancelled")
    assert seen["stopped"] == {"turn": turn_of(seen), "outcome": "cancelled"}
    assert seen["texts"] == [["user", STOPPED], ["assistant", record["text"]]]
    assert words(400).startswith(record["text"])
    assert len(record["text"]) > 80


@pytest.mark.proves("ui", "tools", "useChat (Chromium)")
@pytest.mark.proves("ui", "resumes after a reload between tool steps", "useChat (Chromium)")
@pytest.mark.proves("ui", "thinking", "useChat (Chromium)")
@pytest.mark.proves("ui", "follow-up and regenerate", "useChat (Chromium)")
@pytest.mark.proves("ui", "errors before the first event", "useChat (Chromium)")
@pytest.mark.proves("ui", "errors during the stream", "useChat (Chromium)")
@pytest.mark.proves("ui", "restart of the answer", "useChat (Chromium)")
@pytest.mark.proves("ui", "heartbeats before the first event", "useChat (Chromium)")
async def test_chat_shows_what_the_model_generates(
    open_gateway: Gateway, system: System, new_gateway: NewGateway, browser: str
) -> None:
    """Thinking, a tool and the answer to its result, a follow-up, a regeneration, failures of both kinds."""
    beating = await new_gateway(system.nats_url, api_keys="", heartbeat_s=0.1)
    url = open_gateway.url
    # The answer to the tool result begins after the 320 characters of the first answer.
    amid = {"id": "amid", "texts": ["#sim words=40 rate=25 tool=look"], "reloads": [(360, 1), (400, 2)], "whole": 638}
    reloaded, refused, broken, anew, tool, asking, again = await shown_cases(
        browser,
        ("reload", url, amid),
        ("ask", url, {"id": "refused", "texts": ["#sim fault=529"], "status": "error"}),
        *(
            ("ask", url, {"id": on, "texts": [f"{on}\n#sim words=30 rate=50 fault={fault}"], **rest})
            for on, fault, rest in (
                ("broken", "error@10", {"status": "error", "body": {"on_interrupt": "fail"}}),
                ("anew", "cut@10x1", {"body": {"on_interrupt": "restart"}}),
            )
        ),
        ("ask", url, {"id": "tool", "texts": ["#sim words=5 rate=0 thinking=2 tool=look"], "turns": 2}),
        ("ask", beating.url, {"id": "asked", "texts": ["#sim words=2 rate=0 wait=0.5", "#sim words=3 rate=0"]}),
        ("regenerate", url, {"id": "again", "texts": ["#sim words=4 rate=0"]}),
    )
    assert json.loads(refused["error"])["error"]["code"] == "backend_overloaded"
    assert refused["texts"] == [["user", "#sim fault=529"]]
    assert (broken["status"], broken["texts"][1]) == ("error", ["assistant", words(10)])
    assert "Overloaded" in broken["error"]
    assert (anew["status"], anew["texts"][1]) == ("ready", ["assistant", words(30)])
    await check_tool(open_gateway, tool)
    assert reloaded["texts"][1:] == [["assistant", words(40) * 2]]
    (call,) = [part for part in reloaded["messages"][1]["parts"] if part["type"] == "tool-look"]
    assert (call["state"], call["output"]) == ("output-available", {"seen": {"query": "tailrace"}})
    assert [text for _, text in asking["texts"]] == [
        "#sim words=2 rate=0 wait=0.5",
        words(2),
        "#sim words=3 rate=0",
        words(3),
    ]
    assert again["first"]["texts"] == again["second"]["texts"]
    assert turn_of(again["first"]) != turn_of(again["second"])
    for chat, seen in (
        ("broken", broken),
        ("anew", anew),
        ("tool", tool),
        ("asked", asking),
        ("again", again["second"]),
    ):
        assert without_ids(await history(open_gateway, chat)) == without_ids(seen["messages"])


async def check_tool(gateway: Gateway, seen: Json) -> None:
    """One message in two steps, which are two turns; the second turn received the tool result."""
    _, assistant = seen["messages"]
    kinds = ["data-tailrace", "step-start", "reasoning", "text"]
    assert [part["type"] for part in assistant["parts"]] == [*kinds, "tool-look", *kinds]
    call = assistant["parts"][4]
    assert (call["state"], call["input"], call["output"]) == (
        "output-available",
        {"query": "tailrace"},
        {"seen": {"query": "tailrace"}},
    )
    first, second = (part["id"] for part in assistant["parts"] if part["type"] == "data-tailrace")
    record = (await gateway.client.get(f"/v1/turns/{second}")).json()
    assert (record["parent"], assistant["id"]) == (first, f"msg_{first}")
    assert [block["type"] for message in record["input"] for block in message["content"]] == ["tool_result"]
