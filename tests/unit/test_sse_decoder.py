"""The SSE decoder: the same events for any split of the bytes and any line end."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backends.sse_decoder import BOM, EVENT_BYTES_MAX, SseDecoder
from tailrace.proto.errors import CODES, BackendError


def split(stream: bytes) -> list[bytes]:
    return SseDecoder().decode(stream)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"event: ping\ndata: {}\n\n", [b"{}"]),
        (b"data:{}\n\n", [b"{}"]),
        (b"data:  {}\n\n", [b" {}"]),
        (b"data:\n\n", [b""]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\ndata:\ndata: c\n\ndata: d\n\n", [b"a\n\nc", b"d"]),
        (b"data\n\n", []),
        (b": hello\n\ndata: a\n: hello\n\n", [b"a"]),
        (b"id: 7\nretry: 5\n\n", []),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: \xef\xbb\xbf\n\n", [b"\xef\xbb\xbf"]),
        ("data: \u2028\x0b\x0c\x1c\u0085\n\n".encode(), ["\u2028\x0b\x0c\x1c\u0085".encode()]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"", []),
    ],
)
def test_a_stream_is_decoded_as_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    """WHATWG, "Parsing an event stream": comments, several data lines, a byte order mark, an end that is missing."""
    assert split(stream) == events
    decoder = SseDecoder()
    assert [event for byte in stream for event in decoder.decode(bytes([byte]))] == events


LINE = st.sampled_from([b"data: a", b"data:\xc3\xa9", b"data", b": hb", b"event: e", b"", b""])
LINE_END = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINE, LINE_END), max_size=12), st.sampled_from([b"", BOM]), st.data())
def test_chunks_and_line_ends_do_not_matter(lines: list[tuple[bytes, bytes]], bom: bytes, data: st.DataObject) -> None:
    """A chunk may end anywhere, inside a CRLF or a character, and may be empty."""
    stream = bom + b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = SseDecoder()
    events: list[bytes] = []
    for start, end in pairwise([0, *cuts, len(stream)]):
        events += decoder.decode(stream[start:end])
    assert events == split(stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))


@pytest.mark.parametrize("filler", [b"x" * 65_536, b"data: " + b"x" * 65_536 + b"\n"])
def test_an_event_above_the_limit_is_refused(filler: bytes) -> None:
    """A stream that never ends its line or its event must not fill the memory."""
    decoder = SseDecoder()
    for _ in range(EVENT_BYTES_MAX // len(filler) - 1):
        decoder.decode(filler)
    with pytest.raises(BackendError) as refused:
        decoder.decode(filler * 2)
    assert refused.value.code == "backend_event_too_large"
    assert not CODES[refused.value.code].is_retryable


def test_a_large_event_takes_linear_time() -> None:
    """8 MB in packets of 1,400 bytes. Joining the line again at each packet takes half a minute of CPU."""
    event = b"x" * 8 * 2**20
    stream, decoder, began = b"data: " + event + b"\n\n", SseDecoder(), time.process_time()
    found = [one for start in range(0, len(stream), 1400) for one in decoder.decode(stream[start : start + 1400])]
    assert found == [event]
    assert time.process_time() - began < 5
