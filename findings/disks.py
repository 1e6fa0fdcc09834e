"""Small disks for the findings: a file with a file system, which is mounted."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def create(image: Path, size_mb: int) -> None:
    """Creates the file with an empty ext4."""
    with image.open("wb") as file:
        file.truncate(size_mb * 1024**2)
    run("mkfs.ext4", "-q", "-F", image)


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """Mounts the file system in a file. Ends the program with 77 if this user may not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run("mount", "-o", "loop", image, folder)
        except subprocess.CalledProcessError:
            sys.exit(77)
        try:
            yield Path(folder)
        finally:
            run("umount", folder)
