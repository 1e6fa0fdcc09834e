"""Read queries about projects, branches, usage and statistics."""

from tailrace.persistence import paging
from tailrace.persistence.paging import PageCursor
from tailrace.persistence.queries import Queries
from tailrace.persistence.rpc import QueryHandler, page_of
from tailrace.persistence.store import Store
from tailrace.proto.errors import not_found
from tailrace.proto.ids import Tenant
from tailrace.proto.records import GetSession
from tailrace.proto.resources import (
    BilledUsageList,
    BranchPage,
    GetBilledUsage,
    GetProject,
    GetStats,
    GetUsage,
    ListBranches,
    ListProjects,
    ProjectPage,
    ProjectRecord,
    Stats,
    UsagePage,
)

TENANTS_MAX = 1000


class ResourceQueries:
    """Runs the queries of one tenant at a time; records of other tenants do not exist for it.

    Each query raises StoreError.
    """

    def __init__(self, store: Store, queries: Queries) -> None:
        self._store = store
        self._queries = queries

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [
            (GetProject, self.project),
            (ListProjects, self.projects),
            (ListBranches, self.branches),
            (GetUsage, self.usage),
            (GetBilledUsage, self.billed),
            (GetStats, self.stats),
        ]

    async def project(self, tenant: Tenant, query: GetProject) -> ProjectRecord:
        """Returns a project with its totals. Raises Refused if the tenant has no such project."""
        found = await self._store.project(tenant, query.project, self._queries.since)
        if found is None:
            raise not_found("project")
        return found

    async def projects(self, tenant: Tenant, query: ListProjects) -> ProjectPage:
        """Returns a page of projects: by number with `offset`, else by cursor, the newest first.

        Raises Refused for an invalid cursor.
        """
        limit, total = paging.clamp_limit(query.limit), None
        if query.offset is not None:
            offset = paging.clamp_offset(query.offset)
            found, total = await self._store.numbered_projects(tenant, offset, limit + 1, self._queries.since)
        else:
            before = paging.start(query.after, paging.NEWEST)
            found = await self._store.projects(tenant, before, limit + 1, self._queries.since)
        return ProjectPage(*await page_of(found, limit, lambda one: (one.created_at, one.id)), total)

    async def branches(self, tenant: Tenant, query: ListBranches) -> BranchPage:
        """Returns a page of branches, the newest first.

        Raises Refused if the session does not exist, or for an invalid cursor.
        """
        limit = paging.clamp_limit(query.limit)
        before = paging.start(query.after, paging.NEWEST)
        found = await self._store.leaves(tenant, query.session, before, limit + 1)
        if not found:
            await self._queries.session(tenant, GetSession(query.session))
        # Each branch may be 10,000 turns to read.
        branches = (await self._store.branch_to(tenant, leaf) for leaf in found)
        return BranchPage(*await page_of(branches, limit, lambda one: (one.asked_at, one.turn)))

    async def usage(self, tenant: Tenant, query: GetUsage) -> UsagePage:
        """Returns a page of totals, one for each value of `query.by`; with `query.key`, only that of this value.

        Raises Refused for an invalid cursor.
        """
        limit = paging.clamp_limit(query.limit)
        # The text with a NUL added is the next one after a text.
        start = f"{paging.decode(query.after).name}\0" if query.after is not None else query.key or ""
        found = await self._store.usage(tenant, query.by, query.first, query.last, start, limit + 1)
        if query.key is not None:
            found = [record for record in found[:1] if record.key == query.key]
        more = len(found) > limit
        cursor = paging.encode(PageCursor(0, found[limit - 1].key or "")) if more else None
        return UsagePage(found[:limit], cursor, await self._store.whole_since(tenant))

    async def billed(self, tenant: Tenant, query: GetBilledUsage) -> BilledUsageList:
        """Returns the usage by day and billed model, and the next tenants."""
        found = await self._store.billed_usage(tenant, query.first, query.last)
        tenants = await self._store.tenants_with_usage(tenant, TENANTS_MAX)
        return BilledUsageList(found, tenants, await self._store.whole_since(tenant))

    async def stats(self, tenant: Tenant, _: GetStats) -> Stats:
        """Returns the number of active sessions, recent usage, and the sessions that have a running turn."""
        since = self._queries.since
        return Stats(
            active_sessions=await self._store.active_sessions(tenant, since),
            by_model=await self._store.usage_since(tenant, since),
            running=await self._store.busy_sessions(tenant),
        )
