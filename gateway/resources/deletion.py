"""Route that deletes a turn, and the response of all deletions."""

from typing import Literal

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import TURNS, Route
from tailrace.gateway.turns.delete import Deleter
from tailrace.proto.ownership import Scope
from tailrace.proto.resources import Kind

logger = structlog.get_logger()

Deletion = Literal["turn.deleted", "session.deleted", "project.deleted"]
OBJECTS: dict[Kind, Deletion] = {"turn": "turn.deleted", "session": "session.deleted", "project": "project.deleted"}


class DeletedObject(msgspec.Struct, frozen=True, kw_only=True):
    """The deleted object, in the format of OpenAI's API; `turns`: how many turns were deleted."""

    id: str
    """The id of the deleted object."""
    object: Deletion
    """The type of the deleted object."""
    deleted: bool = True
    """Always true: an object that does not exist gets 404."""
    turns: int
    """The number of deleted turns."""
    session_id: str | UnsetType = UNSET
    """The id of a deleted session."""
    project_id: str | UnsetType = UNSET
    """The id of a deleted project."""
    status: Literal["deleted"] = "deleted"
    """The same as `deleted`, as other servers for Claude report it."""


async def delete_turn(request: ApiRequest, deleter: Deleter) -> Response:
    """`DELETE /v1/turns/{turn}`: deletes the turn and those that continue it, whose requests repeat its text.

    The text is erased from the log and the database. Sums of usage keep the tokens and the cost.
    """
    key = request.turn()
    return await delete_response(deleter, key.scope, "turn", key.turn)


async def delete_response(deleter: Deleter, scope: Scope, kind: Kind, name: str) -> Response:
    """Deletes a turn, session or project with its turns and returns the response. Raises Refused."""
    turns = await deleter.delete(scope, kind, name)
    logger.info("deleted", kind=kind, turns=turns)
    return json_response(
        DeletedObject(
            id=name,
            object=OBJECTS[kind],
            turns=turns,
            session_id=name if kind == "session" else UNSET,
            project_id=name if kind == "project" else UNSET,
        )
    )


ROUTES = [
    Route("DELETE", "/v1/turns/{turn}", delete_turn, "manage", TURNS, result=DeletedObject),
]
