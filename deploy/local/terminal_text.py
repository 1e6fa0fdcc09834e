"""Text for a terminal: tables, and text without control characters."""

import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import TextIO

# Control characters of an answer would be commands to the terminal (ECMA-48): cursor, title, clipboard.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Characters that change the direction of the text behind them, also in the other cells of a row (UAX #9).
DIRECTION = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


def has_cursor(out: TextIO) -> bool:
    """Returns whether `out` is a terminal that obeys commands to move its cursor. Emacs and CI set TERM=dumb."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def make_printable(text: str) -> str:
    """Returns `text` without characters that control a terminal."""
    return CONTROL.sub("", text)


def one_line(text: str) -> str:
    """Returns `text` as one line: printable, with spaces in the place of line breaks and tabs."""
    return DIRECTION.sub("", make_printable(text)).replace("\n", " ").replace("\t", " ")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns `rows` with aligned columns, indented by two spaces, one line each."""
    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*shown, fillvalue="")]
    return "\n".join("  ".join(["", *map(str.ljust, row, widths)]).rstrip() for row in shown)
