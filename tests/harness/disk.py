"""A file system for one test, in a file or in memory. Only root may mount it; without root the test is skipped.

After a power cut the file has what the kernel had written to it.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

MIB = 1024**2


@cache
def can_mount() -> bool:
    """Whether this process may mount a file system; the root of a container may not."""
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
    """An ext4 file system at `there`, stored in a file."""

    def __init__(self, image: Path, there: Path) -> None:
        self.image = image
        self.there = there

    def flush(self) -> None:
        """Writes everything to the file, so that a power cut keeps it."""
        _run("sync", "--file-system", str(self.there))

    def copy(self) -> None:
        """Copies the file as a power cut would leave it now."""
        _run("cp", "--sparse=always", str(self.image), str(self._copy_path))

    def cut(self) -> None:
        """Replaces the file by its copy. All processes with files on it must have ended."""
        _unmount(self.there)
        self._copy_path.replace(self.image)
        _run("mount", "-o", "loop", str(self.image), str(self.there))

    @property
    def _copy_path(self) -> Path:
        return self.image.with_suffix(".copy")


@contextmanager
def mounted_disk(folder: Path, there: Path) -> Iterator[Disk]:
    """Mounts a file system at `there`, with its file in `folder`."""
    image = folder / f"{there.name}.image"
    _make(image, 256 * MIB)
    _run("mount", "-o", "loop", str(image), str(there))
    try:
        yield Disk(image, there)
    finally:
        _unmount(there)


@contextmanager
def disk_without_permissions(folder: Path, there: Path) -> Iterator[None]:
    """Mounts a file system of Windows at `there`, with its file in `folder`. All files on it have the mode 0777."""
    image = folder / f"{there.name}.image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    _run("mkfs.ntfs", "--force", "--fast", str(image))
    _run("ntfs-3g", str(image), str(there))
    try:
        yield
    finally:
        _unmount(there)


@contextmanager
def small_disk(there: Path, size: int) -> Iterator[None]:
    """Mounts a file system of `size` bytes in memory; further writes fail with ENOSPC."""
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tailrace-test", str(there))
    try:
        yield
    finally:
        _unmount(there)


def fill(directory: Path, free_bytes: int = 0) -> None:
    """Fills the disk of `directory` with the file `junk`, except for `free_bytes`."""
    with (directory / "junk").open("wb", buffering=0) as junk, suppress(OSError):
        while True:
            junk.write(b"x" * 4096)
    os.truncate(directory / "junk", (directory / "junk").stat().st_size - free_bytes)


def _make(image: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", str(image))


def _unmount(there: Path) -> None:
    """Retries while the kernel closes the files of killed processes."""
    for _ in range(100):
        if subprocess.run(("umount", str(there)), check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{there} is still in use")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


needs_mount = pytest.mark.skipif(not can_mount(), reason="only root may mount a disk, and that is what is tried here")

needs_ntfs = pytest.mark.skipif(
    not can_mount() or shutil.which("ntfs-3g") is None, reason="ntfs-3g is not installed, or this user may not mount"
)
