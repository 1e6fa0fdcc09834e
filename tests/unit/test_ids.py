"""Ids and cursors: what the server makes, and what it takes back."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.errors import CursorUnknown
from tailrace.proto.ids import SEQ_MAX, folder_name, is_session_name, is_token, new_id, parse_cursor

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.mark.rule("R4")
def test_a_turn_id_is_a_uuid7_and_a_token() -> None:
    """Version 7, the RFC's variant, and fit to be a part of a subject."""
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(UUID7.fullmatch(one) and is_token(one) for one in made)


@pytest.mark.rule("R4")
def test_turn_ids_sort_by_time() -> None:
    """The first 48 bits are the milliseconds since 1970, so that ids sort as they were made."""
    before_ms = time.time_ns() // 1_000_000
    made_ms = int(new_id().replace("-", "")[:12], 16)
    assert before_ms <= made_ms <= time.time_ns() // 1_000_000


@given(st.text("ABCXYZabcxyz019._:-", min_size=1, max_size=128).filter(lambda text: text not in (".", "..")))
def test_a_client_may_name_its_session_so(text: str) -> None:
    """UUIDs, nanoids, `user:42.main`: ASCII letters and digits and four signs, 1 to 128 of them."""
    assert is_session_name(text)


@pytest.mark.parametrize(
    "text", ["", "x" * 129, "a b", "a/b", "a\n", "\0", "ä", "٣", "a*", ">", "%2F", "\u2028", ".", ".."]
)
def test_an_invalid_session_name_is_refused(text: str) -> None:
    """A name appears in paths and log lines and must not change their meaning."""
    assert not is_session_name(text)


@pytest.mark.rule("R3")
def test_a_token_is_lower_case_ascii() -> None:
    """Letters, digits, `-` and `_`, 1 to 64 of them. All else could change the meaning of a subject."""
    assert all(map(is_token, ["a", "a-b_c", "0", "x" * 64]))
    refused = ["", "*", ">", "a.b", "A", "a b", "ä", "x" * 65, "a\n", "\na", "a\0", "$JS", "٣"]
    assert [text for text in refused if is_token(text)] == []


@pytest.mark.parametrize("name", ["..", "../../other", "/etc", "a/b", "Ünï", "x" * 300, ".", "a\x00b"])
def test_any_name_has_a_folder_name_of_its_own(name: str) -> None:
    """A file system accepts it, and it leads to no other folder."""
    assert re.fullmatch("=[0-9a-f]{40}", folder_name(name))
    assert folder_name(name) != folder_name(f"{name}x") != f"{name}x"
    assert folder_name("shop") == "shop"


@pytest.mark.rule("R15")
@pytest.mark.parametrize(
    ("text", "seq"),
    [
        *[("0", 0), ("1", 1), ("007", 7), (str(SEQ_MAX), SEQ_MAX)],
        *dict.fromkeys(["", "-1", "+1", "1_0", " 1", "1 ", "1\n", "1.0", "1e3", "٣", "0x1", "null"]).items(),
        *dict.fromkeys([str(SEQ_MAX + 1), "9" * 20]).items(),
    ],
)
def test_a_cursor_is_a_plain_number_that_the_stream_could_have_made(text: str, seq: int | None) -> None:
    """`int()` takes signs, underscores, spaces and Arabic digits; a cursor does not. 0 stands before the first."""
    if seq is not None:
        assert parse_cursor(text) == seq
        return
    with pytest.raises(CursorUnknown):
        parse_cursor(text)


@pytest.mark.rule("R15")
@given(st.text())
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    """No other exception is raised, and an accepted cursor is the number that it looks like."""
    try:
        seq = parse_cursor(text)
    except CursorUnknown:
        return
    assert 0 <= seq <= SEQ_MAX
    assert text.lstrip("0") in (str(seq), "")
