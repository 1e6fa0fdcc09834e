"""Terminal output of `tailrace up`: each line of a process, prefixed with the process' name."""

import asyncio
import errno
import io
import os
import re
import select
from asyncio import StreamReader, StreamReaderProtocol
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from tailrace.proto.runtime.systemd import is_journal, stream_id, with_priority

# A longer line is printed in pieces, so that an endless line does not fill the memory.
LINE_BYTES_MAX = 65_536
# How long a line waits for a slow reader. After that the output counts as blocked, and further lines do not wait.
BLOCKED_S_MAX = 0.05
# Lines that report an error of a process, or that it ended.
PROBLEM = re.compile(
    r"\[(error|critical|ERR|FTL) *\]|\"level\": ?\"(error|critical)\""
    r"|exited with status|was killed by|cannot be started|has not (answered|ended)|did not stop"
)
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
# The priority of a line for the journal (proto/runtime/systemd.py), which the processes write as well.
PRIORITY = re.compile(r"<([0-7])>")
# `tailrace up | head` closes the pipe, and a write to a closed terminal fails with EIO.
OUTPUT_CLOSED = (errno.EPIPE, errno.EIO)
PROBLEMS_KEPT = 10
PROBLEM_CHARS_MAX = 300
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)


def split_lines(text: bytes) -> tuple[list[str], bytes]:
    """Returns the complete lines of `text`, without empty lines, and the incomplete rest."""
    *lines, rest = text.split(b"\n")
    if len(rest) > LINE_BYTES_MAX:
        lines, rest = [*lines, rest], b""
    return [line.decode(errors="replace").rstrip() for line in lines if line.strip()], rest


class Problem(msgspec.Struct, frozen=True):
    """A line that reports a problem, and the process that printed it."""

    at: datetime
    name: str
    text: str


class Console:
    """Prints to `out`. Names are padded to `width`; each has its own colour if `coloured`."""

    def __init__(self, out: TextIO, *, width: int, coloured: bool) -> None:
        self.out = out
        self.width = width
        self.coloured = coloured
        self.is_journal = _is_journal(out)
        """Whether systemd's journal reads the output."""
        self.names: list[str] = []
        self.problems: deque[Problem] = deque(maxlen=PROBLEMS_KEPT)
        """The last `PROBLEMS_KEPT` problems."""
        self.last_lines: dict[str, str] = {}
        """The last line of each process."""
        self._lost = 0

    def log(self, text: str, name: str = "up") -> None:
        """Prints a line with a process' name."""
        given = PRIORITY.match(text) if self.is_journal else None
        text = text[given.end() :] if given else text
        plain = ESCAPE.sub("", text)
        self.last_lines[name] = plain[:PROBLEM_CHARS_MAX]
        is_problem = PROBLEM.search(plain) is not None
        line = self._prefix(name) + text
        if self.is_journal:
            line = given[0] + line if given else with_priority("warning" if is_problem else "info", line)
        self.print(line)
        if is_problem:
            self.problems.append(Problem(datetime.now(UTC), name, self.last_lines[name]))

    def print(self, text: str) -> None:
        """Prints text without a name: the banner, and lines that scripts wait for."""
        # The system continues, and can be stopped, without output. The disk of an output file may be full for a while.
        try:
            if not self._is_writable():
                self._lost += 1
                return
            if self._lost:
                print(f"{self._lost} lines were lost, because the output was blocked", file=self.out)
                self._lost = 0
            print(text, file=self.out, flush=True)
        except OSError as error:
            if error.errno in OUTPUT_CLOSED:
                self._discard_output()

    def _discard_output(self) -> None:
        """Discards all further output, and the output that the stream holds, which Python would write at its exit."""
        with suppress(io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())

    def _is_writable(self) -> bool:
        """Returns whether a write does not block: Ctrl-S stops a terminal, and the reader of a pipe may be stopped."""
        try:
            descriptor = self.out.fileno()
        except io.UnsupportedOperation:
            return True
        return bool(select.select([], [descriptor], [], 0 if self._lost else BLOCKED_S_MAX)[1])

    def environ_of(self, output: int) -> dict[str, str]:
        """Returns variables for a process that writes to `output`, which `relay` reads: it adds priorities, too."""
        return {"JOURNAL_STREAM": stream_id(output)} if self.is_journal else {}

    def _prefix(self, name: str) -> str:
        if name not in self.names:
            self.names.append(name)
        label = f"{name:<{self.width}} | "
        colour = COLOURS[self.names.index(name) % len(COLOURS)]
        return f"\x1b[{colour}m{label}\x1b[0m" if self.coloured else label

    async def relay(self, name: str, pipe: int, is_shown: Callable[[str], bool]) -> None:
        """Prints the lines of the file descriptor `pipe` for which `is_shown` is true, until all writers have ended.

        `is_shown` is called once a line.
        """
        reader = StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: StreamReaderProtocol(reader), os.fdopen(pipe, "rb", buffering=0)
        )
        rest = b""
        try:
            while text := await reader.read(LINE_BYTES_MAX):
                lines, rest = split_lines(rest + text)
                for line in filter(is_shown, lines):
                    self.log(line, name)
        finally:
            if rest and is_shown(last := rest.decode(errors="replace")):
                self.log(last, name)
            transport.close()


def _is_journal(out: TextIO) -> bool:
    try:
        return is_journal(out.fileno())
    except io.UnsupportedOperation:
        return False
