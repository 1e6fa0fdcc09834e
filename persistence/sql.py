"""Loader of queries.sql: the SQL statements of persistence by name.

    -- name: last_turn
    -- The newest turn of a session.
    SELECT turn FROM turns WHERE …

A part that begins with `-- fragment: x` is not a statement; `{x}` includes it in the parts below it. A part with the
name of a database, as in `-- fragment: x (sqlite)`, exists only for that database.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Literal

DatabaseKind = Literal["sqlite", "postgresql"]

PART = re.compile(r"^-- (name|fragment): (\w+)(?: \((\w+)\))?\n", re.MULTILINE)
COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


def load(text: str, system: DatabaseKind = "sqlite") -> Mapping[str, str]:
    """Returns the statements in `text`, without comments and with their fragments. KeyError for a missing fragment."""
    statements: dict[str, str] = {}
    fragments: dict[str, str] = {}
    _, *parts = PART.split(text)
    for kind, name, only, part in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
        if only in (None, system):
            found = COMMENT.sub("", part).strip().format_map(fragments)
            (statements if kind == "name" else fragments)[name] = found
    return statements


def statements(system: DatabaseKind) -> Mapping[str, str]:
    """Returns the statements for a database."""
    return load((files(__package__) / "queries.sql").read_text(encoding="utf-8"), system)
