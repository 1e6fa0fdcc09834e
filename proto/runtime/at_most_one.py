"""The only value among those of features that may have one."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def at_most_one(values: Iterable[T | None], name: str) -> T | None:
    """Returns the only value that is not None, or None without one. Raises ValueError if there are several."""
    found = [value for value in values if value is not None]
    if len(found) > 1:
        raise ValueError(f"{len(found)} features provide the {name}: at most one may")
    return found[0] if found else None
