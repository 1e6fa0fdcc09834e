"""Loader of queries.sql files: the SQL statements of persistence and of its features, by name.

    -- name: last_turn
    -- The newest turn of a session.
    SELECT turn FROM turns WHERE …

A part that begins with `-- fragment: x` is not a statement; `{x}` includes it in the parts below it. The statements of
a feature may include the core's fragments. These texts are SQLite's; another database has a text of its own, of which
each part replaces the part of the same kind and name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files

PART = re.compile(r"^-- (name|fragment): (\w+)\n", re.MULTILINE)
COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


def load(
    text: str, replaced: Mapping[tuple[str, str], str] | None = None, fragments: dict[str, str] | None = None
) -> dict[str, str]:
    """Returns the statements in `text`, without comments and with their fragments. KeyError for a missing fragment.

    `replaced` are the `parts` of a database's own text. `fragments` are further fragments that the text may include;
    those of the text are added to them.
    """
    statements: dict[str, str] = {}
    fragments = {} if fragments is None else fragments
    for (kind, name), part in parts(text):
        found = (replaced or {}).get((kind, name), part).format_map(fragments)
        (statements if kind == "name" else fragments)[name] = found
    return statements


def parts(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yields the parts of a text without comments, each after its kind (`name` or `fragment`) and name."""
    _, *found = PART.split(text)
    for kind, name, part in zip(found[::3], found[1::3], found[2::3], strict=True):
        yield (kind, name), COMMENT.sub("", part).strip()


def read_queries(package: str) -> str:
    """Returns the text of a package's queries.sql."""
    return (files(package) / "queries.sql").read_text(encoding="utf-8")


CORE = read_queries(__package__)


def statements(features: Iterable[str] = (), own: str = "") -> Mapping[str, str]:
    """Returns the statements of the core, and of the texts of `features`. ValueError for two statements of one name.

    `own` is the text of a database whose parts replace those of the others.
    """
    fragments: dict[str, str] = {}
    replaced = dict(parts(own))
    found = load(CORE, replaced, fragments)
    for text in features:
        added = load(text, replaced, fragments.copy())
        if same := found.keys() & added.keys():
            raise ValueError(f"two statements have the same name: {', '.join(sorted(same))}")
        found |= added
    return found
