"""The delta buffer: waiting deltas are joined without changing the fold, and keep their order."""

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backends.model_event import ModelEvent, from_event
from tailrace.generators.delta_buffer import JOINED_BYTES_MAX, DeltaBuffer
from tailrace.proto import events
from tailrace.proto.chain import Chain
from tailrace.proto.events import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    InputJsonDelta,
    MessageHead,
    MessageStart,
    TextDelta,
    ThinkingDelta,
)
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq
from tests.harness.strategies import anthropic_events
from tests.harness.turn_builder import attempted_turn, raw


def text(piece: str, index: int = 0) -> BlockDelta:
    return BlockDelta(index, TextDelta(piece))


def drain(buffer: DeltaBuffer) -> list[ModelEvent]:
    """Takes everything."""
    left = []
    while buffer.waiting:
        left.append(buffer.take()[0])
    return left


def pass_through(*what: Event) -> list[Event | events.UnknownEvent]:
    """Returns the entries of the buffer after all of `what` had to wait."""
    buffer = DeltaBuffer()
    for one in what:
        buffer.put(from_event(one), 0.0)
    return [events.decode(event.raw) for event in drain(buffer)]


def test_the_first_delta_of_a_block_is_not_joined() -> None:
    """So a short answer that the model sends at once has a position between its beginning and its end."""
    start = BlockStart(0, {"type": "text", "text": ""})
    assert pass_through(start, text("The"), text(" sky"), text(" is")) == [start, text("The"), text(" sky is")]
    later = BlockStart(1, {"type": "text", "text": ""})
    assert pass_through(text("a"), later, text("b", 1), text("c", 1)) == [text("a"), later, text("b", 1), text("c", 1)]


def test_waiting_deltas_of_one_block_are_joined() -> None:
    """A slow log gets fewer and larger entries."""
    assert pass_through(text("The"), text(" sky"), text(" is")) == [text("The sky is")]
    thoughts = [BlockDelta(0, ThinkingDelta(piece)) for piece in ("hm", "m")]
    assert pass_through(*thoughts) == [BlockDelta(0, ThinkingDelta("hmm"))]
    inputs = [BlockDelta(1, InputJsonDelta(piece)) for piece in ('{"a"', ":1}")]
    assert pass_through(*inputs) == [BlockDelta(1, InputJsonDelta('{"a":1}'))]


def test_other_events_are_not_joined() -> None:
    """Deltas of another block or another kind, and deltas with another event between them, stay separate."""
    apart: list[Event] = [
        text("a"),
        text("b", index=1),
        BlockDelta(1, ThinkingDelta("c")),
        BlockDelta(1, events.SignatureDelta("d")),
        BlockDelta(1, events.SignatureDelta("e")),
        BlockStop(1),
        BlockStart(2, {"type": "text"}),
        text("f", index=2),
    ]
    assert pass_through(*apart) == apart


def test_an_event_that_was_not_joined_keeps_its_bytes() -> None:
    """The log holds what the model sent, including fields that this version does not know."""
    buffer = DeltaBuffer()
    for what in ({"type": "newer", "b": 1, "a": 2}, {"type": "content_block_stop", "index": 0, "more": "x"}):
        event = ModelEvent(events.decode(raw(what)), raw(what), is_hidden=True)
        buffer.put(event, 1.0)
        assert buffer.take() == (event, 1.0)


@pytest.mark.rule("R9")
@pytest.mark.parametrize("place", ["delta", "event"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_delta_with_a_field_of_a_newer_version_is_not_joined(place: str, position: int) -> None:
    """A joined delta has the fields of this version only."""
    sent: list[dict[str, Any]] = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": piece}}
        for piece in "abc"
    ]
    target = sent[position]["delta"] if place == "delta" else sent[position]
    target["newer"] = {"x": 1}
    buffer = DeltaBuffer()
    for one in sent:
        buffer.put(ModelEvent(events.decode(raw(one)), raw(one)), 0.0)
    stored = [json.loads(bytes(event.raw)) for event in drain(buffer)]
    assert sent[position] in stored
    assert "".join(one["delta"]["thinking"] for one in stored) == "abc"


def test_joined_deltas_stay_below_the_limit() -> None:
    """An entry must fit in a message and in a slow reader's buffer."""
    pieces = [f"{number:06d}" for number in range(6000)]
    joined = pass_through(*map(text, pieces))
    deltas = [
        event.delta.text for event in joined if isinstance(event, BlockDelta) and isinstance(event.delta, TextDelta)
    ]
    assert "".join(deltas) == "".join(pieces)
    assert max(map(len, deltas)) < JOINED_BYTES_MAX
    assert len(joined) < len(pieces) / 100


def test_a_delta_above_the_limit_is_not_split() -> None:
    large = text("x" * 2 * JOINED_BYTES_MAX)
    assert pass_through(text("a"), large, text("b")) == [text("a"), large, text("b")]


def test_joined_deltas_have_the_time_of_the_first_one() -> None:
    buffer = DeltaBuffer()
    for now, piece in enumerate("abc"):
        buffer.put(from_event(text(piece)), float(now))
        assert buffer.is_one_delta
    assert buffer.take()[1] == 0.0


@pytest.mark.rule("R9")
@given(st.lists(st.tuples(anthropic_events(), st.booleans()), max_size=30))
def test_joining_does_not_change_the_fold(put: list[tuple[Event, bool]]) -> None:
    """However many events are taken between the puts."""
    buffer, out = DeltaBuffer(), list[ModelEvent]()
    for event, is_taken in put:
        buffer.put(from_event(event), 0.0)
        if is_taken:
            out.append(buffer.take()[0])
    out += drain(buffer)
    stored = [events.decode(event.raw) for event in out]
    known = [event for event in stored if not isinstance(event, events.UnknownEvent)]
    assert fold_of(known) == fold_of([event for event, _ in put])


def fold_of(answer: list[Event]) -> Turn:
    log = attempted_turn(*answer)
    # Joining may change the number and times of the entries.
    return msgspec.structs.replace(log.turn, chain=Chain(), tail=Seq(0), last_entry_at=None, worked=timedelta(0))


OPENING: list[Event] = [MessageStart(MessageHead("msg_1")), BlockStart(0, {"type": "text"})]
