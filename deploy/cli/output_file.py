"""A private output file, which appears under its name when it is complete."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def open_output(output: Path, *, overwrites: bool) -> Iterator[TextIO]:
    """Opens a new file, which only its owner can read, and which becomes `output` if the block ends without an error.

    Otherwise the new file is removed. A device or a pipe is written to directly. Raises OSError: FileExistsError if
    `output` exists and must not be overwritten.
    """
    if overwrites and output.exists() and not output.is_file():
        with output.open("w", encoding="utf-8") as file:
            yield file
        return
    descriptor, name = tempfile.mkstemp(prefix=f"{output.name}.", suffix=".part", dir=output.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
        if not overwrites and os.path.lexists(output):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output))
        part.replace(output)
    except BaseException:
        part.unlink()
        raise
