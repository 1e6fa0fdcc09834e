"""Parameters of other protocols that Claude does not support: which are ignored, which are refused, and why.

A parameter that does not change the meaning of the answer is ignored, and named in the response header
`tailrace-ignored`; any other is refused. A value that asks for nothing special, such as the default, is accepted.
Each protocol has its own table.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tailrace.proto.errors import Refused

IGNORED, REFUSED = False, True
# Only plain names are returned in the response header.
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAMES_MAX = 20


class UnsupportedParameter(NamedTuple):
    """A parameter. `allowed`: the values besides null that ask for nothing special."""

    name: str
    allowed: tuple[object, ...]
    is_refused: bool
    reason: str


def ignored_parameters(body: Any, table: Iterable[UnsupportedParameter], where: str = "") -> Iterator[str]:
    """Yields the names of parameters that are ignored. Raises Refused for the others.

    `body` is a Struct that has a field for each row of the table. `where` precedes the names in messages.
    """
    for parameter in table:
        value = getattr(body, parameter.name)
        if value is None or value in parameter.allowed:
            continue
        if parameter.is_refused:
            raise Refused("request_invalid", f"`{where}{parameter.name}` is not supported: {parameter.reason}")
        yield parameter.name


def plain_names(names: Iterable[str]) -> list[str]:
    """Returns the names of unknown fields that a header can hold: each once, and not too many."""
    return [name for name in dict.fromkeys(names) if NAME.fullmatch(name)][:NAMES_MAX]


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """Returns the response header with the ignored names; no header if there are none."""
    return {"tailrace-ignored": ", ".join(names)} if names else {}
