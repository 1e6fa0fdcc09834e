"""Parameters of other protocols that Claude does not support: which are ignored, which are refused, and why.

A parameter that does not change the meaning of the answer is ignored, and named in the response header
`tailrace-ignored`; any other is refused. A value that asks for nothing special, such as the default, is accepted. The
field of the parameter says so: `seed: Annotated[Any, ignored("Claude has no seed")] = None`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple, get_args

import msgspec

from tailrace.proto.errors import Refused

# Only plain names are returned in the response header.
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAMES_MAX = 20


class Unsupported(NamedTuple):
    """The annotation of a field. `allowed`: the values besides null that ask for nothing special."""

    reason: str
    allowed: tuple[object, ...]
    is_refused: bool


def ignored(reason: str, *allowed: object) -> Unsupported:
    """Returns the annotation of a parameter that has no effect."""
    return Unsupported(reason, allowed, is_refused=False)


def refused(reason: str, *allowed: object) -> Unsupported:
    """Returns the annotation of a parameter with which a request is refused."""
    return Unsupported(reason, allowed, is_refused=True)


@cache
def unsupported_fields(struct: type[msgspec.Struct]) -> dict[str, Unsupported]:
    """Returns the unsupported parameters among the fields of a Struct, by name."""
    annotated = ((field.name, one) for field in msgspec.structs.fields(struct) for one in get_args(field.type)[1:])
    return {name: one for name, one in annotated if isinstance(one, Unsupported)}


def ignored_parameters(body: msgspec.Struct, where: str = "") -> Iterator[str]:
    """Yields the names of parameters that are ignored, also in objects of the body. Raises Refused for the others.

    `where` precedes the names in messages.
    """
    unsupported = unsupported_fields(type(body))
    for name in body.__struct_fields__:
        value, parameter = getattr(body, name), unsupported.get(name)
        if isinstance(value, msgspec.Struct):
            yield from (f"{name}.{inner}" for inner in ignored_parameters(value, f"{where}{name}."))
        elif parameter is None or value is None or value in parameter.allowed:
            continue
        elif parameter.is_refused:
            raise Refused("request_invalid", f"`{where}{name}` is not supported: {parameter.reason}")
        else:
            yield name


def plain_names(names: Iterable[str]) -> list[str]:
    """Returns the names of unknown fields that a header can hold: each once, and not too many."""
    return [name for name in dict.fromkeys(names) if NAME.fullmatch(name)][:NAMES_MAX]


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """Returns the response header with the ignored names; no header if there are none."""
    return {"tailrace-ignored": ", ".join(names)} if names else {}
