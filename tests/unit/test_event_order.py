"""What a model's answer may say next, and what breaks it."""

from typing import Any

import msgspec
import pytest

from tailrace.generators.backends.event_order import EventOrder
from tailrace.proto.errors import BackendError

BEGUN: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1"}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "A"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "server_tool_use", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
]
REST: list[dict[str, Any]] = [
    {"type": "content_block_delta", "index": 1, "delta": {"type": "newer_delta", "newer": "x"}},
    {"type": "newer"},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 0


def hear(grammar: EventOrder, *said: dict[str, Any]) -> None:
    for event in said:
        grammar.require(event["type"], msgspec.json.encode(event))


@pytest.mark.rule("R6")
def test_an_answer_as_documented_is_taken() -> None:
    """Blocks one after the other, deltas of their types, and among them what is newer than this version."""
    hear(EventOrder(), *BEGUN, *REST)


@pytest.mark.rule("R7")
def test_an_event_deeper_than_the_decoder_goes_is_a_broken_answer() -> None:
    """One that is newer than this version, too: what writers store, readers can read."""
    grammar = EventOrder()
    hear(grammar, *BEGUN)
    with pytest.raises(BackendError, match="does not fit"):
        grammar.require("newer", b'{"type":"newer","deep":' + b"[" * 100_000)


@pytest.mark.rule("R6")
@pytest.mark.parametrize("text", [b"\\ud800", b"\xff"])
def test_text_that_nobody_can_read_is_taken_like_what_is_newer(text: bytes) -> None:
    """The fold and every dialect pass it over alike, and half a character does not cost the answer."""
    grammar = EventOrder()
    hear(grammar, *BEGUN)
    delta = b'{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"%b"}}' % text
    grammar.require("content_block_delta", delta)


@pytest.mark.rule("R6")
@pytest.mark.parametrize("event", [*BEGUN[1:], *REST])
def test_nothing_comes_before_the_beginning(event: dict[str, Any]) -> None:
    """An answer that does not begin is not whole, whatever it says, and be it only that it is over."""
    with pytest.raises(BackendError, match="does not fit"):
        hear(EventOrder(), event)


@pytest.mark.rule("R6")
@pytest.mark.parametrize(
    "event",
    [
        BEGUN[0],
        {"type": "message_start"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text"}},
        {"type": "content_block_start", "index": 3, "content_block": {"type": "text"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "deep": nested(61)}},
        {"type": "content_block_start", "index": 2},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "into a tool"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "into a closed block"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "into no block"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "thinking_delta", "thinking": "x"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "signature_delta", "signature": "x"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_stop", "index": 7},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10**16}},
        {"type": "newer", "deep": nested(63)},
    ],
)
def test_what_does_not_fit_the_answer_so_far_is_a_broken_answer(event: dict[str, Any]) -> None:
    """A dialect would tell it and the fold would not, or nobody could read it: it is not stored."""
    grammar = EventOrder()
    hear(grammar, *BEGUN)
    with pytest.raises(BackendError, match="does not fit") as broken:
        hear(grammar, event)
    assert broken.value.code == "backend_broken"
