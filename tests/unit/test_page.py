"""The opaque cursors of lists."""

from base64 import urlsafe_b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.persistence.paging import END_OF_TIME, PageCursor, clamp_limit, decode, encode
from tailrace.proto.errors import Refused


@given(st.integers(0, END_OF_TIME), st.text(st.characters(exclude_categories=["Cs"])))
def test_cursor_round_trip(at: int, name: str) -> None:
    """A `next` that is sent back continues after the page."""
    assert decode(encode(PageCursor(at, name))) == PageCursor(at, name)


@given(st.text())
@example("")
@example(encode(PageCursor(1, "a")) + "=")
@example(urlsafe_b64encode(b"+1.a").decode().rstrip("="))
@example(urlsafe_b64encode("\u0661.a".encode()).decode().rstrip("="))
def test_invented_cursor_is_refused(text: str) -> None:
    """It is an error and not a wrong page; each position has exactly one cursor."""
    with pytest.raises(Refused, match="send `next` unchanged"):
        decode(text)


@pytest.mark.parametrize("place", [PageCursor(-1, "a"), PageCursor(END_OF_TIME + 1, "a")])
def test_cursor_with_an_impossible_time_is_refused(place: PageCursor) -> None:
    """SQLite's integers end at 2^63; a larger one would make the statement fail."""
    with pytest.raises(Refused):
        decode(encode(place))


@pytest.mark.parametrize(("asked", "given"), [(-1, 1), (0, 1), (1, 1), (200, 200), (201, 200)])
def test_page_size_is_limited(asked: int, given: int) -> None:
    """A client cannot request everything at once."""
    assert clamp_limit(asked) == given
