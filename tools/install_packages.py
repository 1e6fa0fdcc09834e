"""Runs `pip install` with the given options, and prints to stderr which package of how many it has reached.

`python tools/install_packages.py OPTIONS -r LOCK`: with the standard library alone, in a venv that has nothing but pip.
"""

import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterable
from pathlib import Path

# A terminal shows one line that changes. A file gets a line in every ten seconds.
EVERY_S = 1.0 if sys.stderr.isatty() else 10.0
BEGIN, END = ("\r", "\x1b[K") if sys.stderr.isatty() else ("", "\n")
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
        return set(self._site.glob("*.dist-info"))

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
            print(f"{BEGIN}{progress}", end=END, file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
