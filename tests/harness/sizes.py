"""How much an object keeps: to see that nothing is left of what has ended."""

from collections.abc import Sized


def sizes_of(instance: object) -> dict[str, int]:
    """Returns how many items each collection among the attributes has."""
    return {name: len(value) for name, value in vars(instance).items() if isinstance(value, Sized)}
