"""Parameters that another protocol has and Claude has not: what is ignored, what refused, and why. Pure.

Ignored is what changes nothing in the meaning of an answer, and each is named to the client in the response; refused
is what would. A value that asks for nothing is taken without a word. The tables themselves stand with their protocol.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused

IGNORED, REFUSED = False, True


class Foreign(NamedTuple):
    """`idle`: the values that ask for nothing, besides null."""

    name: str
    idle: tuple[object, ...]
    is_refused: bool
    why: str


class Asked(NamedTuple):
    """The question, and the names of what was asked in vain."""

    ask: NewTurn
    ignored: list[str]


def ignored(given: Any, table: Iterable[Foreign]) -> Iterator[str]:
    """The names of what `given`, a Struct with those fields, asks in vain; raises Refused for what has a meaning."""
    for foreign in table:
        value = getattr(given, foreign.name)
        if value is None or value in foreign.idle:
            continue
        if foreign.is_refused:
            raise Refused("request_invalid", f"`{foreign.name}` is not supported: {foreign.why}")
        yield foreign.name


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The response header that names them; none when there are none."""
    return {"tailrace-ignored": ", ".join(names)} if names else {}
