"""What people change, and is in no log: new sessions and projects, titles, and what they delete. It knows no NATS."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial

from tailrace.persistence.blob_gc import Releases
from tailrace.persistence.queries import Queries
from tailrace.persistence.resource_queries import Resources
from tailrace.persistence.rpc import Caught, answering
from tailrace.persistence.store import Store
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import Tombstones
from tailrace.proto.nats.rpc import Answer
from tailrace.proto.records import GetSession, GetTurn, SessionRecord
from tailrace.proto.resources import (
    CreateProject,
    CreateSession,
    DeleteResource,
    GetProject,
    ProjectRecord,
    Remaining,
    RenameSession,
)
from tailrace.proto.subjects import TurnKey


class Changes:
    """Every change names the tenant that makes it. What belongs to another one is not there."""

    def __init__(
        self, store: Store, tombstones: Tombstones, releases: Releases, queries: Queries, resources: Resources
    ) -> None:
        self._store = store
        self._tombstones = tombstones
        self._releases = releases
        self._queries = queries
        self._resources = resources

    def answers(self, caught_up: Caught) -> Mapping[str, Answer]:
        """By the names under which they are asked."""
        return dict(
            [
                answering(CreateSession, self.new_session, caught_up),
                answering(RenameSession, self.rename_session, caught_up),
                answering(CreateProject, self.new_project, caught_up),
                answering(DeleteResource, partial(self.delete, caught_up), caught_up),
            ]
        )

    async def new_session(self, tenant: Tenant, new: CreateSession) -> SessionRecord:
        if not await self._store.new_session(tenant, new, datetime.now(UTC)):
            raise Refused("session_exists", "there is a session of that name already")
        return await self._queries.session(tenant, GetSession(new.session))

    async def rename_session(self, tenant: Tenant, new: RenameSession) -> SessionRecord:
        await self._store.rename_session(tenant, new.session, new.title)
        return await self._queries.session(tenant, GetSession(new.session))

    async def new_project(self, tenant: Tenant, new: CreateProject) -> ProjectRecord:
        if not await self._store.new_project(tenant, new, datetime.now(UTC)):
            raise Refused("project_exists", "there is a project of that id already")
        return await self._resources.project(tenant, GetProject(new.project))

    async def delete(self, caught_up: Caught, tenant: Tenant, what: DeleteResource) -> Remaining:
        if what.purged:
            # Before it is asked what went on from them: what is stored until then is found here, and what is stored
            # later finds the tombstone. So nobody need be alive in between (ADR 15).
            await self._tombstones.put(TurnKey(tenant, turn) for turn in what.purged)
            await caught_up()
        else:
            # What a deletion before this one has not finished: who is told that nothing is there can rely on it.
            await self._releases.settle(tenant)
            await self._confirm_known(tenant, what)
        doomed = await self._store.doomed(tenant, what)
        if what.kind == "turn" and not {one.turn for one in doomed} <= set(what.purged):
            # Somebody has just gone on from them: without their rows, nobody would find what goes with them.
            return Remaining(doomed)
        await self._store.delete(tenant, what)
        await self._releases.settle(tenant)
        return Remaining(await self._store.doomed(tenant, what))

    async def _confirm_known(self, tenant: Tenant, what: DeleteResource) -> None:
        """Raises Refused. Later, nothing is left of a thing that is deleted."""
        match what.kind:
            case "turn":
                await self._queries.turn(tenant, GetTurn(TurnId(what.name)))
            case "session":
                await self._queries.session(tenant, GetSession(what.name))
            case "project":
                await self._resources.project(tenant, GetProject(what.name))
