"""Commands that change the database and are not entries of the log: sessions, projects, titles, deletion."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime

import structlog

from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.queries import Queries
from tailrace.persistence.resource_queries import ResourceQueries
from tailrace.persistence.rpc import CatchUp, QueryHandler
from tailrace.persistence.store import DELETE_TURNS_MAX, Store
from tailrace.persistence.unrecorded_turns import UnrecordedTurns
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Tombstones, TurnLog
from tailrace.proto.records import GetSession, GetTurn, SessionRecord
from tailrace.proto.resources import (
    ChangeSession,
    CreateProject,
    CreateSession,
    DeletedRows,
    DeleteResource,
    GetProject,
    ProjectRecord,
    Remaining,
    TurnToDelete,
)
from tailrace.proto.runtime.gather import gather_limited

logger = structlog.get_logger()

# Concurrent requests to NATS for one deletion.
PURGED_AT_ONCE = 16

EraseTenant = Callable[[Tenant], Awaitable[DeletedRows]]


class Commands:
    """Runs the commands of one tenant at a time; records of other tenants do not exist for it.

    Each command raises StoreError, and `delete` LogUnavailable, too.
    """

    def __init__(
        self,
        store: Store,
        log: TurnLog,
        tombstones: Tombstones,
        blobs: BlobCollector,
        queries: Queries,
        resources: ResourceQueries,
        catch_up: CatchUp,
        unrecorded: Sequence[UnrecordedTurns] = (),
        erase_tenant: Sequence[EraseTenant] = (),
    ) -> None:
        """`unrecorded` find the turns without rows; `erase_tenant` delete what features have of a tenant."""
        self._store = store
        self._log = log
        self._tombstones = tombstones
        self._blobs = blobs
        self._queries = queries
        self._resources = resources
        self._catch_up = catch_up
        self._unrecorded = unrecorded
        self._erase_tenant = erase_tenant

    def handlers(self) -> list[QueryHandler]:
        """Returns each command with the method that answers it."""
        return [
            (CreateSession, self.new_session),
            (ChangeSession, self.change_session),
            (CreateProject, self.new_project),
            (DeleteResource, self.delete),
        ]

    async def new_session(self, tenant: Tenant, new: CreateSession) -> SessionRecord:
        """Creates a session and returns it. Raises Refused if the name is in use."""
        if not await self._store.new_session(tenant, new, datetime.now(UTC)):
            raise Refused("session_exists", "`id`: a session with this name exists already: choose another name")
        return await self._queries.session(tenant, GetSession(new.session))

    async def change_session(self, tenant: Tenant, new: ChangeSession) -> SessionRecord:
        """Changes a session, except what is unset, and returns it. Raises Refused if the session does not exist."""
        await self._store.change_session(tenant, new)
        return await self._queries.session(tenant, GetSession(new.session))

    async def new_project(self, tenant: Tenant, new: CreateProject) -> ProjectRecord:
        """Creates a project and returns it. Raises Refused if the id is in use."""
        if not await self._store.new_project(tenant, new, datetime.now(UTC)):
            raise Refused("project_exists", "`id`: a project with this id exists already: choose another id")
        return await self._resources.project(tenant, GetProject(new.project))

    async def delete(self, tenant: Tenant, what: DeleteResource) -> Remaining:
        """Deletes the rows of the turns that the gateway has purged from the log; returns the turns that remain.

        The gateway purges those and repeats the command until none is left. Raises Refused if the resource does not
        exist.
        """
        if what.purged:
            # Tombstones come before the search for follow-ups: a follow-up that is stored before is found below, and
            # one that is stored later finds its parent's tombstone. Thus no process has to survive in between (ADR 15).
            purged = [TurnKey(tenant, turn) for turn in what.purged]
            await gather_limited(self._log.purge_events, purged, PURGED_AT_ONCE)
            await self._tombstones.put(purged)
            await self._catch_up()
        else:
            # First the blobs that an earlier deletion left: "not found" must mean that its blobs are gone as well.
            await self._blobs.collect(tenant)
            if what.kind == "turn" and (found := await self._find_unrecorded(TurnKey(tenant, TurnId(what.name)))):
                return Remaining([found])
            await self._require_exists(tenant, what)
        if unrecorded := await self._list_unrecorded(tenant, what):
            return Remaining(unrecorded)
        remaining = await self._store.turns_to_delete(tenant, what)
        if what.kind in ("turn", "user") and not _may_delete_rows([one.turn for one in remaining], set(what.purged)):
            # A new follow-up: the rows of its ancestors are needed to find it.
            return Remaining(remaining)
        rows = await self._store.delete(tenant, what)
        if what.kind == "tenant" and not await self._store.turns_to_delete(tenant, what):
            for erase in self._erase_tenant:
                rows += await erase(tenant)
        rows += DeletedRows(blobs=await self._blobs.collect(tenant))
        return Remaining(await self._store.turns_to_delete(tenant, what), rows)

    async def _find_unrecorded(self, key: TurnKey) -> TurnToDelete | None:
        """Returns a turn without a row, such as one with `store: false`."""
        for one in self._unrecorded:
            if found := await one.find_to_delete(key):
                return found
        return None

    async def _list_unrecorded(self, tenant: Tenant, what: DeleteResource) -> list[TurnToDelete]:
        """Returns some turns without rows that an erasure includes."""
        if what.kind not in ("user", "tenant"):
            return []
        user = what.name if what.kind == "user" else None
        return [turn for one in self._unrecorded for turn in await one.list_of_user(tenant, user)]

    async def _require_exists(self, tenant: Tenant, what: DeleteResource) -> None:
        """Raises Refused (…_not_found) if the turn, session or project does not exist."""
        match what.kind:
            case "turn":
                await self._queries.turn(tenant, GetTurn(TurnId(what.name)))
            case "session":
                await self._queries.session(tenant, GetSession(what.name))
            case "project":
                await self._resources.project(tenant, GetProject(what.name))
            case "user" | "tenant":
                # These are no resources: erasing them a second time finds nothing.
                pass


async def delete_again(store: Store, tombstones: Tombstones, log: TurnLog) -> None:
    """Deletes the rows of turns with a tombstone, which a restored database has again.

    The log keeps tombstones for a day. Raises LogUnavailable, StoreError.
    """
    count = 0

    async def delete(keys: Sequence[TurnKey]) -> int:
        # A turn that was stored again under its old id, see Recorder.
        stored = await log.find_stored(keys)
        turns: dict[Tenant, list[TurnId]] = {}
        for key in keys:
            if key not in stored:
                turns.setdefault(key.tenant, []).append(key.turn)
        rows = [
            await store.delete(tenant, DeleteResource("turn", deleted[0], tuple(deleted)))
            for tenant, deleted in turns.items()
        ]
        return sum(one.turns for one in rows)

    keys: list[TurnKey] = []
    async for key in tombstones.every():
        keys.append(key)
        if len(keys) == DELETE_TURNS_MAX:
            count += await delete(keys)
            keys = []
    count += await delete(keys)
    if count:
        logger.warning("turns that were deleted after the backup were deleted again", turns=count)


def _may_delete_rows(remaining: Sequence[TurnId], purged: Collection[TurnId]) -> bool:
    """Returns whether the rows of the purged turns may be deleted: they come first in `remaining`.

    It has follow-ups before their parents. So a turn that is not purged and comes before a purged one may continue it.
    Those after the purged ones are left, because an erasure works in parts.
    """
    are_purged = [turn in purged for turn in remaining]
    return not remaining or (are_purged[0] and are_purged == sorted(are_purged, reverse=True))
