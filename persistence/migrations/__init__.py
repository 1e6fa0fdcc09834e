"""Schema migrations: NNNN_name.sql files, numbered from 0001 without gaps. `Database.migrate` runs them.

The files here are SQLite's. A database that names a package with files of its own begins with the first of them, which
creates the tables of all migrations up to that number. From then on, a file of its own takes the place of the file with
the same number here.
The statements of a released migration never change; a correction is a new migration.
"""

from importlib.resources import files
from typing import NamedTuple

from tailrace.proto.errors import StoreTooNew

# The newest migration with columns or rows that can only be filled from the log: older databases replay the whole log.
REPLAY_BELOW_VERSION = 29
# The migration that adds the sequence up to which the log is recorded.
REACHED_FROM_VERSION = 8
# The migration that gives the database its id.
ID_FROM_VERSION = 18


class Migration(NamedTuple):
    """One file. `number` becomes the version of the database when the file has run."""

    number: int
    name: str
    sql: str


def migrations(after: int = 0, own: str | None = None) -> list[Migration]:
    """Returns the migrations after the number `after`, in order; of a database with the files of the package `own`."""
    found = _read(__name__)
    if own is not None:
        replaced = _read(own)
        found = {number: replaced.get(number, step) for number, step in found.items() if number >= min(replaced)}
    return [step for number, step in sorted(found.items()) if number > after]


def _read(package: str) -> dict[int, Migration]:
    steps = (file for file in files(package).iterdir() if file.name.endswith(".sql"))
    return {int(one.name[:4]): Migration(int(one.name[:4]), one.name, one.read_text(encoding="utf-8")) for one in steps}


NEWEST = migrations()[-1].number


def require_known_version(name: str, version: int) -> None:
    """Raises StoreTooNew if a newer version of Tailrace has migrated the database `name`."""
    if version > NEWEST:
        raise StoreTooNew(
            f"the database {name} has schema version {version}, and this version of Tailrace supports up to {NEWEST}: "
            "start the newer version again, or restore the backup from before the upgrade (docs/RUNBOOK.md)"
        )
