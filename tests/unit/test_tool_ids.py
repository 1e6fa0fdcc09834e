"""Tool call ids of other vendors, as Claude accepts them."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.proto.entries import Message
from tailrace.proto.tool_ids import MAPPED, map_tool_ids, with_valid_tool_ids

CLAUDE = re.compile(r"^[a-zA-Z0-9_-]+$")


def call(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": "f", "input": {}}


def result(name: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": name, "content": "ok"}


def mapped_ids(contents: Any) -> list[str]:
    return [block["id"] for content in contents for block in content if block["type"] == "tool_use"]


names = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["call_0", "functions.f:0", "call|1.2", "toolu_01", f"{MAPPED}x", "", "é", "a\n", "\ud800"]),
)


@pytest.mark.rule("R130")
@given(st.lists(names, unique=True, min_size=1, max_size=8))
def test_different_ids_stay_different_and_are_valid(ids: list[str]) -> None:
    """Also those that look like mapped ones: the mapped ids are tried together with the ids that they come from."""
    first = mapped_ids(map_tool_ids([[call(one)] for one in ids]))
    ids = list(dict.fromkeys([*ids, *first]))
    contents = [[call(one) for one in ids], [result(one) for one in ids]]
    calls, results = map_tool_ids(contents)
    found = [block["id"] for block in calls]
    assert len(set(found)) == len(ids)
    assert all(CLAUDE.match(one) and "\n" not in one for one in found)
    assert [block["tool_use_id"] for block in results] == found


@pytest.mark.rule("R130")
@given(st.lists(st.lists(names, unique=True, max_size=3), max_size=6))
def test_a_conversation_has_each_id_once_and_each_result_that_of_its_call(answers: list[list[str]]) -> None:
    """Vendors that number the calls of each answer anew repeat ids."""
    contents: list[Any] = []
    for ids in answers:
        contents += [
            [{"type": "text", "text": "a"}, *map(call, ids)],
            [*map(result, reversed(ids)), "odd", None],
            "text",
        ]
    mapped = map_tool_ids(contents)
    found = [block["id"] for content in mapped[::3] for block in content[1:]]
    assert len(set(found)) == len(found)
    assert all(map(CLAUDE.match, found))
    for number in range(0, len(contents), 3):
        calls, results, text = mapped[number : number + 3]
        assert [block["id"] for block in reversed(calls[1:])] == [block["tool_use_id"] for block in results[:-2]]
        assert (results[-2:], text) == (["odd", None], "text")
    # The prompt of a longer conversation begins with that of the shorter one, which the API may have cached.
    assert list(map_tool_ids(contents[:-3])) == list(mapped[:-3])


@pytest.mark.parametrize("name", ["toolu_01A-b_c", "call_0", "X"])
def test_a_valid_id_is_not_mapped(name: str) -> None:
    """Nothing is copied, either."""
    messages = [Message("user", "hi"), Message("assistant", [call(name)]), Message("user", [result(name)])]
    assert with_valid_tool_ids(messages) is messages


def test_a_message_without_an_invalid_id_is_the_same_object() -> None:
    """The fields of a mapped message stay."""
    kept = Message("user", "hi", {"effort": "low"})
    sent = [kept, Message("assistant", [call("a.b")]), Message("user", [result("a.b")], {"effort": "high"})]
    found = with_valid_tool_ids(sent)
    assert found[0] is kept
    assert found[2].output_config == {"effort": "high"}
    assert sent[1].content == [call("a.b")]


def test_blocks_of_server_tools_are_not_mapped() -> None:
    """Only Anthropic's API makes their ids."""
    blocks = [{"type": "server_tool_use", "id": "a.b"}, {"type": "web_search_tool_result", "tool_use_id": "a.b"}]
    odd: list[Any] = [blocks, 5, None, "text"]
    assert map_tool_ids(odd) is odd


@pytest.mark.rule("R130")
@pytest.mark.parametrize("is_large", [False, True])
async def test_a_call_of_claude_has_valid_ids(is_large: bool) -> None:
    """Also those of a session whose earlier answers come from a model of LiteLLM."""
    sent = [Message("user", "hi"), Message("assistant", [call("f:0")]), Message("user", [result("f:0")])]
    pieces = await encode_body(Call(model="m", max_tokens=1, messages=sent, is_large=is_large), stream=True)
    _, called, answered = msgspec.json.decode(b"".join(pieces))["messages"]
    assert called["content"][0]["id"] == answered["content"][0]["tool_use_id"]
    assert CLAUDE.match(called["content"][0]["id"])
