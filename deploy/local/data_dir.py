"""The data folder: made private and held by one `up` at a time; never looks at what the processes keep in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailrace.deploy.local.errors import UpRefused


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold `folder` until the end of the block, or of the process: the kernel drops the lock of a killed `up`.

    A folder that we make is 0700. One that was there keeps its mode: it may be somebody's home, and what we
    put into it is private by the umask that `up` sets.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UpRefused(f"cannot write to {folder} ({error.strerror}): choose another with --data") from error
    with os.fdopen(descriptor, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UpRefused(
                f"{folder} is in use by another `tailrace up` (pid {lock.read().strip()}):"
                " stop that one, or give this one its own folder with --data"
            ) from error
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        # The file stays: removing it would let two hold two files of the same name.
        yield


def write_private(path: Path, text: str) -> None:
    """`text` in a file that only its owner may read, also when the file was there with another mode."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text, encoding="utf-8")
