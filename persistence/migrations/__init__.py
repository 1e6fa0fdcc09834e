"""The numbered steps that make the database what this version needs. They are text; the store runs them.

A step that was released is never edited: the next one is added. NNNN_what_it_does.sql, from 0001 on, without holes.
"""

from importlib.resources import files
from typing import NamedTuple

# The newest step that adds what only the log can tell: a database from before it is told all that the log has again.
TOLD_AGAIN = 6


class Migration(NamedTuple):
    """`number` is the database's `user_version` once it has run."""

    number: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """Every step, first to last."""
    steps = sorted((step for step in files(__name__).iterdir() if step.name.endswith(".sql")), key=lambda s: s.name)
    return [Migration(int(step.name[:4]), step.name, step.read_text(encoding="utf-8")) for step in steps]
