"""The opaque cursors of lists."""

from base64 import urlsafe_b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.persistence.paging import END_OF_TIME, PageCursor, clamp_limit, decode, encode
from tailrace.proto.errors import Refused


@given(st.integers(0, END_OF_TIME), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_place_that_was_written_is_read_again(at: int, name: str) -> None:
    """A `next` that comes back as it came goes on where the page ended."""
    assert decode(encode(PageCursor(at, name))) == PageCursor(at, name)


@given(st.text())
@example("")
@example(encode(PageCursor(1, "a")) + "=")
@example(urlsafe_b64encode(b"+1.a").decode().rstrip("="))
@example(urlsafe_b64encode("\u0661.a".encode()).decode().rstrip("="))
def test_what_was_not_written_here_is_refused(text: str) -> None:
    """Whatever a client invents is an error that says so, and not a wrong page: one place has one cursor."""
    with pytest.raises(Refused, match="send `next` unchanged"):
        decode(text)


@pytest.mark.parametrize("place", [PageCursor(-1, "a"), PageCursor(END_OF_TIME + 1, "a")])
def test_a_time_that_no_row_has_is_refused(place: PageCursor) -> None:
    """SQLite's integers end at 2^63, and a larger one would end the statement."""
    with pytest.raises(Refused):
        decode(encode(place))


@pytest.mark.parametrize(("asked", "given"), [(-1, 1), (0, 1), (1, 1), (200, 200), (201, 200)])
def test_a_page_has_a_bound(asked: int, given: int) -> None:
    """Nobody can ask for everything at once."""
    assert clamp_limit(asked) == given
