"""The lines that a user types on a terminal while an answer is shown there."""

import codecs
import os
import re
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tailrace.client import Answer, Client, End, TailraceError
from tailrace.deploy.cli import display
from tailrace.deploy.cli.markdown_display import MarkdownDisplay

# The sequences that a terminal sends for an arrow or a function key (CSI and SS3 of ECMA-48).
KEYS = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O.)")
ERASE, ERASE_LINE = ("\x7f", "\b"), "\x15"
READ_BYTES = 4096
# The interval of checks whether the terminal is this command's again: a shell may have put it into the background.
CHECK_S = 0.5


def show_and_steer(client: Client, screen: MarkdownDisplay, answer: Answer) -> End:
    """Shows an answer. Each line that is typed meanwhile steers it. Raises TailraceError."""
    turns: list[str] = []

    def send(line: str) -> None:
        screen.send(line)
        try:
            turns.append(answer.steer(line)["turn"])
        except TailraceError as error:
            screen.refuse(line, str(error))

    lines = TypedLines(send)
    screen.draft = lambda: lines.draft
    while True:
        with reading(lines):
            end = display.show(answer, screen)
        later = [turn for turn in turns if turn != end.turn and turn not in screen.steered_to]
        if not later:
            break
        # The line was sent when its answer had ended, or after another line: no reader goes on into this turn.
        screen.steered(later[0])
        answer = client.resume(later[0], on_state=screen.state)
    if lines.draft:
        screen.refuse(lines.draft, "the answer has ended")
    return end


class TypedLines:
    """Collects keys to lines. The terminal does not show them: `draft` is the line so far, for a display."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.draft = ""
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, keys: bytes) -> None:
        """Adds keys, and calls `on_line` with each line that Enter has ended, unless it is empty."""
        for key in KEYS.sub("", self._decoder.decode(keys)):
            if key in "\r\n":
                line, self.draft = self.draft.strip(), ""
                if line:
                    self._on_line(line)
            elif key in ERASE:
                self.draft = self.draft[:-1]
            elif key == ERASE_LINE:
                self.draft = ""
            elif key.isprintable():
                self.draft += key


@contextmanager
def reading(lines: TypedLines) -> Iterator[None]:
    """Reads the terminal in a thread. At the end, the terminal is as before.

    Without an error, waits for the line that is being handled.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    ended, end = os.pipe()
    # Without echo, which would write into the answer. Ctrl-C is a signal as before.
    tty.setcbreak(terminal, termios.TCSADRAIN)
    thread = threading.Thread(target=_read, args=(terminal, ended, lines), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(end)
        if is_in_foreground(terminal):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    thread.join()
    os.close(ended)


def _read(terminal: int, ended: int, lines: TypedLines) -> None:
    """Reads keys until the other end of the pipe `ended` is closed, or the terminal is."""
    while True:
        # A process in the background that reads the terminal would be stopped.
        watched = [ended, terminal] if is_in_foreground(terminal) else [ended]
        readable, _, _ = select.select(watched, [], [], CHECK_S)
        if ended in readable:
            return
        if terminal in readable:
            try:
                keys = os.read(terminal, READ_BYTES)
            except OSError:
                return
            if not keys:
                return
            lines.add(keys)


def is_in_foreground(terminal: int) -> bool:
    """Returns whether this process may read the terminal: a shell has not put it into the background."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
