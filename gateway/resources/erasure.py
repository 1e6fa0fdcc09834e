"""Routes that erase all data of a user, and of the tenant itself."""

from typing import Literal

import msgspec
import structlog
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.request_body import check_user
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.resources import DeletedRows

logger = structlog.get_logger()

KEPT = "the sums of usage by day, model and key, without names"


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """The report of an erasure: counts of what was erased in the log and in the database; 0 if there was nothing."""

    object: Literal["user.erased", "tenant.erased"]
    """What was erased."""
    id: str
    """The name of the erased user or tenant."""
    turns: int
    """The number of erased turns."""
    log_entries: int
    """Entries of NATS's log that were overwritten. The log has the turns of the last day."""
    rows: DeletedRows
    """Rows of the database, which are overwritten with zeros."""
    kept: str = KEPT
    """What remains, in one sentence."""


async def delete_user(request: ApiRequest, deleter: Deleter) -> Response:
    """`DELETE /v1/users?user=NAME`: erases the turns and sessions of a user, and the turns that continue them.

    For a request under the GDPR. The response counts what was erased, and says what remains.
    """
    user = request.query_params.get("user", "")
    check_user(user)
    return await _erase(deleter, request.tenant, "user", user)


async def delete_tenant(request: ApiRequest, deleter: Deleter) -> Response:
    """`DELETE /v1/tenant?confirm=TENANT`: erases all turns, sessions, projects and files of the credential's tenant.

    `confirm` repeats the name of the tenant, against mistakes. Keys, sums of usage and the folders of Claude Code
    remain.
    """
    tenant = request.tenant
    if request.query_params.get("confirm") != tenant:
        raise Refused(
            "request_invalid",
            f"your key belongs to the tenant {tenant}: to erase everything of this tenant, repeat its name",
            param="confirm",
        )
    return await _erase(deleter, tenant, "tenant", tenant)


async def _erase(deleter: Deleter, tenant: Tenant, kind: Literal["user", "tenant"], name: str) -> Response:
    done = await deleter.erase(tenant, kind, name)
    logger.info("erased", kind=kind, turns=done.turns)
    object_: Literal["user.erased", "tenant.erased"] = "user.erased" if kind == "user" else "tenant.erased"
    return json_response(
        Erased(object=object_, id=name, turns=done.turns, log_entries=done.log_entries, rows=done.rows)
    )


ROUTES = [
    Route("/v1/users", delete_user, methods=["DELETE"]),
    Route("/v1/tenant", delete_tenant, methods=["DELETE"]),
]
