"""The options of `tailrace up` and their defaults."""

from pathlib import Path
from typing import Literal, get_args

import msgspec
from platformdirs import user_data_path

Sync = Literal["always", "1s", "default"]
SYNCS: tuple[Sync, ...] = get_args(Sync)


def default_data_dir() -> Path:
    """Returns `.tailrace` in the current directory if it exists, else the user's data directory.

    `make run` keeps the data of a checkout in its `.tailrace`; an installed `tailrace` works from any directory.
    """
    here = Path(".tailrace")
    return here if here.is_dir() else user_data_path("tailrace", appauthor=False)


class Options(msgspec.Struct, frozen=True):
    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path = msgspec.field(default_factory=default_data_dir)
    generators: int = 2
    gateways: int = 1
    # Three nats-servers with a copy of the log each; any one of them may fail.
    cluster: bool = False
    # "always": acknowledged means on the disk. With nats-server's own default a power cut loses up to two minutes.
    sync: Sync = "always"
