"""Keys of a terminal become lines."""

from tailrace.deploy.cli.typed_lines import TypedLines


def lines_of(*keys: bytes) -> tuple[list[str], str]:
    """Returns the lines, and the line that is not ended."""
    found: list[str] = []
    lines = TypedLines(found.append)
    for some in keys:
        lines.add(some)
    return found, lines.draft


def test_enter_ends_a_line_and_an_empty_line_is_none() -> None:
    assert lines_of(b"Shor", b"ter.\r", b"\n  \n", b"And") == (["Shorter."], "And")


def test_a_character_may_arrive_in_pieces() -> None:
    assert lines_of("kürzer".encode()[:2], "kürzer".encode()[2:], b"\n") == (["kürzer"], "")


def test_keys_erase_and_other_keys_are_left_out() -> None:
    """Backspace, Ctrl-U, an arrow, Ctrl-D and a tab."""
    assert lines_of(b"ab\x7f\x7f\x7fc\n") == (["c"], "")
    assert lines_of(b"abc\x15d\x1b[1;5A\x1bOA\x04\t\n") == (["d"], "")
