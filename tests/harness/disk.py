"""A disk of a test's own: a file system in a file, or in memory. Only root may mount one; who is not is told so.

What a power cut leaves of it is what its file holds: what the kernel has not written there yet would be gone.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

MIB = 1024**2


@cache
def can_mount() -> bool:
    """Root of a container may not, either."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        image, there = Path(folder) / "image", Path(folder) / "there"
        there.mkdir()
        try:
            _make(image, 8 * MIB)
            _run("mount", "-o", "loop", str(image), str(there))
            _run("umount", str(there))
        except subprocess.CalledProcessError:
            return False
    return True


class Disk:
    """An ext4 at `there`, kept in a file. Its processes have ended when it is taken away."""

    def __init__(self, image: Path, there: Path) -> None:
        self.image = image
        self.there = there

    def flush(self) -> None:
        """Writes out all that was written so far: what a cut takes is what comes after."""
        _run("sync", "--file-system", str(self.there))

    def copy(self) -> None:
        """What a power cut would leave now; nothing is written out for it."""
        _run("cp", "--sparse=always", str(self.image), str(self._copied))

    def cut(self) -> None:
        """The disk as it was when it was copied. Whoever had it is gone."""
        _unmount(self.there)
        self._copied.replace(self.image)
        _run("mount", "-o", "loop", str(self.image), str(self.there))

    @property
    def _copied(self) -> Path:
        return self.image.with_suffix(".copy")


@contextmanager
def disk(folder: Path, there: Path, size: int = 256 * MIB) -> Iterator[Disk]:
    """Mounted at `there`, with its file in `folder`."""
    image = folder / f"{there.name}.image"
    _make(image, size)
    _run("mount", "-o", "loop", str(image), str(there))
    try:
        yield Disk(image, there)
    finally:
        _unmount(there)


@contextmanager
def small_disk(there: Path, size: int) -> Iterator[None]:
    """Of `size` bytes, in memory; what is written beyond is refused with ENOSPC."""
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tailrace-test", str(there))
    try:
        yield
    finally:
        _unmount(there)


def _make(image: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", str(image))


def _unmount(there: Path) -> None:
    """Its processes were killed, and the kernel may still be closing their files."""
    for _ in range(100):
        if subprocess.run(("umount", str(there)), check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{there} is still in use")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


needs_mount = pytest.mark.skipif(not can_mount(), reason="only root may mount a disk, and that is what is tried here")
