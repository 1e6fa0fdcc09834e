"""OpenAI's built-in tools: which models have them, and their calls as items. tests/golden/requests has the options."""

from typing import Any

import pytest

from tailrace.proto.errors import Refused
from tailrace.proto.models import Model, Supports, models
from tailrace.protocols.openai import chat_request
from tailrace.protocols.openai.builtin_tools import build_tools
from tailrace.protocols.openai.chat_request import ChatCompletionRequest
from tailrace.protocols.openai.responses_object import Head
from tailrace.protocols.openai.responses_stream import output_items

WITHOUT = Model(id="small", supports=Supports(server_tools=("code_execution",)))
UNKNOWN = Model(id="newer")
OFFERED = [*list(models().values())[:2], WITHOUT]
SEARCH: dict[str, Any] = {"type": "web_search"}
CODE: dict[str, Any] = {"type": "code_interpreter", "container": {"type": "auto"}}
SERVER: dict[str, Any] = {
    "type": "mcp",
    "server_label": "a",
    "server_url": "https://a.example",
    "require_approval": "never",
}
CALL = {"type": "server_tool_use", "id": "c1", "name": "web_search", "input": {"query": "q"}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "c1", "content": [{"url": "https://a.example"}]}


def test_a_tool_that_the_model_has_not_got_is_refused_with_the_models_that_have_it() -> None:
    """Also in chat completions. If the tools of a model are unknown, its API decides."""
    named = "small has no tool `web_search`: choose one of claude-sonnet-5-5, claude-haiku-5-5$"
    with pytest.raises(Refused, match=named):
        build_tools([SEARCH], WITHOUT, OFFERED)
    chat = ChatCompletionRequest(messages=[], web_search_options=chat_request.WebSearchOptions())
    with pytest.raises(Refused, match=named):
        chat_request.build_turn(chat, WITHOUT, {"messages": []}, OFFERED)
    with pytest.raises(Refused, match="no model here has it"):
        build_tools([SEARCH], WITHOUT, [WITHOUT])
    for model, tools in ((WITHOUT, [CODE, SERVER]), (UNKNOWN, [SEARCH, CODE, SERVER])):
        assert len(build_tools(tools, model, OFFERED).tools) == len(tools)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Text blocks that follow each other are one message; a block without an item divides them.
        (["a", "b", {"type": "compaction"}, "c"], [("message", "ab"), ("message", "c")]),
        (["a", CALL, FOUND, "b"], [("message", "a"), ("web_search_call", "completed"), ("message", "b")]),
        # A call whose result is missing, and two calls with one id: the result is that of the newer call.
        (["a", CALL], [("message", "a"), ("web_search_call", "in_progress")]),
        ([CALL, CALL, FOUND], [("web_search_call", "in_progress"), ("web_search_call", "completed")]),
        ([CALL, FOUND, CALL, FOUND], [("web_search_call", "completed")] * 2),
        # A result without its call, and a tool that OpenAI does not have.
        ([FOUND, "a"], [("message", "a")]),
        ([{**CALL, "name": "tool_search_tool_bm25"}, "a"], [("message", "a")]),
    ],
)
def test_items_of_calls_and_texts(content: list[Any], expected: list[tuple[str, str]]) -> None:
    blocks = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    items = output_items(Head("turn-1"), blocks)
    found = [(item["type"], item["content"][0]["text"] if "content" in item else item["status"]) for item in items]
    assert found == expected


@pytest.mark.parametrize(
    ("name", "given", "code"),
    [
        ("code_execution", {"code": "print(1)"}, "print(1)"),
        ("bash_code_execution", {"command": "ls"}, "ls"),
        (
            "text_editor_code_execution",
            {"command": "view", "path": "/a"},
            '{"command":"view","path":"/a"}',
        ),
        ("bash_code_execution", {}, ""),
        ("code_execution", {"code": 5}, '{"code":5}'),
    ],
)
def test_code_of_a_call(name: str, given: dict[str, Any], code: str) -> None:
    (item,) = output_items(Head("turn-1"), [{"type": "server_tool_use", "id": "c1", "name": name, "input": given}])
    assert (item["code"], item["container_id"]) == (code, "cntr_turn-1")
