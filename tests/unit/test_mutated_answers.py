"""Mutated recordings of answers: the result is the whole answer, or an error, and never an answer with less."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import read_event
from tailrace.generators.backends.sse_decoder import SseDecoder
from tailrace.proto.entries import Block, Event
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import fold
from tests.harness.displayed_text import SAYS
from tests.harness.json_values import places
from tests.harness.readers import render_frames
from tests.harness.turn_builder import KEY, Handwritten, attempt

USAGE = {"input_tokens": 25, "output_tokens": 1}
HEAD = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "usage": USAGE}
CITATION = {"type": "char_location", "cited_text": "blue", "document_index": 0, "start_char_index": 1}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
BLOCKS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (
        {"type": "thinking", "thinking": "", "signature": ""},
        [{"type": "thinking_delta", "thinking": "Hm"}, {"type": "signature_delta", "signature": "EqQB"}],
    ),
    (
        {"type": "text", "text": ""},
        [
            {"type": "text_delta", "text": "The sky "},
            {"type": "text_delta", "text": "is blau — größtenteils"},
            {"type": "citations_delta", "citation": CITATION},
        ],
    ),
    (TOOL, [{"type": "input_json_delta", "partial_json": part} for part in ('{"where"', ': "up"}')]),
]


def recorded_answers() -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": HEAD}
    for index, (block, deltas) in enumerate(BLOCKS):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "ping"}
        yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 15},
    }
    yield {"type": "message_stop"}


RECORDED = [json.dumps(event, ensure_ascii=False).encode() for event in recorded_answers()]


def answer(stream: list[bytes]) -> tuple[Block, ...]:
    """Returns the blocks that the product stores of a stream of these events. Raises BackendError."""
    decoder, order, log = SseDecoder(), EventOrder(), Handwritten()
    log.store_request()
    log.store(attempt(log.chain))
    for data in decoder.decode(b"".join(b"data: " + data + b"\n\n" for data in stream)):
        event = read_event(data)
        if event is None:
            continue
        order.accept(event)
        if event.kind == "message_stop":
            turn = fold(log.stored)
            assert turn.stop.stop_reason is not None
            for name, says in SAYS.items():
                # Readers of all dialects get the same text, in valid UTF-8.
                sent = b"".join(frame.sent for frame in render_frames(KEY, log.stored, name))
                assert says(sent) == turn.text, (name, sent.decode())
            return turn.blocks
        raw = bytes(event.raw)
        log.store(Event(prev=log.chain.last, attempt=1, event=msgspec.Raw(raw)))
    raise BackendError("backend_broken", "the answer ended before it was complete")


WHOLE = answer(RECORDED)
# What carries the answer: a change of these values to others of their type cannot be noticed.
WRONG: list[Any] = [None, 7, 1.5, True, [], ["x"], {}, {"x": 1}, -1, 10**30]


@st.composite
def mutated_answers(draw: st.DrawFn) -> list[bytes]:
    """A recording in which one value of one event is missing or of another type."""
    number = draw(st.integers(0, len(RECORDED) - 1))
    event = json.loads(RECORDED[number])
    inner, key = draw(st.sampled_from(list(places(event))))
    old = inner[key]
    if draw(st.booleans()):
        del inner[key]
    else:
        wrong = [value for value in [*WRONG, "0", "x"] if type(value) is not type(old)]
        inner[key] = draw(st.sampled_from(wrong))
    return [*RECORDED[:number], json.dumps(event).encode(), *RECORDED[number + 1 :]]


def texts(blocks: tuple[Block, ...]) -> list[tuple[str, str, str, tuple[Any, ...]]]:
    return [(block.type, block.text, block.signature, block.citations) for block in blocks]


@pytest.mark.rule("R6")
@given(mutated_answers())
def test_a_value_that_is_missing_or_of_another_type_never_shortens_an_answer(stream: list[bytes]) -> None:
    """It breaks the answer, or has no part in it. The content of a citation is the client's to read."""
    try:
        blocks = answer(stream)
    except BackendError:
        return
    found = [(kind, text, signature, len(citations)) for kind, text, signature, citations in texts(blocks)]
    assert found == [(kind, text, signature, len(citations)) for kind, text, signature, citations in texts(WHOLE)]


@pytest.mark.rule("R6")
@given(st.data())
def test_a_changed_byte_never_shortens_an_answer_or_is_stored_as_invalid_utf8(data: st.DataObject) -> None:
    """Bytes that UTF-8 does not have, NUL, and half a character, anywhere; an event that ends early.

    Half of a surrogate pair in place of a character of a text is stored as U+FFFD (R125).
    """
    number = data.draw(st.integers(0, len(RECORDED) - 1))
    raw = RECORDED[number]
    position = data.draw(st.integers(0, len(raw) - 1))
    wrong = data.draw(st.sampled_from([b"\xff", b"\xc3", b"\x80", b"\xed\xa0\x80", b"\x00", b"\\ud800", None]))
    # In place of another continuation byte, 0x80 makes another letter, which cannot be detected.
    assume(not (wrong == b"\x80" and 0x80 <= raw[position] < 0xC0))
    # After a backslash, it is an escaped backslash and other letters.
    assume(not (wrong == b"\\ud800" and raw[position - 1 : position] == b"\\"))
    broken = raw[:position] if wrong is None else raw[:position] + wrong + raw[position + 1 :]
    try:
        blocks = answer([*RECORDED[:number], broken, *RECORDED[number + 1 :]])
    except BackendError:
        return
    # An event without any data is none, and so is a ping.
    is_left_out = number < len(RECORDED) and not broken
    expected, found = [block.text for block in WHOLE], [block.text for block in blocks]
    if wrong == b"\\ud800":
        assert list(map(len, found)) == list(map(len, expected))
        assert sum(text.count("\ufffd") for text in found) <= 1
    else:
        assert is_left_out or found == expected
