"""The place of the configuration file `tailrace.toml`, and what is read from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_config_path

from tailrace.deploy.local.data_dir import is_own, is_visible
from tailrace.proto.errors import SettingsInvalid

NAME = "tailrace.toml"
DOTENV = ".env"
ADDRESS = {"host": "TAILRACE_HOST", "port": "TAILRACE_PORT"}


class Configuration(NamedTuple):
    """The environment of the processes, and the options of `up` that the file or the environment sets."""

    environ: Mapping[str, str]
    options: Mapping[str, object]


def find() -> Path | None:
    """Returns the file in the current folder, or else in the user's configuration folder; None if there is none.

    Raises SettingsInvalid if the file, or the `.env` beside it, belongs to another user: such a file could send this
    user's keys elsewhere.
    """
    for path in (Path(NAME), user_config_path("tailrace", appauthor=False) / NAME):
        if is_visible(path) and path.is_file():
            for each in (path, path.with_name(DOTENV)):
                # The link, too: its owner chooses the file.
                if each.exists() and not (is_own(each.stat()) and is_own(each.lstat())):
                    raise SettingsInvalid(f"{each} belongs to another user: to use it, add --config {path}")
            return path
    return None
