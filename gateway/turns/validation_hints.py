"""What would have fitted where a body did not: the fields, or the values, that its type has at that place. Pure."""

import re
from collections.abc import Iterable, Iterator

from msgspec import inspect

# What stands before the place may quote megabytes of the client's; steps are searched in quadratic time.
PLACE_CHARS_MAX = 200
# As msgspec ends its sentences: "… - at `$.messages[0].role`"; nothing for the outermost object.
PLACE = re.compile(r" - at `\$([^`]*)`$")
STEP = re.compile(r"\.[^.\[]+|\[[^\]]*\]")


def fitting(kind: type, problem: str) -> list[str]:
    """The fields after msgspec's "unknown field", the values after its "invalid enum value"; else nothing."""
    place = PLACE.search(problem[-PLACE_CHARS_MAX:])
    found = [inspect.type_info(kind)]
    for step in STEP.findall(place[1] if place else ""):
        found = [inner for one in _plain(found) for inner in _inside(one, step)]
    return list(_names(found, problem))


def _names(found: Iterable[inspect.Type], problem: str) -> Iterator[str]:
    for one in _plain(found):
        match one:
            case inspect.StructType(fields=fields) if problem.startswith("Object contains unknown field"):
                yield from (field.encode_name for field in fields)
            case inspect.LiteralType(values=values) if problem.startswith("Invalid enum value"):
                yield from map(str, values)


def _inside(one: inspect.Type, step: str) -> Iterator[inspect.Type]:
    match one:
        case inspect.StructType(fields=fields):
            yield from (field.type for field in fields if f".{field.encode_name}" == step)
        case inspect.ListType(item_type=inner) | inspect.DictType(value_type=inner) if step.startswith("["):
            yield inner


def _plain(found: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """Each of `found`, and instead of a union its members."""
    for one in found:
        if isinstance(one, inspect.UnionType):
            yield from one.types
        else:
            yield one
