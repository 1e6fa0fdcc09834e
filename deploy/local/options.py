"""The options of `tailrace up` and their defaults."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta
from platformdirs import user_data_path

from tailrace.deploy.local.data_dir import is_own, is_visible

Sync = Literal["always", "1s", "default"]
SYNCS: tuple[Sync, ...] = get_args(Sync)


def default_data_dir() -> Path:
    """Returns `.tailrace` in the current directory if this user or root owns it, else the user's data directory.

    `make run` keeps the data of a checkout in its `.tailrace`; an installed `tailrace` works from any directory.
    """
    here = Path(".tailrace")
    if is_visible(here) and here.is_dir() and is_own(here.stat()):
        return here
    return user_data_path("tailrace", appauthor=False)


class Options(msgspec.Struct, frozen=True):
    """The options. Options with a description can also be set in the table `[up]` of the configuration file."""

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Annotated[Path, Meta(description="data directory")] = msgspec.field(default_factory=default_data_dir)
    generators: Annotated[int, Meta(ge=1, le=64, description="processes that call the model")] = 2
    gateways: Annotated[int, Meta(ge=1, le=64, description="processes that serve HTTP")] = 1
    cluster: Annotated[
        bool, Meta(description="three nats-servers with a copy of the log each; any one of them may fail")
    ] = False
    # "always": acknowledged entries are on disk. With nats-server's default a power cut loses up to two minutes.
    sync: Annotated[
        Sync,
        Meta(
            description="what a power cut may lose: nothing that was acknowledged (always), the last second (1s), or "
            "the last two minutes (default: that of NATS). A crash of a process loses nothing in any case"
        ),
    ] = "always"
    # Not in the table `[up]`, where it would stay for the next start.
    is_new: bool = False
