"""The order of a model's events: which sequences are accepted, and which break the answer."""

from typing import Any

import msgspec
import pytest

from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import ModelEvent, read_event
from tailrace.proto import events
from tailrace.proto.entries import Event
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import contents
from tests.harness.turn_builder import Handwritten

CALL = {"id": "srvtoolu_1", "name": "look", "input": {}}
BEGUN: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1"}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "A"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "server_tool_use", **CALL}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
]
REST: list[dict[str, Any]] = [
    {"type": "newer"},
    {"type": "newer", "index": "0", "delta": {"tokens": 3}},
    {"type": "newer", "index": None, "delta": ["x"]},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "newer_block", "text": None}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "newer_delta", "newer": "x"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]


def nested_list(levels: int) -> Any:
    return [nested_list(levels - 1)] if levels else 0


def check(order: EventOrder, *answer: dict[str, Any]) -> None:
    for one in answer:
        event = read_event(msgspec.json.encode(one))
        assert event is not None
        order.accept(event)


@pytest.mark.rule("R6")
def test_an_answer_as_documented_is_accepted() -> None:
    """Blocks one after the other, deltas of their types, and events of types that this version does not know."""
    check(EventOrder(), *BEGUN, *REST)


@pytest.mark.rule("R7")
def test_an_event_nested_deeper_than_the_decoder_allows_breaks_the_answer() -> None:
    """Also one of an unknown type: every stored event can be decoded by readers."""
    order = EventOrder()
    check(order, *BEGUN)
    raw = msgspec.Raw(b'{"type":"newer","deep":' + b"[" * 100_000)
    with pytest.raises(BackendError, match="nested too deeply"):
        order.accept(ModelEvent(events.UnknownEvent(), raw, "newer"))


@pytest.mark.rule("R6")
@pytest.mark.parametrize("event", [*BEGUN[1:], *REST])
def test_every_event_before_message_start_breaks_the_answer(event: dict[str, Any]) -> None:
    """Also `message_stop` alone: an answer without a start is not complete."""
    with pytest.raises(BackendError):
        check(EventOrder(), event)


@pytest.mark.rule("R6")
@pytest.mark.parametrize(
    "event",
    [
        BEGUN[0],
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text"}},
        {"type": "content_block_start", "index": 3, "content_block": {"type": "text"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "into a tool"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "into a closed block"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "into no block"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "thinking_delta", "thinking": "x"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "newer_delta"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ],
)
def test_an_event_that_does_not_fit_the_answer_breaks_it(event: dict[str, Any]) -> None:
    """A client protocol would render it and the fold would not, or no reader could decode it: it is not stored."""
    order = EventOrder()
    check(order, *BEGUN)
    with pytest.raises(BackendError, match="does not fit") as broken:
        check(order, event)
    assert broken.value.code == "backend_unreadable"


@pytest.mark.rule("R6")
@pytest.mark.parametrize(
    "event",
    [
        {"type": "message_start"},
        {"type": "content_block_start", "index": 2},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "deep": nested_list(61)}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": None}},
        *(
            {"type": "content_block_start", "index": 2, "content_block": block}
            for block in (
                {"type": "thinking", "thinking": None},
                {"type": "thinking", "signature": []},
                {"type": "redacted_thinking", "data": 7},
                *(
                    {"type": kind, **CALL, **wrong}
                    for kind in ("tool_use", "server_tool_use", "mcp_tool_use")
                    for wrong in ({"id": 7}, {"name": 7}, {"input": "early"})
                ),
            )
        ),
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "name": "look"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", **CALL, "name": ""}},
        {"type": "content_block_start", "index": 2, "content_block": {"text": ""}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "new_tool_result", "tool_use_id": [1]}},
        {"type": "content_block_start", "index": "2", "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": None}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": 7}},
        {"type": "content_block_delta", "index": "1", "delta": {"type": "input_json_delta", "partial_json": ""}},
        {"type": "content_block_delta", "index": "1", "delta": {"type": "newer_delta"}},
        {"type": "content_block_delta", "index": 1, "delta": {"newer": "x"}},
        {"type": "content_block_delta", "index": 1},
        {"type": "content_block_stop"},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10**16}},
        {"type": "newer", "deep": nested_list(63)},
        {"kind": "newer"},
    ],
)
def test_an_event_of_a_known_type_that_cannot_be_read_breaks_the_answer(event: dict[str, Any]) -> None:
    """Without it, text would be missing from an answer that looks complete."""
    order = EventOrder()
    check(order, *BEGUN)
    with pytest.raises(BackendError) as broken:
        check(order, event)
    assert broken.value.code == "backend_unreadable"


@pytest.mark.rule("R6")
@pytest.mark.rule("R7")
@pytest.mark.parametrize("value", [b"[" * 62 + b"]" * 62], ids=["deep"])
@pytest.mark.parametrize(
    ("begun", "event"),
    [
        ([], b'{"type":"message_start","message":{"id":"msg_1","newer":%b}}'),
        (BEGUN[:1], b'{"type":"message_delta","delta":{"newer":%b}}'),
        (BEGUN[:1], b'{"type":"newer","newer":[%b]}'),
    ],
    ids=["message_start", "message_delta", "newer"],
)
def test_a_newer_field_that_readers_cannot_decode_breaks_the_answer(
    begun: list[dict[str, Any]], event: bytes, value: bytes
) -> None:
    """JSON in more levels than readers accept. Numbers out of range are kept (R125)."""
    order = EventOrder()
    check(order, *begun)
    read = read_event(event % value)
    assert read is not None
    with pytest.raises(BackendError) as broken:
        order.accept(read)
    assert broken.value.code == "backend_unreadable"


CONTENT: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "hm", "signature": "sig"},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "text", "text": "Hello"},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"id": 7}, "caller": {"type": "code_execution"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
    {"type": "newer", "newer": None},
]


@pytest.mark.rule("R116")
@pytest.mark.parametrize("content", [[], CONTENT[:1], CONTENT[3:4], CONTENT])
@pytest.mark.parametrize("has_stop", [True, False])
def test_content_of_a_message_start_is_stored_as_blocks(content: list[dict[str, Any]], has_stop: bool) -> None:
    """An answer after a call from code begins with its content, and may end at once (programmatic tool calling)."""
    order = EventOrder()
    stop = {"stop_reason": "tool_use", "stop_sequence": None} if has_stop else {}
    usage = {"input_tokens": 0, "output_tokens": 4}
    message = {"id": "msg_1", "model": "m", "content": content, "usage": usage, **stop}
    rest = [
        {"type": "content_block_start", "index": len(content), "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_stop", "index": len(content)},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 4}},
    ]
    answer = [{"type": "message_start", "message": message}, *([] if has_stop else rest), {"type": "message_stop"}]
    log = Handwritten()
    log.store_request()
    log.store_attempt()
    for one in answer:
        event = read_event(msgspec.json.encode(one))
        assert event is not None
        for stored in order.accept(event):
            log.store(Event(prev=log.chain.last, attempt=1, event=stored.raw))
    turn = log.turn
    blocks = [*content, *([] if has_stop else [{"type": "text", "text": ""}])]
    assert contents(turn.blocks, turn.stop.stop_reason) == blocks
    assert all(block.is_closed for block in turn.blocks)
    assert turn.stop.stop_reason == "tool_use"
    assert (turn.usage.output_tokens, turn.is_usage_estimated) == (4, False)
    first = msgspec.json.decode(log.stored[2].entry.event)  # type: ignore[union-attr]
    assert first["message"]["content"] == []
    assert first["message"].get("stop_reason") is None


@pytest.mark.rule("R116")
@pytest.mark.parametrize("content", [None, "", {}])
def test_a_message_start_without_a_list_of_content_is_stored_with_an_empty_one(content: object) -> None:
    """Relays send null. The SDKs of Anthropic append the first block to the list that the event has."""
    event = read_event(msgspec.json.encode({"type": "message_start", "message": {"id": "msg_1", "content": content}}))
    assert event is not None
    [stored] = EventOrder().accept(event)
    assert msgspec.json.decode(stored.raw)["message"]["content"] == []


@pytest.mark.rule("R116")
def test_the_usage_of_a_message_start_with_a_stop_reason_does_not_replace_a_later_one() -> None:
    order = EventOrder()
    message = {"content": CONTENT[3:4], "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 1}}
    later = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 77}}
    log = Handwritten()
    log.store_request()
    log.store_attempt()
    for one in [{"type": "message_start", "message": message}, later, {"type": "message_stop"}]:
        event = read_event(msgspec.json.encode(one))
        assert event is not None
        for stored in order.accept(event):
            log.store(Event(prev=log.chain.last, attempt=1, event=stored.raw))
    assert log.turn.stop.stop_reason == "tool_use"
    assert (log.turn.usage.input_tokens, log.turn.usage.output_tokens) == (3, 77)


@pytest.mark.rule("R116")
@pytest.mark.parametrize(
    "content",
    [
        "text",
        [7],
        [{"text": "no type"}],
        [{"type": "text", "text": 7}],
        [{"type": "tool_use", **CALL, "input": "{}"}],
    ],
)
def test_unreadable_content_of_a_message_start_breaks_the_answer(content: object) -> None:
    with pytest.raises(BackendError):
        check(EventOrder(), {"type": "message_start", "message": {"id": "msg_1", "content": content}})


@pytest.mark.parametrize("stop_reason", ["max_tokens", "model_context_window_exceeded"])
def test_a_block_that_the_limit_leaves_open_is_closed_before_the_end(stop_reason: str) -> None:
    """As the SDK shows it: its fixture incomplete_partial_json_response.txt has no stop of the call's block."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    answer: list[dict[str, Any]] = [
        *BEGUN[:4],
        {"type": "content_block_start", "index": 1, "content_block": call},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a'}},
        {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    order = EventOrder()
    read = [event for fields in answer if (event := read_event(msgspec.json.encode(fields))) is not None]
    stored = [one for event in read[:-1] for one in order.accept(event)]
    order.accept(read[-1])
    assert [one.kind for one in stored[-2:]] == ["content_block_stop", "message_delta"]
    log = Handwritten()
    log.store_request()
    log.store_attempt()
    for one in stored:
        log.store(Event(prev=log.chain.last, attempt=1, event=one.raw))
    assert contents(log.turn.blocks, stop_reason)[1] == call | {"partial_json": '{"a'}
