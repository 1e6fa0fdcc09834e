"""A list of the data directories in which this user runs `tailrace up`, so that other commands find them."""

import sys
from contextlib import suppress
from pathlib import Path, PosixPath
from shlex import quote
from urllib.parse import urlsplit

from platformdirs import user_state_path

from tailrace.deploy.local import status_file
from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.options import default_data_dir
from tailrace.deploy.local.status_file import UpStatus
from tailrace.proto.errors import SettingsInvalid

FILE = "running"


class StartedLast(PosixPath):
    """The data directory of the `up` that was started last. Several run, and no option has named one."""


def record(data_dir: Path) -> bool:
    """Adds a directory to the user's list, and removes directories without a running `up`.

    Returns whether other commands find the directory.
    """
    others = [one for one in _find_running() if one != data_dir]
    write_state(FILE, "".join(f"{one}\n" for one in [*others, data_dir]))
    return str(data_dir) in read_state(FILE).splitlines() or data_dir == default_data_dir().resolve()


def find_data_dir() -> Path:
    """Returns the data directory of a running `up`: the one that `up` would use here, or else the last one started.

    If no `up` runs, returns the directory that `up` would use.
    """
    default = default_data_dir()
    started = _find_running()
    if not started or status_file.read(default) is not None:
        return default
    return StartedLast(started[-1]) if len(started) > 1 else started[-1]


def say_which(data_dir: Path, option: str) -> None:
    """Prints the address if `find_data_dir` has chosen `data_dir` among several. `option` selects another system."""
    if isinstance(data_dir, StartedLast) and (up := status_file.read(data_dir)):
        print(f"several systems run; this is {up.url}. Name another one with {option}.", file=sys.stderr)


def require_named(data_dir: Path) -> None:
    """Raises SettingsInvalid if `find_data_dir` has chosen `data_dir` among several: a change needs a named system."""
    if isinstance(data_dir, StartedLast):
        found = ", ".join(f"--data {quote(str(one))}" for one in _find_running())
        raise SettingsInvalid(f"several systems run; name the one to change: {found}")


def find_at(port: int) -> UpStatus | None:
    """Returns the status of the `up` that this user runs at `port`, or None."""
    found = map(status_file.read, _find_running())
    return next((up for up in found if up is not None and urlsplit(up.url).port == port), None)


def write_state(name: str, text: str) -> None:
    """Writes a state file of the user. Ignores errors, because commands work without the file."""
    with suppress(OSError, RuntimeError):
        path = _state_dir() / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, text)


def read_state(name: str) -> str:
    """Returns the text of a state file of the user; empty if there is none."""
    with suppress(OSError, RuntimeError, UnicodeDecodeError):
        return (_state_dir() / name).read_text(encoding="utf-8")
    return ""


def _state_dir() -> Path:
    """Raises RuntimeError without a home directory."""
    return user_state_path("tailrace", appauthor=False)


def _find_running() -> list[Path]:
    """Returns the recorded directories that have a running `up`, in the order in which these were started."""
    recorded = [Path(line) for line in read_state(FILE).splitlines()]
    return [one for one in recorded if status_file.read(one) is not None]
