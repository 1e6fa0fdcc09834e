"""Serialisation of a reply into Anthropic's events."""

from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude.event import frames
from tailrace.deploy.simulated_claude.reply import parse_message, reply
from tailrace.deploy.simulated_claude.request import Message, Request


def events_for(line: str) -> list[tuple[str, Any]]:
    request = Request(model="claude-sonnet-5-5", max_tokens=100, messages=[Message("user", line)])
    sent = b"".join(frame for frame, _ in frames(reply(parse_message(request), 1)))
    events = [event.split("\n") for event in sent.decode().removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), decode_loosely(data.removeprefix("data: "))) for name, data in events]


def decode_loosely(data: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return data


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        *dict.fromkeys(("cut", "stall", "eof")).items(),
        *dict.fromkeys(("error", "529"), "overloaded_error").items(),
        ("429", "rate_limit_error"),
        ("500", "api_error"),
    ],
)
def test_a_fault_ends_the_events_right_after_its_delta(fault: str, error: str | None) -> None:
    """`KIND@N`: exactly N deltas are sent. The stream's status is 200 already: an error is its last event."""
    events = events_for(f"#sim words=9 fault={fault}@2")
    assert [name for name, _ in events].count("content_block_delta") == 2
    name, data = events[-1]
    assert (name, data.get("error", {}).get("type")) == ("error" if error else "content_block_delta", error)


def test_garbage_is_one_line_that_is_not_json_and_the_rest_follows() -> None:
    """A client that skips it would not notice the fault."""
    data = [data for _, data in events_for("#sim words=3 fault=garbage@2")]
    assert [isinstance(each, str) for each in data].count(True) == 1
    assert data[-1] == {"type": "message_stop"}


def test_a_continuation_of_a_complete_answer_has_no_blocks() -> None:
    names = [name for name, _ in events_for("#sim words=0")]
    assert names == ["message_start", "ping", "message_delta", "message_stop"]
