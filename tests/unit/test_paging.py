"""Cursors of lists."""

from base64 import urlsafe_b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.persistence.paging import END_OF_TIME, PageCursor, clamp_limit, decode, encode
from tailrace.proto.errors import Refused


@given(st.integers(0, END_OF_TIME), st.text(st.characters(exclude_categories=["Cs"])))
def test_an_encoded_cursor_is_decoded_to_the_same(at: int, name: str) -> None:
    """The next page continues where the last one ended."""
    assert decode(encode(PageCursor(at, name))) == PageCursor(at, name)


@given(st.text())
@example("")
@example(encode(PageCursor(1, "a")) + "=")
@example(urlsafe_b64encode(b"+1.a").decode().rstrip("="))
@example(urlsafe_b64encode("\u0661.a".encode()).decode().rstrip("="))
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    """Each cursor has exactly one encoding; anything else is an error and not a wrong page."""
    with pytest.raises(Refused, match="send `next` unchanged"):
        decode(text)


@pytest.mark.parametrize("place", [PageCursor(-1, "a"), PageCursor(END_OF_TIME + 1, "a")])
def test_a_time_outside_of_sqlites_integers_is_refused(place: PageCursor) -> None:
    """A larger integer would be an error of the statement."""
    with pytest.raises(Refused):
        decode(encode(place))


@pytest.mark.parametrize(("requested", "limit"), [(-1, 1), (0, 1), (1, 1), (200, 200), (201, 200)])
def test_the_limit_of_a_page_is_clamped(requested: int, limit: int) -> None:
    assert clamp_limit(requested) == limit
