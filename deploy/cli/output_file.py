"""A private output file that appears under its name when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def open_output(output: Path) -> Iterator[TextIO]:
    """Opens `OUTPUT.part`, which becomes `output` if the block ends without an error. Raises OSError."""
    part = output.with_name(output.name + ".part")
    with open(part, "w", encoding="utf-8", opener=_open_private) as file:
        yield file
    part.replace(output)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
