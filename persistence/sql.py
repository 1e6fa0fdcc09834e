"""Loader of queries.sql: the SQL statements of persistence by name.

    -- name: last_turn
    -- The newest turn of a session.
    SELECT turn FROM turns WHERE …

A part that begins with `-- fragment: x` is no statement; `{x}` includes it in the parts below it.
"""

import re
from collections.abc import Mapping
from importlib.resources import files

PART = re.compile(r"^-- (name|fragment): (\w+)\n", re.MULTILINE)
COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


def load(text: str) -> Mapping[str, str]:
    """Returns the statements in `text`, without comments and with their fragments. KeyError for a missing fragment."""
    statements: dict[str, str] = {}
    fragments: dict[str, str] = {}
    _, *parts = PART.split(text)
    for kind, name, part in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        found = COMMENT.sub("", part).strip().format_map(fragments)
        (statements if kind == "name" else fragments)[name] = found
    return statements


STATEMENTS = load((files(__package__) / "queries.sql").read_text(encoding="utf-8"))
