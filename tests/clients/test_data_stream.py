"""assistant-ui's `useDataStreamRuntime` in Chromium, in StrictMode."""

import json
from typing import Any

import pytest

from tests.clients import node
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.integration.conftest import Gateway

Json = dict[str, Any]
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


async def show(*cases: tuple[str, Json, list[Any]], browser: str) -> list[Json]:
    """Returns what each chat has at the end: the URL of its gateway, fields of its body, its messages."""
    arguments = [text for url, body, contents in cases for text in (url, json.dumps(body), json.dumps(contents))]
    return await node.run("data-stream.mjs", *arguments, CHROMIUM=browser)


def texts(seen: Json) -> list[list[str]]:
    return [[part["text"] for part in one["content"] if part["type"] == "text"] for one in seen["messages"]]


def text_message(text: str) -> list[Json]:
    return [{"type": "text", "text": text}]


@pytest.mark.proves("ui", "answers, tools, the same branch", "assistant-ui useDataStreamRuntime (Chromium)")
async def test_runtime_shows_answers_runs_a_tool_and_goes_on(open_gateway: Gateway, browser: str) -> None:
    """The thread is a session: each message follows the turn before it. A cut is an error, and is not resumed."""
    question, tool, long = "#sim words=4 thinking=2 rate=0", "#sim words=2 tool=look rate=0", "#sim words=20 rate=100"
    image = [*text_message("#sim words=3 rate=0"), {"type": "image", "image": DOT}]
    async with Cutting(open_gateway.port, [Cut(1500)]) as proxy:
        seen, cut = await show(
            (open_gateway.url, {}, [text_message(question), text_message(tool), image]),
            (proxy.url, {}, [text_message(long)]),
            browser=browser,
        )
    whole = [[question], [words(4)], [tool], [words(2), words(2)], ["#sim words=3 rate=0"], [words(3)]]
    assert (texts(seen), seen["errors"]) == (whole, [])
    (call,) = [part for one in seen["messages"] for part in one["content"] if part["type"] == "tool-call"]
    assert (call["toolName"], call["result"]) == ("look", {"seen": "blue"})

    thread = seen["requests"][0]["threadId"]
    turns = (await open_gateway.client.get(f"/v1/sessions/{thread}/turns")).json()["turns"]
    assert [turn["parent"] for turn in turns] == [None, *(turn["turn"] for turn in turns[:3])]
    assert [block["type"] for block in turns[3]["input"][0]["content"]] == ["text", "image"]
    assert turns[2]["input"][0]["content"][0]["content"] == [{"type": "text", "text": '{"seen":"blue"}'}]

    assert (cut["errors"], cut["messages"][1]["status"]["reason"]) == (["network error"], "error")
    # On a busy machine, the page may have shown none of it.
    shown = "".join(texts(cut)[1])
    assert words(20).startswith(shown.rstrip())
    assert shown != words(20)
    assert proxy.left == []
