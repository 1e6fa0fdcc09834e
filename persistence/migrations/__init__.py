"""Schema migrations: NNNN_name.sql files, numbered from 0001 without gaps. `Database.migrate` runs them.

The statements of a released migration never change; a correction is a new migration.
"""

from importlib.resources import files
from typing import NamedTuple

# The newest migration whose new columns can only be filled from the log: older databases replay the whole log.
REPLAY_BELOW_VERSION = 6


class Migration(NamedTuple):
    """One file. `number` becomes the database's `user_version` when it has run."""

    number: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """Returns all migrations in order."""
    steps = sorted((step for step in files(__name__).iterdir() if step.name.endswith(".sql")), key=lambda s: s.name)
    return [Migration(int(step.name[:4]), step.name, step.read_text(encoding="utf-8")) for step in steps]
