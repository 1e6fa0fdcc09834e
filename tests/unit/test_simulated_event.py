"""Serialisation of a reply into Anthropic's events."""

from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude.event import frames, message
from tailrace.deploy.simulated_claude.reply import parse_message, reply
from tailrace.deploy.simulated_claude.request import Message, Request


def events_for(line: str, *, call: int = 1, max_tokens: int = 100) -> list[tuple[str, Any]]:
    request = Request(model="claude-sonnet-5-5", max_tokens=max_tokens, messages=[Message("user", line)])
    sent = b"".join(frame for frame, _ in frames(reply(parse_message(request), call)))
    events = [event.split("\n") for event in sent.decode().removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), decode_loosely(data.removeprefix("data: "))) for name, data in events]


def decode_loosely(data: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return data


def names(line: str) -> list[str]:
    return [name for name, _ in events_for(line)]


def test_a_text_has_the_events_of_the_api_in_order() -> None:
    events = events_for("#sim words=2")
    assert [name for name, _ in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [data["type"] for _, data in events] == [name for name, _ in events]
    assert [data["delta"] for _, data in events[3:5]] == [
        {"type": "text_delta", "text": "w000000"},
        {"type": "text_delta", "text": " w000001"},
    ]
    assert (events[6][1]["delta"]["stop_reason"], events[6][1]["usage"]["output_tokens"]) == ("end_turn", 2)


def test_blocks_are_numbered_and_have_their_deltas() -> None:
    """Thinking ends with its signature; the pieces of a tool's input are JSON when joined."""
    events = [data for _, data in events_for('#sim words=1 thinking=2 tool=look json={"where": "under the bridge"}')]
    starts = [data["content_block"]["type"] for data in events if data["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use"]
    deltas = [(data["index"], data["delta"]) for data in events if data["type"] == "content_block_delta"]
    assert [delta["type"] for index, delta in deltas if index == 0] == ["thinking_delta"] * 2 + ["signature_delta"]
    pieces = [delta["partial_json"] for index, delta in deltas if index == 2]
    assert len(pieces) > 3
    assert msgspec.json.decode("".join(pieces)) == {"where": "under the bridge"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        ("cut", "content_block_delta"),
        ("stall", "content_block_delta"),
        ("eof", "content_block_delta"),
        ("error", "error"),
        ("529", "error"),
        ("429", "error"),
        ("500", "error"),
    ],
)
def test_a_fault_ends_the_events_right_after_its_delta(fault: str, last: str) -> None:
    """`KIND@N`: exactly N deltas are sent."""
    events = names(f"#sim words=9 fault={fault}@2")
    assert (events.count("content_block_delta"), events[-1]) == (2, last)


@pytest.mark.parametrize(
    ("fault", "type_"),
    [("error", "overloaded_error"), ("529", "overloaded_error"), ("429", "rate_limit_error"), ("500", "api_error")],
)
def test_an_error_in_the_stream_has_the_type_of_its_status(fault: str, type_: str) -> None:
    """The stream's status is 200 already."""
    assert events_for(f"#sim words=9 fault={fault}@2")[-1][1]["error"]["type"] == type_


def test_garbage_is_one_line_that_is_not_json_and_the_rest_follows() -> None:
    """A client that skips it would not notice the fault."""
    data = [data for _, data in events_for("#sim words=3 fault=garbage@2")]
    assert [isinstance(each, str) for each in data].count(True) == 1
    assert data[-1] == {"type": "message_stop"}


def test_a_continuation_of_a_complete_answer_has_no_blocks() -> None:
    assert names("#sim words=0") == ["message_start", "ping", "message_delta", "message_stop"]


def test_a_message_is_equal_to_its_stream() -> None:
    request = Request(model="claude-sonnet-5-5", max_tokens=5, messages=[Message("user", "#sim words=9 thinking=2")])
    whole = msgspec.json.decode(message(reply(parse_message(request), 1)))
    assert [block.get("text") or block["thinking"] for block in whole["content"]] == [
        "t000000 t000001",
        "w000000 w000001 w000002",
    ]
    assert (whole["stop_reason"], whole["usage"]["output_tokens"]) == ("max_tokens", 5)
