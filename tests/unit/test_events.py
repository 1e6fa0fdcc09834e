"""Decoding of Anthropic's events; unknown events and fields are passed on."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto import events
from tailrace.proto.events import (
    BlockDelta,
    Event,
    InputJsonDelta,
    StopReason,
    TextDelta,
    ThinkingDelta,
    UnknownEvent,
    UsageSoFar,
    decode,
    encode,
    envelope,
    join_deltas,
)
from tailrace.proto.usage import CallUsage, Usage
from tests.harness.strategies import COUNTS, TEXTS, USAGES, anthropic_events

# From Anthropic's docs, "Streaming Messages", and "Extended thinking"; shortened.
DOCUMENTED: dict[str, tuple[bytes, events.Event | UnknownEvent]] = {
    "message_start": (
        (
            b'{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],'
            b'"model":"claude-x","stop_reason":null,"usage":{"input_tokens":25,"output_tokens":1}}}'
        ),
        events.MessageStart(events.MessageHead("msg_1", "claude-x", CallUsage(25, 1))),
    ),
    "message_start without counts of the cache": (
        (
            b'{"type":"message_start","message":{"id":"msg_1","model":"claude-x","usage":{"input_tokens":25,'
            b'"cache_creation_input_tokens":null,"cache_read_input_tokens":null,"output_tokens":1,"cache_creation":null,'
            b'"service_tier":"batch"}}}'
        ),
        events.MessageStart(events.MessageHead("msg_1", "claude-x", CallUsage(25, 1, service_tier="batch"))),
    ),
    "content_block_start": (
        b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
        events.BlockStart(0, {"type": "text", "text": ""}),
    ),
    "text_delta": (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}',
        BlockDelta(0, TextDelta("Hello")),
    ),
    "input_json_delta": (
        b'{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\\"a\\": 1"}}',
        BlockDelta(1, events.InputJsonDelta('{"a": 1')),
    ),
    "thinking_delta": (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"27 * 453"}}',
        BlockDelta(0, events.ThinkingDelta("27 * 453")),
    ),
    "signature_delta": (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQB"}}',
        BlockDelta(0, events.SignatureDelta("EqQB")),
    ),
    "content_block_stop": (b'{"type":"content_block_stop","index":0}', events.BlockStop(0)),
    "message_delta": (
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}',
        events.MessageDelta(StopReason("end_turn"), UsageSoFar(output_tokens=15)),
    ),
    "a newer event": (b'{"type":"message_sung","message":{}}', UnknownEvent()),
    "a newer delta": (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"song_delta","note":"c"}}',
        events.OtherDelta(0, {"type": "song_delta", "note": "c"}),
    ),
    "no event at all": (b'"\xff"', UnknownEvent()),
    "text that is no UTF-8": (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\xff"}}',
        UnknownEvent(),
    ),
    "a lone surrogate": (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\\ud800"}}',
        UnknownEvent(),
    ),
    "a count that no call can reach": (
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":10000000000000000}}',
        UnknownEvent(),
    ),
    "a count that is a string": (
        b'{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":"1"}}}',
        UnknownEvent(),
    ),
    "a count below nothing": (
        b'{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":-1}}}',
        UnknownEvent(),
    ),
    "a block of more than 64 levels": (
        b'{"type":"content_block_start","index":0,"content_block":{"a":' + b"[" * 61 + b"]" * 61 + b"}}",
        UnknownEvent(),
    ),
    "a citation of more than 64 levels in its `end`": (
        b'{"type":"content_block_delta","index":0,"delta":{"type":"citations_delta","citation":{"a":'
        + b"[" * 60
        + b"]" * 60
        + b"}}}",
        UnknownEvent(),
    ),
    "far too deep": (b'{"type":"content_block_start","index":0,"content_block":' + b"[" * 100_000, UnknownEvent()),
}


@pytest.mark.rule("R7")
@pytest.mark.rule("R6")
@pytest.mark.parametrize("name", DOCUMENTED)
def test_an_event_is_read_as_anthropic_documents_it(name: str) -> None:
    """Known events become shapes; what is newer, or cannot be read, is Other and breaks nothing."""
    payload, event = DOCUMENTED[name]
    assert decode(payload) == event


@pytest.mark.rule("R6")
@given(anthropic_events())
def test_an_encoded_event_is_decoded_to_the_same(event: events.Event) -> None:
    assert decode(encode(event)) == event


@pytest.mark.parametrize("newer", [b"1e999", b'"\xff"', b"1" * 5000, b"[" * 100_000])
def test_undecodable_extra_fields_of_a_message_are_left_out(newer: bytes) -> None:
    """Otherwise no process could fold the turn."""
    for event in (
        b'{"type":"message_start","message":{"id":"msg_1","newer":%b}}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn","newer":%b},"usage":{}}',
    ):
        assert envelope(event % newer) == {}


@pytest.mark.rule("R7")
@given(st.binary(max_size=80))
def test_any_bytes_are_an_event_or_other(payload: bytes) -> None:
    """decode never raises: what a model's server sends is not ours to trust."""
    assert isinstance(decode(payload), msgspec.Struct)


@pytest.mark.rule("R9")
@given(anthropic_events(), anthropic_events(), st.sampled_from([TextDelta, ThinkingDelta, InputJsonDelta]), TEXTS)
def test_only_deltas_of_one_kind_in_one_block_are_joined(
    first: Event, second: Event, kind: type[TextDelta | ThinkingDelta | InputJsonDelta], text: str
) -> None:
    """Different kinds, signatures, citations and everything that is no delta stay as they came."""
    for one, other in ((first, second), (BlockDelta(1, kind("a")), BlockDelta(1, kind(text)))):
        joined = None
        match one, other:
            case BlockDelta(i, TextDelta(a)), BlockDelta(j, TextDelta(b)) if i == j:
                joined = BlockDelta(i, TextDelta(a + b))
            case BlockDelta(i, ThinkingDelta(a)), BlockDelta(j, ThinkingDelta(b)) if i == j:
                joined = BlockDelta(i, ThinkingDelta(a + b))
            case BlockDelta(i, InputJsonDelta(a)), BlockDelta(j, InputJsonDelta(b)) if i == j:
                joined = BlockDelta(i, InputJsonDelta(a + b))
        assert join_deltas(one, other) == joined


@pytest.mark.rule("R9")
@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (b"", b"", b""),
        (b"", b',"estimated_tokens":null', b',"estimated_tokens":null'),
        (b',"estimated_tokens":null', b',"estimated_tokens":50', b',"estimated_tokens":50'),
        (b',"estimated_tokens":50', b',"estimated_tokens":100', b',"estimated_tokens":150'),
        (b',"estimated_tokens":50', b',"estimated_tokens":"many"', None),
    ],
)
def test_estimates_of_hidden_thinking_add_up(first: bytes, second: bytes, joined: bytes | None) -> None:
    """Anthropic's clients add the increments of a block up for a progress indicator."""
    template = b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":""%b}}'
    made = join_deltas(decode(template % first), decode(template % second))
    assert (None if made is None else bytes(encode(made))) == (None if joined is None else template % joined)


@pytest.mark.rule("R23")
@given(USAGES, st.tuples(*[st.none() | COUNTS] * 4))
def test_a_count_that_is_not_named_has_not_changed(before: CallUsage, counts: tuple[int | None, ...]) -> None:
    """message_delta's usage is cumulative for its call, field by field."""
    after = UsageSoFar(*counts).merge_into(before)
    for name, count in zip(Usage.__struct_fields__, counts, strict=True):
        assert getattr(after, name) == (getattr(before, name) if count is None else count)


@pytest.mark.rule("R23")
def test_usages_add_up_field_by_field() -> None:
    assert Usage(1, 2, 3, 4) + Usage(10, 20, 30, 40) == Usage(11, 22, 33, 44)
