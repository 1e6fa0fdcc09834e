"""The turn that a request of a client protocol asks for."""

from collections.abc import Mapping
from typing import NamedTuple

from tailrace.gateway.turns.request_body import NewTurn


class BuiltTurn(NamedTuple):
    """The turn of a request."""

    turn: NewTurn
    ignored: list[str]
    """The parameters of the request that were ignored."""
    names: Mapping[str, str]
    """The request's name of each field of the turn that the request names differently."""
