"""The data directories of this user's running `tailrace up`, so that other commands find it from any folder."""

from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from tailrace.deploy.local import status_file
from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.options import default_data_dir

FILE = "running"


def record(data_dir: Path) -> None:
    """Adds a directory to the user's list, and removes those without a running `up`."""
    # `up` works without the list: its directory may be read-only, or the home directory missing.
    with suppress(OSError, RuntimeError):
        path = state_path(FILE)
        others = [one for one in _recorded() if one != data_dir and status_file.read(one) is not None]
        write_private(path, "".join(f"{one}\n" for one in [*others, data_dir]))


def find_data_dir() -> Path:
    """Returns the data directory of the running `up` that belongs to this folder, else of the one started last.

    Without a running `up`: the directory that `up` would use.
    """
    default = default_data_dir()
    with suppress(OSError, RuntimeError):
        for one in (default, *reversed(_recorded())):
            if status_file.read(one) is not None:
                return one
    return default


def state_path(name: str) -> Path:
    """Returns a file of the user's own state. Raises OSError if its directory cannot be created."""
    directory = user_state_path("tailrace", appauthor=False)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / name


def _recorded() -> list[Path]:
    try:
        return [Path(line) for line in state_path(FILE).read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
