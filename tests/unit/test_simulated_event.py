"""Serialisation of a reply into Anthropic's events."""

from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude.event import frames
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
