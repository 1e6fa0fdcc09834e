"""What the person at the terminal sees of the processes' lines."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.deploy.local.console import LINE_BYTES_MAX, Console, is_coloured, split


@pytest.mark.parametrize(
    ("text", "lines", "rest"),
    [
        (b"", [], b""),
        (b"one\ntwo\n", ["one", "two"], b""),
        (b"one\ntw", ["one"], b"tw"),
        (b"\n \n\r\none\r\n", ["one"], b""),
        (b"\xff\n", ["\ufffd"], b""),
    ],
)
def test_text_is_split_into_its_whole_lines_and_a_rest(text: bytes, lines: list[str], rest: bytes) -> None:
    """A line is printed when it is whole, without its end; empty ones are left out."""
    assert split(text) == (lines, rest)


def test_a_line_that_does_not_end_is_printed_as_it_is() -> None:
    """A process that never ends its line must not fill the supervisor's memory."""
    assert split(b"x" * (LINE_BYTES_MAX + 1)) == (["x" * (LINE_BYTES_MAX + 1)], b"")


@given(st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"") + b"\n")), st.integers(1, 7))
def test_it_does_not_matter_in_which_pieces_lines_arrive(lines: list[bytes], size: int) -> None:
    """A pipe cuts where it likes; the lines are the same."""
    text = b"".join(lines)
    seen, rest = [], b""
    for start in range(0, len(text), size):
        whole, rest = split(rest + text[start : start + size])
        seen += whole
    assert (seen, rest) == split(text)


def test_every_line_carries_its_speakers_name_in_a_column() -> None:
    """Names are padded to one width, so that lines of different processes stand below each other."""
    out = io.StringIO()
    screen = Console(out, width=11, coloured=False)
    screen.log("serving", "gateway-1")
    screen.log("ready", "nats-server")
    screen.print("ready http://127.0.0.1:8000")
    assert out.getvalue() == "gateway-1   | serving\nnats-server | ready\nready http://127.0.0.1:8000\n"


def test_colours_are_for_terminals_that_want_them() -> None:
    """A file, a pipe and NO_COLOR get plain text; a terminal gets the name in colour and the line as it is."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert not is_coloured(io.StringIO(), {})
    assert not is_coloured(Terminal(), {"NO_COLOR": "1"})
    assert is_coloured(Terminal(), {})
    out = Terminal()
    Console(out, width=9, coloured=True).log("serving", "gateway-1")
    assert out.getvalue() == "\x1b[36mgateway-1 | \x1b[0mserving\n"


def test_a_screen_that_nobody_reads_any_more_stops_nothing() -> None:
    """`tailrace up | head` closes the pipe after ten lines; the system goes on."""

    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    Console(Closed(), width=1, coloured=False).log("serving")
