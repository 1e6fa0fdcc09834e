"""The wall clock of one process, which a test sets wrong while it runs. Needs a C compiler."""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_name("clock.c")
NUMBERS = struct.Struct("@ll")


class Clock:
    """`environ` starts its process with this clock. The monotonic clock stays right."""

    def __init__(self, library: Path, path: Path) -> None:
        path.write_bytes(bytes(NUMBERS.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), NUMBERS.size)
        self.environ = {"LD_PRELOAD": str(library), "TAILRACE_CLOCK": str(path)}

    @classmethod
    def create(cls, folder: Path, name: str) -> Self | None:
        """Returns None without a C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        library = folder / "clock.so"
        if not library.exists():
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
        return cls(library, folder / f"{name}.clock")

    def jump(self, seconds: int) -> None:
        """Sets the error of the clock."""
        struct.pack_into("@l", self._shared, 0, seconds)

    @property
    def wrong_readings(self) -> int:
        """How many wrong times it has returned."""
        _, count = NUMBERS.unpack(self._shared[: NUMBERS.size])
        return int(count)
