"""status.json in the data directory: the processes of a running `up`, and its last problems, for `tailrace status`."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from tailrace.deploy.local.console import Problem
from tailrace.deploy.local.data_dir import LOCK, METRICS_TARGETS, UP, Holder, find_holder, read_own, replace_private
from tailrace.deploy.local.ports import in_url
from tailrace.deploy.local.readiness import METRICS_PATH, HealthCheck
from tailrace.proto.runtime import metrics_targets
from tailrace.proto.version import VERSION

if TYPE_CHECKING:
    from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor

FILE = "status.json"


class ProcessEntry(msgspec.Struct, frozen=True):
    """A process; `pid` is None while it is not running. `check` is its readiness check."""

    name: str
    pid: int | None
    where: Sequence[str]
    check: HealthCheck | None


class UpStatus(msgspec.Struct, frozen=True):
    """The version, address, processes and last problems of a running `tailrace up`."""

    version: str
    pid: int
    url: str
    processes: list[ProcessEntry]
    problems: list[Problem]
    restart: "Restart"


class Restart(msgspec.Struct, frozen=True):
    """The state of `tailrace restart`: how many processes have ended, what runs now, and why the last restart failed.

    `now` are the names of the processes that are restarted, started or stopped, as `action` says.
    """

    ended: int = 0
    now: str = ""
    failure: str = ""
    action: Literal["restarting", "starting", "stopping"] = "restarting"


class StatusFile:
    """Writes status.json of one `up`, and the metrics targets, if they have changed."""

    def __init__(self, data_dir: Path, url: str, supervisor: "Supervisor") -> None:
        self._data_dir = data_dir
        self._url = url
        self._supervisor = supervisor
        self._written: UpStatus | None = None
        self.restart = Restart()

    def write(self) -> None:
        """Raises OSError."""
        children = self._supervisor.children.items()
        status = UpStatus(
            version=VERSION,
            pid=os.getpid(),
            url=self._url,
            processes=[
                ProcessEntry(name, child.pid, child.spec.where, child.spec.readiness) for name, child in children
            ],
            problems=list(self._supervisor.console.problems),
            restart=self.restart,
        )
        if status != self._written:
            write_metrics_targets(self._data_dir, [child.spec for _, child in children])
            replace_private(self._data_dir / FILE, msgspec.json.encode(status).decode())
            self._written = status


def write_metrics_targets(data_dir: Path, specs: Iterable["ProcessSpec"]) -> None:
    """Writes the file METRICS_TARGETS with the targets of the processes that have metrics. Raises OSError."""
    found = {
        f"{in_url(check.host)}:{check.port}": spec.role
        for spec in specs
        if (check := spec.readiness) is not None and check.path == METRICS_PATH
    }
    replace_private(data_dir / METRICS_TARGETS, metrics_targets.encode(found).decode())


def read(data_dir: Path) -> UpStatus | None:
    """Returns the status of the `up` that runs with `data_dir`; None if no `up` runs, or if it is still starting.

    Returns None also for files of another user.
    """
    try:
        status = msgspec.json.decode(read_own(data_dir, FILE), type=UpStatus)
    except (OSError, msgspec.DecodeError):
        return None
    # The file stays after `up` was killed, and another process may have its pid by now. The kernel releases the lock.
    return status if find_holder(data_dir) == Holder(str(status.pid), UP) else None


def explain_absence(data_dir: Path) -> str:
    """Returns why `read` has found no running `up`, and what to do.

    Raises PermissionError if this user may not see whether an `up` runs.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        (data_dir / LOCK).open("rb").close()
    if holder := find_holder(data_dir):
        return f"{data_dir} is in use by {holder}: wait until it is ready, or run this command as the user of that one"
    return f"no `up` runs in {data_dir}: start one, or name its data directory with --data"
