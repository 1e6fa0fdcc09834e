"""Joins the parts of features. A part that would replace one of another feature is refused."""

from collections.abc import Iterable
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def at_most_one(values: Iterable[T | None], name: str) -> T | None:
    """Returns the only value that is not None, or None without one. Raises ValueError if there are several."""
    found = [value for value in values if value is not None]
    if len(found) > 1:
        raise ValueError(f"{len(found)} features provide the {name}: at most one may")
    return found[0] if found else None


def join_distinct(parts: Iterable[tuple[K, T]], name: str) -> dict[K, T]:
    """Returns the values by their keys, in the same order. Raises ValueError if two have the same key."""
    joined: dict[K, T] = {}
    for key, value in parts:
        if key in joined:
            raise ValueError(f"two parts provide the {name} {key}, and one would replace the other: remove a feature")
        joined[key] = value
    return joined
