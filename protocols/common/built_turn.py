"""The turn that a request of a client protocol asks for, and its answer."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.types import ASGIApp

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.respond import Responder
from tailrace.protocols.common.field_names import name_as_client
from tailrace.protocols.common.unsupported import ignored_header


class BuiltTurn(NamedTuple):
    """The turn of a request."""

    turn: NewTurn
    ignored: list[str]
    """The parameters of the request that were ignored."""
    names: Mapping[str, str]
    """The request's name of each field of the turn that the request names differently."""


async def answer(
    responder: Responder, request: ApiRequest, built: BuiltTurn, raw: bytes, dialect: Dialect, **more: Any
) -> ASGIApp:
    """Submits the turn and returns its answer, with the ignored parameters in a header. `more`: see Responder.answer.

    Raises Refused with the request's names, LogError.
    """
    with name_as_client(built.names):
        headers = ignored_header(built.ignored)
        return await responder.answer(request, built.turn, raw, dialect, headers=headers, **more)
