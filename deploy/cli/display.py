"""Displays of an answer: plain text for pipes, none for `--json`. MarkdownDisplay is for terminals."""

import sys
from typing import Protocol, TextIO

from tailrace.client import Answer, End, TailraceError
from tailrace.client.core import State
from tailrace.client.events import WHOLE
from tailrace.deploy.cli.connection import AGAIN, report_retry
from tailrace.deploy.local.terminal_text import make_printable


class Display(Protocol):
    """Receives the text of an answer and the state of its connection."""

    def add(self, text: str) -> None:
        """Shows more text of the answer."""

    def reset(self) -> None:
        """Says that the answer starts again: the text so far is not part of it."""

    def steered(self, turn: str) -> None:
        """Separates the answer from that of `turn`, which follows because a message has steered it."""

    def state(self, state: State) -> None:
        """Shows a change of the connection's state."""

    def retry(self, error: TailraceError, tries: int) -> None:
        """Says why the client tries again. `tries` is the number of tries in a row without success."""

    def close(self) -> None:
        """Shows the rest of the text, and ends the last line."""


class PlainDisplay:
    """The unchanged text, for pipes and files."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._is_line_open = False

    def add(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()
        self._is_line_open = not text.endswith("\n")

    def reset(self) -> None:
        # The written text cannot be removed from a pipe.
        self.close()
        sys.stderr.write(f"{AGAIN}\n")

    def steered(self, turn: str) -> None:  # noqa: ARG002  # as in Display
        self.add("\n\n")

    def state(self, state: State) -> None: ...

    def retry(self, error: TailraceError, tries: int) -> None:
        report_retry(error, tries)

    def close(self) -> None:
        if self._is_line_open:
            self.add("\n")


class SilentDisplay:
    """Shows nothing: the answer is printed as JSON when it is complete."""

    def add(self, text: str) -> None: ...
    def reset(self) -> None: ...
    def steered(self, turn: str) -> None: ...
    def state(self, state: State) -> None: ...

    def retry(self, error: TailraceError, tries: int) -> None:
        report_retry(error, tries)

    def close(self) -> None: ...


def new_display(*, is_json: bool = False) -> Display:
    """Returns the display for the standard output."""
    if is_json:
        return SilentDisplay()
    if not sys.stdout.isatty():
        return PlainDisplay(sys.stdout)
    # rich takes 0.1 s to load, so it is imported only when it is needed.
    from tailrace.deploy.cli.markdown_display import MarkdownDisplay  # noqa: PLC0415

    return MarkdownDisplay()


def show(answer: Answer, display: Display) -> End:
    """Shows an answer until its end, and returns the end. Raises TailraceError."""
    last, is_in_order = 0, True
    for event in answer:
        match event.type:
            case "delta":
                # Several blocks may be open at the same time. Text that belongs before already shown text waits.
                is_in_order &= event.index >= last
                last = event.index
                if is_in_order:
                    display.add(event.text)
            case "reset":
                display.reset()
                last, is_in_order = 0, True
            case "steered":
                display.steered(event.turn)
                last, is_in_order = 0, True
            case "waiting":
                sys.stderr.write(f"waiting for the model: {make_printable(event.reason)}\n")
            case _:
                pass
    if not is_in_order:
        display.reset()
        display.add(answer.text)
    return answer.done()


def summary(end: End, *, is_simulated: bool = False) -> str:
    """Returns one line about a turn: its outcome (unless its answer is whole), model, tokens, cost and id."""
    about = "about " if end.usage_is_estimated else ""
    cost = f"${end.cost_usd:.6f}" if end.cost_usd is not None else "at an unknown price"
    cost = f"{cost} simulated" if is_simulated else cost
    tokens = f"{about}{end.usage.input_tokens} tokens in, {end.usage.output_tokens} out, {cost}"
    how = words_of(end.outcome, end.stop_reason)
    why = end.message and f"{how}: {end.message}"
    return make_printable(", ".join(filter(None, [why or how, end.model, tokens, f"turn {end.turn}"])))


def words_of(outcome: str | None, stop_reason: str | None) -> str:
    """Returns the outcome of a turn in words; empty for a whole answer."""
    if outcome != "completed":
        return outcome or ""
    if stop_reason in WHOLE:
        return ""
    # The module takes 0.1 s to load, and most answers are whole.
    from tailrace.protocols.common.stop_reasons import explain  # noqa: PLC0415

    return explain(stop_reason).rstrip(".")
