"""Server-sent events as bytes: what is written is what a strict reader takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Frame
from tailrace.gateway.streaming.writer import skip_events
from tests.harness.sse_parser import EventStream


def test_a_frame_has_its_fields_in_one_order_and_ends_with_a_blank_line() -> None:
    """WHATWG HTML 9.2.6: `retry` goes with an event, never alone; a field that is not given is not written."""
    assert sse.encode(sse.frame(b"{}")) == b"data: {}\n\n"
    assert sse.encode(sse.frame(b"{}", seq=7, event=b"ping")) == b"event: ping\ndata: {}\nid: 7\n\n"
    assert sse.encode(sse.frame(b"{}", seq=7), b"proof.") == b"data: {}\nid: proof.7\n\n"
    assert sse.retry(1000) == b"retry: 1000\n"
    assert sse.encode(sse.frame(b"{}", seq=0)) == b"data: {}\nid: 0\n\n"


@pytest.mark.rule("S5")
@pytest.mark.parametrize("event", [b"", b"a b", b"a\nid: 5", b"a\r", b"Ping", b"x" * 65, "ü".encode()])
def test_a_name_that_is_no_name_is_left_out(event: bytes) -> None:
    """It came from a model's stream, and could otherwise write fields of its own."""
    assert sse.encode(sse.frame(b"{}", event=event)) == b"data: {}\n\n"


@given(st.lists(st.tuples(st.from_regex(r"[ -~]{1,20}", fullmatch=True), st.integers(0, 2**63 - 1))), st.data())
def test_any_split_of_the_bytes_gives_the_same_events(sent: list[tuple[str, int]], made: st.DataObject) -> None:
    """Heartbeats anywhere between them change nothing."""
    body = b"".join(sse.encode(sse.frame(text.encode(), seq=seq)) + sse.HEARTBEAT for text, seq in sent)
    cut = made.draw(st.integers(0, len(body)))
    stream = EventStream()
    events = stream.feed(body[:cut]) + stream.feed(body[cut:])
    assert [(event.data, event.id) for event in events] == sent
    assert (stream.rest, stream.comments) == (b"", [b": hb"] * len(sent))


@given(st.lists(st.lists(st.sampled_from([b"a", b"b"]), max_size=3), max_size=4), st.integers(0, 13))
def test_skipping_a_count_of_events_leaves_the_events_after_it(given: list[list[bytes]], seen: int) -> None:
    """A client that counts events resumes after as many, also in the middle of a frame."""
    frames = [Frame(events) for events in (events_of(one) for one in given)]
    rest, missing = skip_events(frames, seen)
    every = [event for frame in frames for event in frame.events]
    assert b"".join(frame.data for frame in rest) == sse.encode(tuple(every[seen:]))
    assert missing == max(0, seen - len(every))


def events_of(lines: list[bytes]) -> sse.Events:
    return tuple(sse.Event(line) for line in lines)
