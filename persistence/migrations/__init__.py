"""Schema migrations: NNNN_name.sql files, numbered from 0001 without gaps. `Database.migrate` runs them.

PostgreSQL begins with the first NNNN_name.postgresql.sql, which creates the tables of all SQLite's migrations up to
that number. From then on, a file with this ending takes the place of the NNNN_name.sql beside it.
The statements of a released migration never change; a correction is a new migration.
"""

from importlib.resources import files
from typing import NamedTuple

from tailrace.persistence.sql import DatabaseKind
from tailrace.proto.errors import StoreTooNew

# The newest migration with columns that can only be filled from the log: older databases replay the whole log.
REPLAY_BELOW_VERSION = 6
# The migration that gives the database its id.
ID_FROM_VERSION = 18


class Migration(NamedTuple):
    """One file. `number` becomes the version of the database when the file has run."""

    number: int
    name: str
    sql: str


def migrations(system: DatabaseKind = "sqlite", after: int = 0) -> list[Migration]:
    """Returns the migrations of a database after the number `after`, in order."""
    found = {step.name: step for step in files(__name__).iterdir() if step.name.endswith(".sql")}
    own = {int(name[:4]): name for name in sorted(found) if name.endswith(".postgresql.sql")}
    names = {int(name[:4]): name for name in sorted(found) if name not in own.values()}
    if system == "postgresql":
        names = {number: own.get(number, name) for number, name in names.items() if number >= min(own)}
    return [
        Migration(number, name, found[name].read_text(encoding="utf-8"))
        for number, name in names.items()
        if number > after
    ]


NEWEST = migrations()[-1].number


def require_known_version(name: str, version: int) -> None:
    """Raises StoreTooNew if a newer version of Tailrace has migrated the database `name`."""
    if version > NEWEST:
        raise StoreTooNew(
            f"the database {name} has schema version {version}, and this version of Tailrace supports up to {NEWEST}: "
            "start the newer version again, or restore the backup from before the upgrade (docs/RUNBOOK.md)"
        )
