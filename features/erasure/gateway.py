"""Routes that erase all data of a user, and of the tenant itself."""

from typing import Literal

import msgspec
import structlog
from starlette.responses import Response

from tailrace.features.erasure.erasure import Eraser
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import PROJECTS, Route, query, required
from tailrace.gateway.resources.paging import limit_of
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.request_body import check_user
from tailrace.proto.errors import Refused
from tailrace.proto.resources import DeletedRows
from tailrace.proto.runtime.settings import NoSettings

logger = structlog.get_logger()

SECONDS_MAX = 600
KEPT = "the sums of usage by day, model and key, without names"


class ErasureReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of an erasure: counts of what was erased in the log and in the database; 0 if there was nothing."""

    object: Literal["user.erased", "tenant.erased"]
    """The erased data."""
    id: str
    """The name of the erased user or tenant."""
    turns: int
    """The number of turns that were erased completely."""
    log_entries: int
    """Entries of NATS's log that were overwritten. The log has the turns of the last day."""
    rows: DeletedRows
    """Rows of the database, which are overwritten with zeros."""
    complete: bool = True
    """False: something is left, because the time of `max_seconds` was over. Repeat the request, and add its counts."""
    kept: str = KEPT
    """The data that remains, in one sentence."""


async def delete_user(request: ApiRequest, eraser: Eraser) -> Response:
    """`DELETE /v1/users?user=NAME`: erases the turns and sessions of a user, and the turns that continue them.

    For a request under the GDPR. The response counts what was erased, and says what remains. With `max_seconds`, the
    response comes after about so many seconds. `complete` then says whether all is erased; if not, repeat the request.
    """
    user = request.query_params.get("user", "")
    check_user(user)
    return await _erase(eraser, request, "user", user)


async def delete_tenant(request: ApiRequest, eraser: Eraser) -> Response:
    """`DELETE /v1/tenant?confirm=TENANT`: erases all turns, sessions, projects and files of the credential's tenant.

    `confirm` repeats the name of the tenant, against mistakes. Keys, sums of usage and the folders of Claude Code
    remain.
    """
    tenant = request.access.tenant
    if request.query_params.get("confirm") != tenant:
        raise Refused(
            "request_invalid",
            f"`confirm` must be {tenant}, the name of your tenant: the request then erases everything of this tenant",
        )
    return await _erase(eraser, request, "tenant", tenant)


async def _erase(eraser: Eraser, request: ApiRequest, kind: Literal["user", "tenant"], name: str) -> Response:
    if not request.access.is_whole_tenant:
        # An erasure is about a person, whoever has made the turns.
        raise Refused(
            "users_private", "a private user cannot erase data of a user or the tenant: use an API key of the tenant"
        )
    within_s = (
        limit_of(request, SECONDS_MAX, SECONDS_MAX, "max_seconds") if "max_seconds" in request.query_params else None
    )
    done = await eraser.erase(request.access, kind, name, within_s)
    logger.info("erased", kind=kind, turns=done.turns, complete=done.is_complete)
    object_: Literal["user.erased", "tenant.erased"] = "user.erased" if kind == "user" else "tenant.erased"
    return json_response(
        ErasureReport(
            object=object_,
            id=name,
            turns=done.turns,
            log_entries=done.log_entries,
            rows=done.rows,
            complete=done.is_complete,
        )
    )


MAX_SECONDS = query(
    "max_seconds",
    "Respond after about so many seconds, with `complete: false` if not all is erased.",
    type="integer",
    minimum=1,
    maximum=SECONDS_MAX,
)
ERASED_USER = required(query("user", "The user whose data is erased.", examples=["ann"]))
CONFIRM = required(query("confirm", "The name of the tenant.", examples=["acme"]))

ROUTES = [
    Route(
        "DELETE",
        "/v1/users",
        delete_user,
        "manage",
        PROJECTS,
        result=ErasureReport,
        parameters=(ERASED_USER, MAX_SECONDS),
    ),
    Route(
        "DELETE",
        "/v1/tenant",
        delete_tenant,
        "manage",
        PROJECTS,
        result=ErasureReport,
        parameters=(CONFIRM, MAX_SECONDS),
    ),
]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the service that erases."""
    return Parts(services=(Eraser(gateway),))


FEATURE = Feature(NoSettings, start, routes=ROUTES)
