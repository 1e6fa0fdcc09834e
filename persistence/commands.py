"""Commands that change the database and are not entries of the log: sessions, titles, deletion."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import structlog

from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.queries import Queries, scope_of, users_private
from tailrace.persistence.rpc import CatchUp, QueryHandler
from tailrace.persistence.store import DELETE_TURNS_MAX, Store
from tailrace.persistence.unrecorded_turns import UnrecordedTurns
from tailrace.proto.errors import Refused, not_found
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Tombstones, TurnLog
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.records import GetSession, GetTurn, SessionRecord
from tailrace.proto.resources import (
    ChangeSession,
    CreateSession,
    DeletedRows,
    DeleteResource,
    Kind,
    Remaining,
    TurnToDelete,
)
from tailrace.proto.runtime.gather import gather_limited

logger = structlog.get_logger()

# Concurrent requests to NATS for one deletion.
PURGED_AT_ONCE = 16

EraseTenant = Callable[[Tenant], Awaitable[DeletedRows]]
RequireExists = Callable[[Tenant, str], Awaitable[None]]
"""Raises Refused (…_not_found) if the tenant has no resource of this name."""


class Commands:
    """Runs the commands of one tenant at a time; it does not find records of other tenants.

    Each command raises StoreError, and `delete` LogUnavailable, too.
    """

    def __init__(
        self,
        store: Store,
        log: TurnLog,
        tombstones: Tombstones,
        blobs: BlobCollector,
        queries: Queries,
        catch_up: CatchUp,
        unrecorded: Sequence[UnrecordedTurns] = (),
        erase_tenant: Sequence[EraseTenant] = (),
        require_exists: Mapping[Kind, RequireExists] | None = None,
    ) -> None:
        """`unrecorded` find the turns without rows; `erase_tenant` delete the features' data of a tenant.

        `require_exists` has a function for each kind of resource of a feature.
        """
        self._store = store
        self._log = log
        self._tombstones = tombstones
        self._blobs = blobs
        self._queries = queries
        self._catch_up = catch_up
        self._unrecorded = unrecorded
        self._erase_tenant = erase_tenant
        self._require_exists = {
            "turn": self._require_turn,
            "session": self._require_session,
            **(require_exists or {}),
        }

    def handlers(self) -> list[QueryHandler]:
        """Returns each command with the method that answers it."""
        return [
            (CreateSession, self.new_session),
            (ChangeSession, self.change_session),
            (DeleteResource, self.delete),
        ]

    async def new_session(self, tenant: Tenant, new: CreateSession) -> SessionRecord:
        """Creates a session and returns it. Raises Refused if the name is in use."""
        if not scope_of(tenant, new).is_whole_tenant and new.project_id is not None:
            # Projects are the tenant's.
            raise not_found("project")
        if not await self._store.new_session(tenant, new, datetime.now(UTC)):
            raise Refused("session_exists", "`id`: a session with this name exists already: choose another name")
        return await self._queries.session(tenant, GetSession(new.session))

    async def change_session(self, tenant: Tenant, new: ChangeSession) -> SessionRecord:
        """Changes the set fields of a session, and returns it. Raises Refused if the session does not exist."""
        await self._store.change_session(tenant, new)
        return await self._queries.session(tenant, GetSession(new.session))

    async def delete(self, tenant: Tenant, what: DeleteResource) -> Remaining:
        """Deletes the rows of the turns that the gateway has purged from the log; returns the turns that remain.

        The gateway purges these and repeats the command until none is left. Raises Refused if the resource does not
        exist, or is of a feature that this process does not have.
        """
        if (deletion := self._store.deletions.get(what.kind)) is None:
            raise Refused("request_invalid", f"this persistence process cannot delete a {what.kind}")
        await self._require_owned(tenant, what)
        if what.purged:
            # Tombstones come before the search for follow-ups: an earlier follow-up is found below, and a later one
            # finds its parent's tombstone. Thus no process has to survive in between (ADR 15).
            purged = [TurnKey(tenant, turn) for turn in what.purged]
            await gather_limited(self._log.purge_events, purged, PURGED_AT_ONCE)
            await self._tombstones.put(purged)
            await self._catch_up(tenant)
        else:
            # First purge the blobs that an earlier deletion left: "not found" must mean that they are gone as well.
            await self._blobs.collect(tenant)
            if what.kind == "turn" and (found := await self._find_unrecorded(TurnKey(tenant, TurnId(what.name)))):
                return Remaining([found])
            # A user or a tenant is no resource: a second erasure finds nothing.
            if (require := self._require_exists.get(what.kind)) is not None:
                await require(tenant, what.name)
        if deletion.erased is not None:
            user = what.name if deletion.erased == "user" else None
            if unrecorded := await self._list_unrecorded(tenant, user):
                return Remaining(unrecorded)
        remaining = await self._store.turns_to_delete(tenant, what)
        if deletion.has_follow_ups and not _may_delete_rows([one.turn for one in remaining], set(what.purged)):
            # A new follow-up: the rows of its ancestors are needed to find it.
            return Remaining(remaining)
        rows = await self._store.delete(tenant, what)
        if deletion.erased == "tenant" and not await self._store.turns_to_delete(tenant, what):
            for erase in self._erase_tenant:
                rows += await erase(tenant)
        rows += DeletedRows(blobs=await self._blobs.collect(tenant))
        return Remaining(await self._store.turns_to_delete(tenant, what), rows)

    async def _require_owned(self, tenant: Tenant, what: DeleteResource) -> None:
        """Raises Refused if a private user deletes what it does not own. Only the log has some turns: see Deleter."""
        match what.viewer, what.kind:
            case msgspec.UNSET, _:
                return
            case _, "turn" if await self._store.exists(Scope(tenant, WHOLE), "turn", what.name):
                await self._queries.require_owned(tenant, GetTurn(TurnId(what.name), viewer=what.viewer))
            case _, "turn":
                return
            case _, "session":
                await self._queries.require_owned(tenant, GetSession(what.name, viewer=what.viewer))
            case _, "project":
                raise not_found("project")
            case _:
                raise users_private()

    async def _find_unrecorded(self, key: TurnKey) -> TurnToDelete | None:
        """Returns a turn without a row, such as one with `store: false`."""
        for one in self._unrecorded:
            if found := await one.find_to_delete(key):
                return found
        return None

    async def _list_unrecorded(self, tenant: Tenant, user: str | None) -> list[TurnToDelete]:
        """Returns some turns without rows of a user, or of all users if `user` is None."""
        return [turn for one in self._unrecorded for turn in await one.list_of_user(tenant, user)]

    async def _require_turn(self, tenant: Tenant, name: str) -> None:
        await self._queries.turn(tenant, GetTurn(TurnId(name)))

    async def _require_session(self, tenant: Tenant, name: str) -> None:
        await self._queries.session(tenant, GetSession(name))


async def delete_again(store: Store, tombstones: Tombstones, log: TurnLog) -> None:
    """Deletes the rows of turns with a tombstone, which a restored database has again.

    The log keeps tombstones for a day. Raises LogUnavailable, StoreError.
    """
    count = 0

    async def delete(keys: Sequence[TurnKey]) -> int:
        # These were stored again under their old ids, see Recorder._is_orphan.
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

    There, follow-ups come before their parents. So a turn before a purged one may continue it, if it is not purged
    itself. Turns after the purged ones may be left, because an erasure works in parts.
    """
    are_purged = [turn in purged for turn in remaining]
    return not remaining or (are_purged[0] and are_purged == sorted(are_purged, reverse=True))
