"""The answer to who deletes a turn, a session or a project. How that is done is not decided here."""

from typing import Literal

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.dependencies import Gateway, gateway_of, turn_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.turns.delete import delete
from tailrace.proto.ids import Tenant
from tailrace.proto.resources import Kind

logger = structlog.get_logger()

Deletion = Literal["turn.deleted", "session.deleted", "project.deleted"]
OBJECTS: dict[Kind, Deletion] = {"turn": "turn.deleted", "session": "session.deleted", "project": "project.deleted"}


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """That it is gone, as OpenAI's API says it and other servers for Claude; `turns` is how many went with it."""

    id: str
    object: Deletion
    deleted: bool = True
    turns: int
    session_id: str | UnsetType = UNSET
    project_id: str | UnsetType = UNSET
    status: Literal["deleted"] = "deleted"


async def delete_turn(request: Request) -> Response:
    """`DELETE /v1/turns/{turn}`: the turn, and those that went on from it: their requests repeat what it said."""
    key = turn_of(request)
    return await deleted(gateway_of(request), key.tenant, "turn", key.turn)


async def deleted(gateway: Gateway, tenant: Tenant, kind: Kind, name: str) -> Response:
    """Deletes, and says so."""
    turns = await delete(gateway, tenant, kind, name)
    logger.info("deleted", kind=kind, turns=turns)
    return json_response(
        Deleted(
            id=name,
            object=OBJECTS[kind],
            turns=turns,
            session_id=name if kind == "session" else UNSET,
            project_id=name if kind == "project" else UNSET,
        )
    )


ROUTES = [Route("/v1/turns/{turn}", delete_turn, methods=["DELETE"])]
