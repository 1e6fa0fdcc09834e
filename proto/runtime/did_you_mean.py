"""Suggests the known name that is most similar to an unknown one: for settings, fields and query parameters."""

from collections.abc import Collection
from difflib import get_close_matches

# Comparing takes quadratic time, and a client chooses the name.
NAME_CHARS_MAX = 100
SIMILARITY_MIN = 0.6


def find_closest(name: str, known: Collection[str], similarity_min: float = SIMILARITY_MIN) -> str | None:
    """Returns the most similar of `known`, or None if none is similar."""
    found = get_close_matches(name[:NAME_CHARS_MAX], sorted(known), 1, similarity_min)
    return found[0] if found else None


def suggest(name: str, known: Collection[str], prefix: str = "") -> str:
    """Returns a hint with the most similar of `known`, or an empty text.

    Names are compared without their common `prefix`, which would make all of them similar.
    """
    bare = {each.removeprefix(prefix): each for each in known}
    found = find_closest(name.removeprefix(prefix), bare)
    return "" if found is None else f" (did you mean {bare[found]}?)"
