"""Projects in the database: groups of sessions, with their totals. A turn or session creates one by naming it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tailrace.features.projects.records import CreateProject, GetProject, ListProjects, ProjectPage, ProjectRecord
from tailrace.persistence import paging
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.paging import PageCursor
from tailrace.persistence.queries import Queries, scope_of
from tailrace.persistence.rows import micros, moment, totals_of
from tailrace.persistence.rpc import QueryHandler, page_of
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import Store
from tailrace.persistence.tables import Deletion, Tables
from tailrace.proto.errors import Refused, not_found
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.settings import NoSettings


class ProjectTable:
    """The projects of all tenants. A project that was used after `since` is active. Every method raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def new_project(self, tenant: Tenant, new: CreateProject, at: datetime) -> bool:
        """Inserts a project. Returns False, and changes nothing, if the id is in use."""
        columns = {"tenant": tenant, **msgspec.structs.asdict(new), "created_at": micros(at)}
        async with self._store.write(tenant) as writer:
            return await writer.execute("create_project", columns) > 0

    async def project(self, tenant: Tenant, project: str, since: datetime) -> ProjectRecord | None:
        """Returns the project, or None."""
        rows = await self._store.read("project", tenant=tenant, project=project)
        return project_record(rows[0], since) if rows else None

    async def projects(self, tenant: Tenant, before: PageCursor, limit: int, since: datetime) -> list[ProjectRecord]:
        """Returns projects created before `before`, newest first."""
        rows = await self._store.read("projects", tenant=tenant, before_at=before.at, before=before.name, limit=limit)
        return [project_record(row, since) for row in rows]

    async def numbered_projects(
        self, tenant: Tenant, offset: int, limit: int, since: datetime
    ) -> tuple[list[ProjectRecord], int]:
        """Returns the projects after the first `offset`, newest first, and the total number of projects."""
        rows = await self._store.read("projects_from", tenant=tenant, limit=limit, offset=offset)
        counted = await self._store.read("count_projects", tenant=tenant)
        return [project_record(row, since) for row in rows], counted[0]["total"]


class ProjectQueries:
    """Runs the queries and commands of one tenant at a time. Each raises StoreError."""

    def __init__(self, store: Store, queries: Queries) -> None:
        self._table = ProjectTable(store)
        self._queries = queries

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [(GetProject, self.project), (ListProjects, self.projects), (CreateProject, self.new_project)]

    async def project(self, tenant: Tenant, query: GetProject) -> ProjectRecord:
        """Returns a project with its totals. Raises Refused if the tenant has no such project."""
        found = await self._table.project(tenant, query.project, self._queries.since)
        if found is None or not scope_of(tenant, query).is_whole_tenant:
            raise not_found("project")
        return found

    async def projects(self, tenant: Tenant, query: ListProjects) -> ProjectPage:
        """Returns a page of projects: by number with `offset`, else by cursor, the newest first.

        Raises Refused for an invalid cursor.
        """
        limit, total = paging.clamp_limit(query.limit), None
        if not scope_of(tenant, query).is_whole_tenant:
            # Projects are the tenant's.
            return ProjectPage([], None, None if query.offset is None else 0)
        if query.offset is not None:
            offset = paging.clamp_offset(query.offset)
            found, total = await self._table.numbered_projects(tenant, offset, limit + 1, self._queries.since)
        else:
            before = paging.start(query.after, paging.NEWEST)
            found = await self._table.projects(tenant, before, limit + 1, self._queries.since)
        return ProjectPage(*await page_of(found, limit, lambda one: (one.created_at, one.id)), total)

    async def new_project(self, tenant: Tenant, new: CreateProject) -> ProjectRecord:
        """Creates a project and returns it. Raises Refused if the id is in use."""
        if not await self._table.new_project(tenant, new, datetime.now(UTC)):
            raise Refused("project_exists", "`id`: a project with this id exists already: choose another id")
        return await self.project(tenant, GetProject(new.project))

    async def require_exists(self, tenant: Tenant, project: str) -> None:
        """Raises Refused if the tenant has no such project."""
        await self.project(tenant, GetProject(project))


def project_record(row: Mapping[str, Any], since: datetime) -> ProjectRecord:
    """Returns the project in a row. The project is active if it was used after `since`."""
    return ProjectRecord(
        id=row["project"],
        name=row["name"],
        description=row["description"],
        created_at=moment(row["created_at"]),
        updated_at=moment(row["updated_at"]),
        is_active=moment(row["updated_at"]) > since,
        sessions=row["sessions"],
        **totals_of(row),
    )


def _start(services: Services, _: NoSettings) -> Parts:
    queries = ProjectQueries(services.store, services.queries)
    return Parts(queries.handlers(), require_exists={"project": queries.require_exists})


TABLES = Tables(
    read_queries(__package__),
    put_session=["put_project"],
    erase_tenant=[("projects", "delete_tenant_projects")],
    deletions={
        "project": Deletion(
            "project_turn_ids",
            (("sessions", "delete_project_sessions"), ("projects", "delete_project")),
            has_many_sessions=True,
            names=lambda name, is_gone: [("project", name, name)] if is_gone else [],
        )
    },
)
FEATURE = Feature(NoSettings, _start, TABLES)
