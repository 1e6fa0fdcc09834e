"""Terminal output of `tailrace up`."""

import asyncio
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.deploy.local.console import LINE_BYTES_MAX, Console, split_lines
from tailrace.proto.runtime.logging_setup import is_coloured
from tailrace.proto.runtime.systemd import stream_id
from tests.unit.test_cli import Terminal


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
def test_text_is_split_into_complete_lines_and_a_rest(text: bytes, lines: list[str], rest: bytes) -> None:
    """A complete line is printed without its line break; empty lines are left out."""
    assert split_lines(text) == (lines, rest)


def test_a_line_without_an_end_is_printed_in_pieces() -> None:
    """It must not fill the supervisor's memory."""
    assert split_lines(b"x" * (LINE_BYTES_MAX + 1)) == (["x" * (LINE_BYTES_MAX + 1)], b"")


@given(st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"") + b"\n")), st.integers(1, 7))
def test_lines_do_not_depend_on_the_chunks_of_the_pipe(lines: list[bytes], size: int) -> None:
    text = b"".join(lines)
    seen, rest = [], b""
    for start in range(0, len(text), size):
        whole, rest = split_lines(rest + text[start : start + size])
        seen += whole
    assert (seen, rest) == split_lines(text)


def test_a_blocked_output_loses_lines_and_blocks_nothing_else() -> None:
    """As after Ctrl-S in a terminal, or in `tailrace up | less`."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as printed, os.fdopen(writer, "w") as out:
        screen = Console(out, width=2, coloured=False)
        for number in range(10_000):
            screen.log(f"{number:06d}")
        before = printed.read(1_000_000).decode().splitlines()
        screen.log("last")
        after = printed.read(1_000_000).decode().splitlines()
    assert before == [f"up | {number:06d}" for number in range(len(before))]
    assert after == [f"{10_000 - len(before)} lines were lost, because the output was blocked", "up | last"]


def test_only_terminals_without_no_color_get_colours() -> None:
    """A file, a pipe, TERM=dumb and NO_COLOR get plain text; on a terminal only the name is coloured."""

    assert not is_coloured(io.StringIO(), {})
    assert not is_coloured(Terminal(), {"NO_COLOR": "1"})
    assert not is_coloured(Terminal(), {"TERM": "dumb"})
    assert is_coloured(Terminal(), {})
    out = Terminal()
    Console(out, width=9, coloured=True).log("serving", "gateway-1")
    assert out.getvalue() == "\x1b[36mgateway-1 | \x1b[0mserving\n"


def test_the_last_errors_are_kept_without_colours() -> None:
    """For `tailrace status`; other lines are not kept."""
    screen = Console(io.StringIO(), width=1, coloured=False)
    for line in (
        "12:00:00.000 [\x1b[31merror    \x1b[0m] the log is full",
        '{"turn": "x", "level": "error", "event": "the log is full"}',
        "12:00:00.000 [info     ] turn ended",
        "generator-1 has not ended 3660 s after SIGTERM; killing it, pid 7",
        "generator-1 was killed by SIGKILL; next start in 0 s",
    ):
        screen.log(line, "generator-1")
    assert [problem.text for problem in screen.problems] == [
        "12:00:00.000 [error    ] the log is full",
        '{"turn": "x", "level": "error", "event": "the log is full"}',
        "generator-1 has not ended 3660 s after SIGTERM; killing it, pid 7",
        "generator-1 was killed by SIGKILL; next start in 0 s",
    ]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_an_output_that_fails_does_not_stop_the_system(number: int) -> None:
    """The reader of a pipe has ended, the terminal was closed, or the file is on a full disk."""

    class Failing(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(number, os.strerror(number))

    Console(Failing(), width=1, coloured=False).log("serving")


@pytest.mark.parametrize("opened", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_what_a_closed_output_did_not_receive_is_not_written_at_the_exit(opened: Callable[[], tuple[int, int]]) -> None:
    """Python writes the rest of its buffer when it exits: a traceback would go to a standard error that is a file."""
    reader, writer = opened()
    with os.fdopen(writer, "w") as out:
        os.close(reader)
        Console(out, width=1, coloured=False).log("serving")
        out.flush()


async def test_the_journal_gets_the_priority_of_each_line_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of `up` writes to a pipe, and is told that the journal reads it."""
    script = "import os, sys; print(os.environ['JOURNAL_STREAM'], file=sys.stderr); print('<4>w'); print('i')"
    with (tmp_path / "printed").open("w") as out:
        monkeypatch.setenv("JOURNAL_STREAM", stream_id(out.fileno()))
        console = Console(out, width=2, coloured=False)
        read_end, write_end = os.pipe()
        stream = stream_id(write_end)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script), stdout=write_end, stderr=write_end, env=console.environ_of(write_end)
        )
        os.close(write_end)
        await console.relay("g", read_end, lambda _: True)
        await process.wait()
        console.log("gateway-1 was killed by SIGKILL; next start in 0 s")
    lines = (tmp_path / "printed").read_text().splitlines()
    assert sorted(lines[:3]) == sorted(["<4>g  | w", "<6>g  | i", f"<6>g  | {stream}"])
    assert lines[3] == "<4>up | gateway-1 was killed by SIGKILL; next start in 0 s"
    assert [problem.text for problem in console.problems] == ["gateway-1 was killed by SIGKILL; next start in 0 s"]


def test_without_the_journal_a_line_has_no_priority() -> None:
    out = io.StringIO()
    console = Console(out, width=2, coloured=False)
    console.log("a")
    assert (out.getvalue(), console.environ_of(1)) == ("up | a\n", {})
