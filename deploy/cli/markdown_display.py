"""MarkdownDisplay: an answer as Markdown on a terminal, while it arrives."""

import re
from collections.abc import Callable, Iterator
from copy import copy
from itertools import dropwhile

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from tailrace.client import TailraceError
from tailrace.client.core import State
from tailrace.deploy.cli.connection import AGAIN
from tailrace.deploy.local.terminal_text import make_printable

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
REFRESHES_PER_S = 12


class MarkdownDisplay:
    """Markdown on a terminal. A finished block is printed once; the growing block is drawn repeatedly.

    `Live` can draw only one screen of text, so it receives the growing block and not the whole answer.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._text = ""
        self._is_first = True
        self._waiting = ""
        self._live: Live | None = None
        self._sent: list[str] = []
        self.draft: Callable[[], str] = str
        """Returns the line that the user is typing."""
        self.steered_to: set[str] = set()
        """The turns that steered the answer, and were shown after it."""

    def send(self, message: str) -> None:
        """Shows a message below the answer until it has steered it. Any thread may call this."""
        self._sent.append(message)

    def refuse(self, message: str, why: str) -> None:
        """Says that a message was not sent. Any thread may call this."""
        if message in self._sent:
            self._sent.remove(message)
        self._console.print(Text(make_printable(f"not sent: {message} ({why})"), style="dim"))

    def steered(self, turn: str) -> None:
        self.steered_to.add(turn)
        self.close()
        # Another client may have steered the answer.
        if self._sent:
            self._console.print(Text(f"\n> {self._sent.pop(0)}", style="bold"))

    def add(self, text: str) -> None:
        self._text += make_printable(text)
        finished, self._text = split_blocks(self._text)
        if finished:
            self._stop()
            self._print(finished)
        self._draw()

    def reset(self) -> None:
        self._text = ""
        self._stop()
        self._console.print(f"[dim]{AGAIN}[/dim]")

    def state(self, state: State) -> None:
        if state == "live":
            self._waiting = ""
            self._draw()

    def retry(self, error: TailraceError, tries: int) -> None:  # noqa: ARG002  # as in Display
        self._waiting = make_printable(f"{error}; trying again")
        self._draw()

    def close(self) -> None:
        self._stop()
        if self._text.strip():
            self._print(self._text)
        self._text = ""

    def _print(self, text: str) -> None:
        if not self._is_first:
            self._console.print()
        self._is_first = False
        self._console.print(Blocks(text))

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=REFRESHES_PER_S, transient=True)
            self._live.start()
        spinner = Spinner("dots", Text(self._waiting, style="dim"))
        self._live.update(Group(Blocks(self._text), spinner, Typed(self._typed)))

    def _typed(self) -> list[str]:
        draft = self.draft()
        return [*self._sent, *([draft] if draft else [])]

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class Typed:
    """The lines that the user has typed, as they are when they are drawn."""

    def __init__(self, lines: Callable[[], list[str]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for line in self._lines():
            yield Text(f"> {line}", style="bold")


class Blocks:
    """Markdown with one blank line between its blocks; rich prints two before a list, a heading or a quote."""

    def __init__(self, text: str) -> None:
        # Print the address of each link, because its text may name another address.
        self._markdown = Markdown(text, hyperlinks=False, code_theme="ansi_dark")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tokens, depth, block, is_first = self._markdown.parsed, 0, copy(self._markdown), True
        block.parsed = []
        for token in tokens:
            block.parsed.append(token)
            depth += token.nesting
            if depth:
                continue
            lines = list(dropwhile(is_blank, console.render_lines(block, options, pad=False)))
            while lines and is_blank(lines[-1]):
                lines.pop()
            if lines and not is_first:
                yield Segment.line()
            for line in lines:
                yield from (*line, Segment.line())
            is_first, block.parsed = is_first and not lines, []


def is_blank(line: list[Segment]) -> bool:
    return not "".join(segment.text for segment in line).strip()


def split_blocks(text: str) -> tuple[str, str]:
    """Splits Markdown after the last blank line outside fenced code. Returns the finished blocks, and the rest."""
    end, position, fence = 0, 0, ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        found = FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not line.strip(" `~\n"):
                fence = ""
        elif found:
            fence = found[1]
        elif not line.strip() and line.endswith("\n"):
            end = position
    return text[:end], text[end:]
