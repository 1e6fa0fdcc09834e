"""Serialisation of a reply into Anthropic's events."""

from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude.event import frames
from tailrace.deploy.simulated_claude.reply import parse_message, reply
from tailrace.deploy.simulated_claude.request import Message, Request, Tool, ToolChoice, decode


def events_for(line: str, *before: Message) -> list[tuple[str, Any]]:
    request = Request(model="claude-sonnet-5-5", max_tokens=100, messages=[*before, Message("user", line)])
    sent = b"".join(frame.data for frame in frames(reply(parse_message(request), 1)))
    events = [event.split("\n") for event in sent.decode().removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), decode_loosely(data.removeprefix("data: "))) for name, data in events]


def decode_loosely(data: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return data


def test_garbage_is_one_line_that_is_not_json_and_the_rest_follows() -> None:
    """A client that skips it would not notice the fault."""
    data = [data for _, data in events_for("#sim words=3 fault=garbage@2")]
    assert [isinstance(each, str) for each in data].count(True) == 1
    assert data[-1] == {"type": "message_stop"}


def test_a_continuation_of_a_complete_answer_has_no_blocks() -> None:
    names = [name for name, _ in events_for("#sim words=0")]
    assert names == ["message_start", "ping", "message_delta", "message_stop"]


def test_the_calls_of_two_turns_have_different_ids() -> None:
    """Programs find a call by its id; OpenAI's Agents SDK keeps one of two items with the same id."""
    line = "#sim words=0 tool=look"
    alone = events_for(line)
    later = events_for(line, Message("user", line), Message("assistant", "Seen."))
    assert events_for(line) == alone
    ids = [data["content_block"]["id"] for name, data in alone + later if name == "content_block_start"]
    assert len(set(ids)) == len(ids) == 2


def calls_of(events: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Returns the id and the input of each call."""
    inputs: dict[int, str] = {}
    for name, data in events:
        if name == "content_block_delta":
            inputs[data["index"]] = inputs.get(data["index"], "") + data["delta"]["partial_json"]
    ids = [data["content_block"]["id"] for name, data in events if name == "content_block_start"]
    return list(zip(ids, inputs.values(), strict=True))


def test_parallel_calls_of_one_tool_have_their_own_ids_and_inputs() -> None:
    """A further call has the last input, as each tool needs one."""
    calls = calls_of(events_for('#sim words=0 tool=look,look,look json={"a":1} json={"a":2}'))
    assert [tool_input for _, tool_input in calls] == ['{"a":1}', '{"a":2}', '{"a":2}']
    assert len({id_ for id_, _ in calls}) == 3


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        (ToolChoice("auto"), ["look", "see", "look"]),
        (ToolChoice("auto", disable_parallel_tool_use=True), ["look"]),
        (ToolChoice("none"), []),
        (ToolChoice("any"), ["look"]),
        (ToolChoice("any", disable_parallel_tool_use=True), ["look"]),
        (ToolChoice("tool", "see"), ["see"]),
        (ToolChoice("tool", "other"), ["other"]),
    ],
)
def test_the_tool_choice_decides_how_many_tools_of_the_directive_are_called(
    choice: ToolChoice, called: list[str]
) -> None:
    """As of the real API: a forced tool once, and none with `none`."""
    tools = [Tool(name) for name in ("other", "look", "see")]
    question = Message("user", "#sim words=0 tool=look,see,look")
    request = Request(model="claude-haiku-4-5", max_tokens=100, messages=[question], tool_choice=choice, tools=tools)
    assert [block.tool for block in reply(parse_message(request), 1).part.blocks] == called


def test_the_betas_output_format_requests_json() -> None:
    """CrewAI sends it with the beta `structured-outputs-2025-11-13`."""
    given = {"type": "json_schema", "schema": {"type": "object", "additionalProperties": False}}
    body = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "x"}], "output_format": given}
    request = decode(msgspec.json.encode(body | {"max_tokens": 100}))
    assert [block.content for block in reply(parse_message(request), 1).part.blocks] == ["{}"]
