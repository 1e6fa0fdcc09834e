"""Loader of queries.sql files: the SQL statements of persistence and of its features, by name.

    -- name: last_turn
    -- The newest turn of a session.
    SELECT turn FROM turns WHERE …

A part that begins with `-- fragment: x` is not a statement; `{x}` includes it in the parts below it. A part with the
name of a database, such as `-- fragment: x (sqlite)`, exists only for that database. The statements of a feature may
include the core's fragments.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Literal

DatabaseKind = Literal["sqlite", "postgresql"]

PART = re.compile(r"^-- (name|fragment): (\w+)(?: \((\w+)\))?\n", re.MULTILINE)
COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


def load(text: str, system: DatabaseKind = "sqlite", fragments: dict[str, str] | None = None) -> dict[str, str]:
    """Returns the statements in `text`, without comments and with their fragments. KeyError for a missing fragment.

    `fragments` are further fragments that the text may include; those of the text are added to them.
    """
    statements: dict[str, str] = {}
    fragments = {} if fragments is None else fragments
    _, *parts = PART.split(text)
    for kind, name, only, part in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
        if only in (None, system):
            found = COMMENT.sub("", part).strip().format_map(fragments)
            (statements if kind == "name" else fragments)[name] = found
    return statements


def read_queries(package: str) -> str:
    """Returns the text of a package's queries.sql."""
    return (files(package) / "queries.sql").read_text(encoding="utf-8")


CORE = read_queries(__package__)


def statements(system: DatabaseKind, features: Iterable[str] = ()) -> Mapping[str, str]:
    """Returns the statements of the core, and of the texts of `features`. ValueError for two statements of one name."""
    fragments: dict[str, str] = {}
    found = load(CORE, system, fragments)
    for text in features:
        added = load(text, system, fragments.copy())
        if same := found.keys() & added.keys():
            raise ValueError(f"two statements have the same name: {', '.join(sorted(same))}")
        found |= added
    return found
