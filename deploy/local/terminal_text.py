"""Text for a terminal: tables, and text without control characters."""

import re
from collections.abc import Sequence
from itertools import zip_longest

# Control characters of an answer would be commands to the terminal (ECMA-48): cursor, title, clipboard.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Returns `text` without characters that control a terminal."""
    return CONTROL.sub("", text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns `rows` with aligned columns, indented by two spaces, one line each."""
    shown = [[printable(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*shown, fillvalue="")]
    return "\n".join("  ".join(["", *map(str.ljust, row, widths)]).rstrip() for row in shown)
