"""The configuration of a command: finds the file `tailrace.toml`, and merges it with the environment."""

from collections.abc import Mapping
from pathlib import Path

from tailrace.deploy.local.config_path import ADDRESS, Configuration, find


def load(named: Path | None, environ: Mapping[str, str]) -> Configuration:
    """Reads the file that `--config` names, or else the file that `find` returns, and the `.env` beside it.

    Raises SettingsInvalid with the file, the name and what is expected.
    """
    path = named or find()
    if path is None and not any(environ.get(name) for name in ADDRESS.values()):
        return Configuration(environ, {})
    # The settings of all processes take 0.6 s to load, so they are imported only when they are needed.
    from tailrace.deploy.local.config_file import merge  # noqa: PLC0415

    return merge(path, environ)
