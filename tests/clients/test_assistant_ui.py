"""assistant-ui's `useAgUiRuntime` in Chromium, in StrictMode."""

from typing import Any

import pytest

from tests.clients import node
from tests.harness.generator_in_loop import words
from tests.integration.conftest import Gateway

Json = dict[str, Any]


@pytest.mark.proves("ag-ui", "runs a tool of the page, and goes on", "assistant-ui useAgUiRuntime (Chromium)")
async def test_runtime_runs_a_tool_and_goes_on(open_gateway: Gateway, browser: str) -> None:
    """After the outcome `success`, it takes a run with open calls for complete, and sends no results."""
    [seen] = await node.run("ag-ui-runtime.mjs", open_gateway.url, "#sim words=4 tool=look rate=0", CHROMIUM=browser)
    parts = [part for one in seen["messages"] for part in one["content"] if part["type"] in ("text", "tool-call")]
    assert seen["errors"] == []
    question, text, call, answer = parts
    assert (call["toolName"], call["result"]) == ("look", {"seen": "blue"})
    assert [question["text"], text["text"], answer["text"]] == ["#sim words=4 tool=look rate=0", words(4), words(4)]
