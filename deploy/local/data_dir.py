"""The data directory: created private, and locked so that one `tailrace up` or backup uses it at a time."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import IO, NamedTuple

from tailrace.deploy.local.errors import UpRefused

TRUSTED_OWNERS = (0,)
LOCK = "lock"
# The command that runs a system.
UP = "up"
# `find_holder` holds the lock for less than this.
LOCK_S_MAX, LOCK_POLL_S = 0.2, 0.005
# In a data directory: the URL with which commands connect to the NATS of its `up`.
URL_FILE = "nats.url"
# In a data directory: exists once a gateway has seen an API key, so that requests need one, also if all keys are lost.
FIRST_KEY = "first-key"
# In a data directory: exists if the log has gone back, from `restore` until the next start has recorded it.
RESTORED = "restored"
# In a data directory: the addresses of the metrics of all processes, for Prometheus and for `/ops`.
METRICS_TARGETS = "targets.json"


class NamedDataDir(PosixPath):
    """A data directory that the option `--data` has named."""


def without_overridden(environ: Mapping[str, str], data_dir: Path | None) -> Mapping[str, str]:
    """Returns `environ` without the addresses of other systems, if `--data` has named `data_dir`."""
    if not isinstance(data_dir, NamedDataDir):
        return environ
    found = {name: value for name, value in environ.items() if name != "TAILRACE_URL"}
    # The `up` of this directory may use the NATS at TAILRACE_NATS_URL, not a NATS of its own.
    if found.get("TAILRACE_NATS_URL") and (data_dir / URL_FILE).exists():
        del found["TAILRACE_NATS_URL"]
    return found


def exists(path: Path) -> bool:
    """Returns whether the path exists. Raises PermissionError if this user may not see it.

    From Python 3.14 on, Path.exists returns False then.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_visible(path: Path) -> bool:
    """Whether the path exists and this user may see it: nothing in the folder of root is, under `sudo -u tailrace`."""
    return os.access(path, os.F_OK, effective_ids=True)


class Holder(NamedTuple):
    """A command that uses a data directory, such as UP."""

    pid: str
    command: str

    def __str__(self) -> str:
        return f"`tailrace {self.command}` (pid {self.pid})"


def find_holder(data_dir: Path) -> Holder | None:
    """Returns the command that uses the data directory now, or None."""
    try:
        with (data_dir / LOCK).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(file)
    except OSError:
        pass
    return None


def _read_holder(lock_file: IO[bytes]) -> Holder:
    pid, _, command = lock_file.read().decode().strip().partition(" ")
    return Holder(pid, command)


def _acquire(file: IO[bytes]) -> None:
    """Locks the file. Raises BlockingIOError if another process holds the lock for longer than a look at it takes."""
    until = time.monotonic() + LOCK_S_MAX
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(LOCK_POLL_S)


@contextmanager
def lock(data_dir: Path, command: str) -> Iterator[None]:
    """Locks `data_dir` until the end of the block or of the process; the kernel releases the lock of a killed process.

    The message of another process that tries to lock it names `command`.

    A new directory has mode 0700. An existing directory keeps its mode, because it may be a home directory; the files
    in it are private by the umask that `up` sets. Raises UpRefused if the directory cannot be written or is locked.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UpRefused(
            f"cannot write to the data directory {data_dir} ({error.strerror}): choose another with --data"
        ) from error
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            _acquire(file)
        except BlockingIOError as error:
            raise UpRefused(
                f"the data directory {data_dir} is in use by {_read_holder(file)}:"
                " stop it, or choose another directory with --data"
            ) from error
        try:
            file.truncate(0)
            file.write(f"{os.getpid()} {command}\n".encode())
        except OSError as error:
            raise UpRefused(
                f"cannot write to the data directory {data_dir} ({error.strerror}): make room, or choose another with "
                "--data"
            ) from error
        # The file is never removed: two processes could then lock two files of the same name.
        yield


def is_own(found: os.stat_result) -> bool:
    """Returns whether a file belongs to this user or to root. Another user could replace it."""
    return found.st_uid in (*TRUSTED_OWNERS, os.geteuid())


def read_own(data_dir: Path, name: str) -> bytes:
    """Returns the content of a file in a data directory.

    Raises OSError, also if the directory or the file belongs to another user: the addresses in it would receive this
    user's keys and questions.
    """
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _require_own(folder)
        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
            _require_own(file.fileno())
            return file.read()
    finally:
        os.close(folder)


def _require_own(descriptor: int) -> None:
    if not is_own(os.fstat(descriptor)):
        raise PermissionError(errno.EPERM, "it belongs to another user")


def write_private(path: Path, text: str) -> None:
    """Writes `text` to a file that only its owner may read, also if the file existed with another mode."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text, encoding="utf-8")


def replace_private(path: Path, text: str) -> None:
    """Like `write_private`, for a file that other processes read at any moment: they see the old or the new text."""
    new = path.with_name(f"{path.name}.new")
    write_private(new, text)
    new.replace(path)


def is_private(path: Path) -> bool:
    """Returns whether only its owner may read a file. A file system of Windows may ignore the mode of a file."""
    return path.stat().st_mode & 0o077 == 0
