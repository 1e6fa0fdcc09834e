"""A whole message and the events that it becomes: folded, they are the message."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.features.batches.message_events import to_events
from tailrace.generators.backends.block_events import PIECE_CHARS
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import read_event
from tailrace.proto.entries import Attempt, Event, StoredEntry
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import Turn, content, fold
from tailrace.proto.ids import Seq
from tailrace.proto.usage import Usage
from tests.harness.turn_builder import NOON, request

USAGE = {"input_tokens": 7, "output_tokens": 11, "service_tier": "batch", "server_tool_use": {"web_search_requests": 1}}


def message(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": list(blocks)}
    return fields | {"stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE} | more


def fold_events(events: list[msgspec.Raw]) -> Turn:
    """The turn whose log they are."""
    stored = [
        StoredEntry(Seq(1), NOON, request()),
        StoredEntry(Seq(2), NOON, Attempt(prev=Seq(1), attempt=1, generator="g", backend="b", mode="fresh")),
    ]
    for number, event in enumerate(events):
        stored.append(StoredEntry(Seq(number + 3), NOON, Event(prev=Seq(number + 2), attempt=1, event=event)))
    return fold(stored)


BLOCKS: list[dict[str, Any]] = [
    {"type": "text", "text": "Hello"},
    {"type": "text", "text": "x" * (PIECE_CHARS + 1)},
    {"type": "text", "text": ""},
    {"type": "text", "text": "So", "citations": [{"type": "char_location", "cited_text": "a"}, {"type": "new"}]},
    {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
    {"type": "redacted_thinking", "data": "zzz"},
    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": [1, {"b": "c"}]}},
    {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
    {"type": "server_tool_use", "id": "t3", "name": "web_search", "input": {"query": "q"}},
    {"type": "web_search_tool_result", "tool_use_id": "t3", "content": [{"type": "web_search_result", "url": "u"}]},
    {"type": "mcp_tool_use", "id": "t4", "name": "look", "server_name": "s", "input": {"at": 1}},
    {"type": "newer", "thing": 1},
]


@pytest.mark.rule("R67")
@given(st.lists(st.sampled_from(BLOCKS), max_size=5))
@example(BLOCKS)
def test_the_events_of_any_message_follow_the_grammar(blocks: list[dict[str, Any]]) -> None:
    events = to_events(message(*blocks, stop_reason="stop_sequence", stop_sequence="END"))
    order = EventOrder()
    for raw in events:
        event = read_event(bytes(raw))
        assert event is not None
        order.accept(event)
    turn = fold_events(events)
    assert [content(one) for one in turn.blocks] == blocks
    assert all(one.is_closed for one in turn.blocks)
    assert (turn.stop.stop_reason, turn.stop.stop_sequence) == ("stop_sequence", "END")
    assert (turn.usage.input_tokens, turn.usage.output_tokens, turn.is_usage_estimated) == (7, 11, False)
    assert turn.usage_call.service_tier == "batch"
    assert turn.envelope["usage"]["server_tool_use"] == {"web_search_requests": 1}


@pytest.mark.rule("R23")
def test_a_message_without_counts_of_the_cache_has_the_price_of_a_batch() -> None:
    """The counts may be null. The usage is read all the same, and with it the service tier."""
    usage = USAGE | {"cache_creation_input_tokens": None, "cache_read_input_tokens": None}
    turn = fold_events(to_events(message(usage=usage)))
    assert turn.usage == Usage(input_tokens=7, output_tokens=11)
    assert turn.usage_call.service_tier == "batch"


def test_further_fields_of_a_message_are_kept() -> None:
    """In the events in which a stream would have them."""
    answer = message(container={"id": "c"}, context_management={"applied_edits": []}, stop_details={"type": "refusal"})
    envelope = fold_events(to_events(answer)).envelope
    assert envelope["delta"] == {"container": {"id": "c"}, "stop_details": {"type": "refusal"}}
    assert envelope["context_management"] == {"applied_edits": []}


@pytest.mark.rule("R67")
def test_the_same_message_is_the_same_bytes() -> None:
    """So that two who write it do not stand in each other's way."""
    assert to_events(message(*BLOCKS)) == to_events(message(*BLOCKS))


@pytest.mark.parametrize(
    "broken",
    [{}, {"content": []}, message(stop_reason=None), message(usage=None), message({"text": "no type"}), message(7)],  # type: ignore[arg-type]
)
def test_an_incomplete_message_is_a_broken_answer(broken: dict[str, Any]) -> None:
    """It must not become a turn that looks complete."""
    with pytest.raises(BackendError) as error:
        to_events(broken)
    assert error.value.code == "backend_broken"


def test_a_block_begins_empty() -> None:
    """As in a stream: its content comes in deltas."""
    blocks = (BLOCKS[0], BLOCKS[3], BLOCKS[4], BLOCKS[6], BLOCKS[10])
    events = [msgspec.json.decode(event) for event in to_events(message(*blocks))]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts == [
        {"type": "text", "text": ""},
        {"type": "text", "text": "", "citations": []},
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
        {"type": "mcp_tool_use", "id": "t4", "name": "look", "server_name": "s", "input": {}},
    ]
    (head,) = (event["message"] for event in events if event["type"] == "message_start")
    assert (head["content"], head["stop_reason"], head["usage"]) == ([], None, USAGE)
