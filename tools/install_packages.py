"""Runs `pip install` with the given options, and prints to stderr which package of how many it has reached.

`python tools/install_packages.py OPTIONS -r LOCK`: with the standard library alone, in a venv that has nothing but pip.
"""

import os
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterable
from pathlib import Path

# A terminal shows one line that changes. A file gets a line in every ten seconds.
IS_TERMINAL = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
EVERY_S = 1.0 if IS_TERMINAL else 10.0
# Back to the start of the line, so that a warning of pip does not follow the text.
END = "\x1b[K\r" if IS_TERMINAL else "\n"
LOCKED = re.compile(r"^[\w.-]+==", re.MULTILINE)
FOUND = re.compile(r"(?:Collecting|Ignoring|Requirement already satisfied:) ([\w.-]+)")
INSTALLING = "Installing collected packages: "


class Progress:
    """Counts the packages that pip has found and installed. `locked` is the number in the lock file."""

    def __init__(self, locked: int, site: Path) -> None:
        self._locked = locked
        self._site = site
        self._found = 0
        self._name = ""
        self._installing = 0
        self._before = self._installed()

    def _installed(self) -> set[Path]:
        # pip renames what it replaces: `~ip-26.2.dist-info`.
        return set(self._site.glob("[!~]*.dist-info"))

    def read(self, lines: Iterable[str]) -> None:
        """Reads pip's output to its end."""
        for line in lines:
            if found := FOUND.match(line):
                self._found, self._name = self._found + 1, found[1]
            elif line.startswith(INSTALLING):
                self._installing = line.count(",") + 1

    def __str__(self) -> str:
        if self._installing:
            return f"  installed {len(self._installed() - self._before)} of {self._installing} packages"
        return f"  package {self._found} of {self._locked}: {self._name}" if self._found else "  pip starts"


def fit(text: str) -> str:
    """Returns as much of `text` as one line of the terminal holds: the next text could not replace two lines."""
    if not IS_TERMINAL:
        return text
    # Some terminals do not know their size: 0 columns.
    return text[: (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1]


def main(options: list[str]) -> int:
    """Returns pip's exit status. Its errors go to stderr as they come."""
    locked = len(LOCKED.findall(Path(options[-1]).read_text(encoding="utf-8")))
    progress = Progress(locked, Path(sysconfig.get_path("purelib")))
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as pip:
        reading = threading.Thread(target=progress.read, args=(pip.stdout or (),))
        reading.start()
        while reading.is_alive():
            reading.join(EVERY_S)
            print(fit(str(progress)), end=END, file=sys.stderr, flush=True)
    if IS_TERMINAL:
        print(file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
