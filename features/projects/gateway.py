"""Routes of projects: groups of sessions."""

import msgspec
from starlette.responses import Response

from tailrace.features.projects.records import CreateProject, GetProject, ListProjects, ProjectRecord
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import KEY_OF_RESOURCE, NUMBERED_PAGE
from tailrace.gateway.http.route import PROJECTS, Route
from tailrace.gateway.resources.create_once import create_once
from tailrace.gateway.resources.deletion import DeletedObject, delete_response
from tailrace.gateway.resources.paging import NumberedPage, number_of
from tailrace.gateway.resources.sessions import check_text
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.request_body import check_name
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, folder_name
from tailrace.proto.nats import Claims
from tailrace.proto.runtime.settings import NoSettings

NAME_CHARS_MAX = 200
DESCRIPTION_CHARS_MAX = 10_000


class NewProjectBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/projects`."""

    name: str
    """The name of the project for people."""
    description: str | None = None
    """The purpose of the project."""
    id: str | None = None
    """The id of the project; the gateway makes one if it is left out."""
    path: str | None = None
    """Refused: the folder of a project follows from its id."""


class Project(ProjectRecord, frozen=True, kw_only=True):
    """A project. `path`: its folder, below the folder of all projects, if Claude Code answers."""

    path: str
    """The folder of the project, if Claude Code answers its turns."""


class ProjectList(NumberedPage[Project], frozen=True, kw_only=True):
    """Projects, newest first."""


def with_path(tenant: Tenant, record: ProjectRecord) -> Project:
    path = f"{folder_name(tenant)}/{folder_name(record.id)}"
    return Project(**msgspec.structs.asdict(record), path=path)


async def projects(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/projects`: all projects, newest first, in pages.

    Each project has the totals of its sessions. A page is requested by `after`, or by its number.
    """
    scope, page = request.access, number_of(request)
    found = await history.query(scope, ListProjects(page.after, page.limit, page.offset))
    return json_response(
        ProjectList(
            data=[with_path(scope.tenant, record) for record in found.projects],
            next=found.next,
            pagination=page.pagination(found.total, len(found.projects), has_more=found.next is not None),
        )
    )


async def post(request: ApiRequest, admissions: Admissions, history: HistoryClient, claims: Claims) -> Response:
    """`POST /v1/projects`: creates a project. Status 200, which clients of other servers check.

    A project groups sessions. If Claude Code answers, the project has a folder of its own.
    """
    scope = request.access
    new, raw = await request.read(NewProjectBody)
    check_name("id", new.id)
    if new.path is not None:
        raise Refused("request_invalid", "`path` follows from the project's id: leave it out")
    check_text("name", new.name, NAME_CHARS_MAX)
    check_text("description", new.description, DESCRIPTION_CHARS_MAX)

    async def create(name: str) -> ProjectRecord:
        async with admissions.count(request.principal, len(raw)):
            return await history.query(scope, CreateProject(name, new.name, new.description))

    async def find(name: str) -> ProjectRecord:
        return await history.query(scope, GetProject(name))

    made = await create_once(request, raw, claims, "project", new.id, create, find)
    return json_response(with_path(scope.tenant, made), headers={"location": f"/v1/projects/{made.id}"})


async def project(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/projects/{project}`: one project, with the totals of its sessions."""
    scope = request.access
    query = GetProject(request.path_params["project"])
    return json_response(with_path(scope.tenant, await history.query(scope, query)))


async def delete(request: ApiRequest, deleter: Deleter) -> Response:
    """`DELETE /v1/projects/{project}`: deletes a project with all its sessions and turns.

    The text of the turns is erased from the log and the database. Sums of usage keep the tokens and the cost. The
    project's folder of Claude Code remains, and a new project with the same id gets it.
    """
    scope = request.access
    return await delete_response(deleter, scope, "project", request.path_params["project"])


ROUTES = [
    Route("GET", "/v1/projects", projects, "read", PROJECTS, result=ProjectList, parameters=NUMBERED_PAGE),
    Route(
        "POST",
        "/v1/projects",
        post,
        "manage",
        PROJECTS,
        body=NewProjectBody,
        result=Project,
        parameters=(KEY_OF_RESOURCE,),
    ),
    Route("GET", "/v1/projects/{project}", project, "read", PROJECTS, result=Project),
    Route("DELETE", "/v1/projects/{project}", delete, "manage", PROJECTS, result=DeletedObject),
]
FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
