"""The typed operations on the database: records in and out. The statements are in queries.sql."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from copy import copy
from datetime import datetime
from itertools import chain
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

import msgspec
from msgspec import UNSET

from tailrace.persistence.database import Database, Transaction
from tailrace.persistence.migrations import ID_FROM_VERSION, REACHED_FROM_VERSION, REPLAY_BELOW_VERSION
from tailrace.persistence.paging import PageCursor
from tailrace.persistence.rows import (
    TurnRow,
    branch_of,
    build_row,
    micros,
    session_record,
    turn_record,
)
from tailrace.persistence.sql import statements
from tailrace.persistence.tables import AddedRows, Deletion, Tables
from tailrace.persistence.turn_list import TurnListReader, read_listed
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.errors import StoreRefused, StoreRolledBack
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tailrace.proto.ownership import Scope, may_use
from tailrace.proto.records import SessionRecord, TurnPosition, TurnRecord
from tailrace.proto.resources import (
    Branch,
    ChangeSession,
    CreateSession,
    DeletedRows,
    DeleteResource,
    Kind,
    TurnToDelete,
)
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.runtime.feature_parts import join_distinct

BRANCH_TURNS_MAX = 10_000
# Converting a turn takes up to 0.05 ms.
CONVERT_IN_LOOP_MAX = 100
DELETE_TURNS_MAX = 1_000
# Turns that one transaction deletes. Each may have megabytes, which SQLite overwrites, and the recorder waits.
DELETED_AT_ONCE = 16
RELEASED_MAX = 200
# Greater than every name that totals have.
LAST_NAME = "\U0010ffff"
LOST_ERROR = msgspec.json.encode(LOST_FAILURE).decode()

# Statements that delete the parts of a turn, before its row, in this order, each with the sign for the totals.
DELETE_TURN = (
    ("release_blobs", 0),
    ("delete_blob_uses", 0),
    ("count_deleted", 1),
    ("uncount_deleted", -1),
    ("delete_empty_totals", 0),
    ("delete_labels", 0),
    ("delete_usage", 0),
)
# The kinds of resources that the core deletes. Features have further kinds.
DELETIONS: Mapping[Kind, Deletion] = {
    "turn": Deletion("turn_and_follow_ups", has_follow_ups=True),
    "session": Deletion("session_turn_ids", (("sessions", "delete_session"),)),
}
T = TypeVar("T")


class Writer:
    """A transaction that runs statements by their names. All methods raise StoreError."""

    def __init__(self, transaction: Transaction, sql: Mapping[str, str], answered: Callable[[], None]) -> None:
        """`answered` is called after each statement."""
        self._transaction = transaction
        self._sql = sql
        self._answered = answered

    async def execute(self, name: str, values: Mapping[str, Any]) -> int:
        """See Transaction.execute."""
        written = await self._transaction.execute(self._sql[name], values)
        self._answered()
        return written

    async def executemany(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """See Transaction.executemany."""
        await self._transaction.executemany(self._sql[name], rows)
        self._answered()

    async def execute_all(self, steps: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        """See Transaction.execute_all. Leaves out statements without rows."""
        await self._transaction.execute_all([(self._sql[name], rows) for name, rows in steps if rows])
        self._answered()

    async def read(self, name: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See Transaction.read."""
        rows = await self._transaction.read(self._sql[name], values)
        self._answered()
        return rows


class Store:
    """The turns and sessions of all tenants.

    Methods with `since`: sessions that were used after this time are active. Every method that reads or
    writes raises StoreError.
    """

    def __init__(self, database: Database, tables: Sequence[Tables] = ()) -> None:
        """`tables` are the features' tables, whose statements `read` and `write` run, too."""
        self.database = database
        """Runs statements that have no name."""
        self._tables = tables
        deletions = (DELETIONS, *(one.deletions for one in tables))
        self.deletions = join_distinct((item for each in deletions for item in each.items()), "deletion of a")
        """The kinds of resources that can be deleted."""
        self.sql = statements([one.queries for one in tables], database.own_queries)
        """The statements by name."""
        self._put_session = [statement for one in tables for statement in one.put_session]
        self._reads = FairSemaphore(database.reads_max)
        self._writes = FairSemaphore(1)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._is_queued = True
        self._recorded_upto = BEFORE_FIRST
        self.system = database.system
        self.turn_list = TurnListReader(self.read, self.read_turns)
        self.answered_at = 0.0
        """When the database last answered a statement of a transaction, by the event loop's clock."""

    def without_queue(self) -> Self:
        """Returns the same store for writes that skip the queue of the tenants' writes, see `write`."""
        unqueued = copy(self)
        unqueued._is_queued = False  # noqa: SLF001  # of this class
        return unqueued

    async def close(self) -> None:
        """Closes the database."""
        await self.database.close()

    async def migrate(self) -> None:
        """Runs the missing migrations."""
        await self.database.migrate()

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """Holds the lock `name` while the block runs, see Database.lock."""
        # On a server each holder has a connection of its own. A task that waits for another task of this process has
        # none: otherwise one tenant's deletions would take all connections of the server.
        held = self._locks.setdefault(name, asyncio.Lock())
        async with held, self.database.lock(name):
            yield

    async def erase_journal(self) -> None:
        """Removes deleted values from the database's journal, as far as that is possible now."""
        await self.database.erase_journal()

    def raise_if_damaged(self) -> None:
        """Raises StoreCorrupt if the database is not whole."""
        self.database.raise_if_damaged()

    @property
    def needs_replay(self) -> bool:
        """Whether the log must be read from its beginning: the database is new, or its version recorded less."""
        return self.database.version < REPLAY_BELOW_VERSION

    @property
    def has_id(self) -> bool:
        """Whether the database had an id when it was opened. A new database or an older schema has none."""
        return self.database.version >= ID_FROM_VERSION

    @property
    def is_new(self) -> bool:
        """Whether the database was absent or empty when it was opened."""
        return self.database.version == 0

    async def record(self, rows: Sequence[TurnRow], reached: Seq = BEFORE_FIRST) -> None:
        """Writes `rows`, and that the log is recorded up to `reached`, in one transaction.

        Idempotent: a turn that is written again, or an older fold of it, changes nothing. Raises StoreRolledBack if the
        database lacks an earlier call of this process.
        """
        columns = [msgspec.structs.asdict(row) for row in rows]
        added: dict[str, list[dict[str, Any]]] = {}
        for row in columns:
            for statement, values in row.pop("added").items():
                added.setdefault(statement, []).append({**row, **values})
        # The first project that is named for a session is its project.
        joining: dict[tuple[str, str], dict[str, Any]] = {}
        for row in columns:
            if row["project"] is not None:
                joining.setdefault((row["tenant"], row["session"]), row)
        turns = msgspec.json.encode([(one.tenant, one.session, one.turn) for one in rows]).decode()
        # Few turns: a fold with the usage by model replaces a fold without it.
        by_model = [(one.tenant, one.session, one.turn) for one in rows if one.by_model is not None]
        steps: list[tuple[str, Sequence[Mapping[str, Any]]]] = [
            *self._count_models(by_model, -1),
            ("count_project", list(joining.values())),
            *((name, columns) for name in ("put_session", *self._put_session, "put_turn", "put_labels")),
            ("count_usage", [{"listed": turns, "sign": -1}]),
            ("put_usage", columns),
            ("count_usage", [{"listed": turns, "sign": 1}]),
            *self._count_models(by_model, 1),
            ("put_blob_uses", [row for row in columns if row["blobs"] != "[]"]),
            *added.items(),
        ]
        async with self.write() as writer:
            await writer.execute_all(steps)
            if not await writer.execute("set_recorded_upto", {"seq": reached, "known": self._recorded_upto}):
                await self._require_recorded(writer)
        self._recorded_upto = max(self._recorded_upto, reached)

    def _count_models(
        self, turns: Sequence[tuple[str, str, str]], sign: int
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yields the statements that add the usage by model of turns to the totals of features, or remove it."""
        if turns:
            listed = {"listed": msgspec.json.encode(turns).decode(), "sign": sign}
            yield from ((statement, [listed]) for one in self._tables for statement in one.count_models)

    async def _require_recorded(self, writer: Writer) -> None:
        """Raises StoreRolledBack if the database lacks a commit of `record` of this process."""
        (found,) = await writer.read("recorded_upto", {})
        if found["seq"] < self._recorded_upto:
            raise StoreRolledBack(
                f"the database has recorded the log up to {found['seq']}, and this process had recorded it up to "
                f"{self._recorded_upto}: it was restored, or a failover has lost commits. The next start records "
                "the log again"
            )

    async def read_id(self) -> str:
        """Returns the random id of the database."""
        return str((await self.read("database_id"))[0]["id"])

    async def read_recorded_upto(self) -> Seq:
        """Returns the sequence of the last recorded entry of the log."""
        return Seq((await self.read("recorded_upto"))[0]["seq"])

    async def has_recorded(self) -> bool:
        """Returns whether anything of a log was ever recorded. Needs no migration."""
        if self.database.version < REACHED_FROM_VERSION:
            return not self.is_new
        return bool(await self.read("has_recorded"))

    async def reset_recorded_upto(self) -> None:
        """Resets what `read_recorded_upto` returns, before the whole log is recorded again."""
        async with self.write() as writer:
            await writer.execute("reset_recorded_upto", {})

    async def fail_expired(self, first: Seq) -> int:
        """Ends the running turns that have left the log, which begins at `first`, as failed; returns their number.

        Raises StoreRolledBack as `record` does: it may be long until the next turn is recorded.
        """
        async with self.write() as writer:
            await self._require_recorded(writer)
            return await writer.execute("fail_expired_turns", {"first": first, "error": LOST_ERROR})

    async def running_turns(self) -> list[TurnKey]:
        """Returns the running turns of all tenants."""
        return [TurnKey(row["tenant"], row["turn"]) for row in await self.read("running_turns")]

    async def fail_lost(self, lost: Sequence[TurnKey]) -> None:
        """Ends the turns of `lost` that are still running, as failed."""
        rows = [{"tenant": key.tenant, "turn": key.turn, "error": LOST_ERROR} for key in lost]
        async with self.write() as writer:
            await writer.executemany("fail_turn", rows)

    async def new_session(self, tenant: Tenant, new: CreateSession, at: datetime) -> bool:
        """Inserts a session. Returns False, and changes nothing, if the name is in use."""
        columns = {
            "tenant": tenant,
            "session": new.session,
            "title": new.title,
            "model": new.model,
            "system": _encode_system(new.system_prompt),
            "project": new.project_id,
            "user": new.user,
            "owner": new.owner,
            "asked_at": micros(at),
        }
        async with self.write(tenant) as writer:
            made = await writer.execute("create_session", columns)
            for statement in self._put_session:
                await writer.execute(statement, columns)
            return made > 0

    async def change_session(self, tenant: Tenant, change: ChangeSession) -> None:
        """Changes the set fields of a session."""
        async with self.write(tenant) as writer:
            for column, value in (
                ("title", change.title),
                ("model", change.model),
                ("system", UNSET if change.system_prompt is UNSET else _encode_system(change.system_prompt)),
            ):
                if value is not UNSET:
                    row = {"tenant": tenant, "session": change.session, "value": value}
                    await writer.execute(f"set_session_{column}", row)

    async def delete(self, tenant: Tenant, what: DeleteResource) -> DeletedRows:
        """Deletes the rows of the turns in `what.purged`, then the resource as far as it has no turns left.

        The usage of these turns stays in the totals of the tenant and project, because it was paid for. The blobs that
        these turns referred to are released: `BlobCollector` purges blobs without other references.

        The turns are deleted in order, some in each transaction. The caller repeats a deletion that is interrupted.
        """
        rows = DeletedRows()
        for first in range(0, max(1, len(what.purged)), DELETED_AT_ONCE):
            part = msgspec.structs.replace(what, purged=what.purged[first : first + DELETED_AT_ONCE])
            async with self.write(tenant) as writer:
                rows += await self.delete_rows(writer, tenant, part)
        return rows

    async def delete_rows(self, writer: Writer, tenant: Tenant, what: DeleteResource) -> DeletedRows:
        """Deletes as `delete` does, in a transaction of the caller."""
        deletion, gone = self.deletions[what.kind], Counter[str]()
        listed = {"tenant": tenant, "listed": msgspec.json.encode(what.purged).decode()}
        # A deletion may have many rounds: only the last one reads all sessions.
        has_many = deletion.has_many_sessions
        sessions = await writer.read("sessions_of_turns", listed) if has_many else []
        of_features = [
            (statement, 0)
            for one in self._tables
            for statement in (*(one.erase_turn if deletion.erased == "user" else ()), *one.delete_turn)
        ]
        for statement, sign in (*of_features, *DELETE_TURN):
            rows = [{"tenant": tenant, "turn": turn, "sign": sign} for turn in what.purged]
            await writer.executemany(statement, rows)
        gone["turns"] = await writer.execute("delete_turns", listed)
        left = {"tenant": tenant, "name": what.name, "limit": 1}
        has_more = has_many and bool(await writer.read(deletion.turns, left))
        if has_more:
            some = {
                "tenant": tenant,
                "listed": msgspec.json.encode([row["session"] for row in sessions]).decode(),
                "user": what.name if deletion.erased == "user" else None,
            }
            gone["sessions"] = await writer.execute("delete_listed_sessions", some)
        else:
            of = {
                "tenant": [one.erase_tenant for one in self._tables],
                "user": [one.erase_user for one in self._tables],
            }
            for field, statement in chain(deletion.when_empty, *of.get(deletion.erased or "", [])):
                gone[field] += await writer.execute(statement, {"tenant": tenant, "name": what.name})
        for dimension, first, last in deletion.names(what.name, not has_more):
            names = {"tenant": tenant, "dimension": dimension, "name": first, "last_name": last}
            await writer.execute("count_nameless", names)
            await writer.execute("delete_totals", names)
        self.database.note_deletion()
        gone.pop("", None)
        return DeletedRows(**gone)

    async def release_blobs(self, tenant: Tenant, blobs: Sequence[str]) -> None:
        """Releases blobs of a turn that has no row. `blobs` are their SHA-256."""
        if not blobs:
            return
        named = {"tenant": tenant, "blobs": msgspec.json.encode(blobs).decode()}
        async with self.write(tenant) as writer:
            await writer.execute("release_named_blobs", named)

    async def released_blobs(self, tenant: Tenant, after: str = "") -> list[str]:
        """Returns the SHA-256 of released blobs greater than `after`, in order, at most `RELEASED_MAX`."""
        rows = await self.read("released_blobs", tenant=tenant, after=after, limit=RELEASED_MAX)
        return [row["sha256"] for row in rows]

    async def tenants_with_released_blobs(self) -> list[Tenant]:
        """Returns tenants that have released blobs, at most `RELEASED_MAX`."""
        return [row["tenant"] for row in await self.read("tenants_with_released_blobs", limit=RELEASED_MAX)]

    async def referenced_blobs(self, tenant: Tenant, blobs: Sequence[str]) -> list[str]:
        """Returns those of `blobs` that a turn refers to."""
        return [sha256 for sha256 in blobs if await self.read("blob_reference", tenant=tenant, sha256=sha256)]

    async def forget_released(self, tenant: Tenant, blobs: Sequence[str]) -> None:
        """Removes `blobs`, which were purged, from the released blobs."""
        async with self.write(tenant) as writer:
            await writer.executemany("forget_released_blob", [{"tenant": tenant, "sha256": sha256} for sha256 in blobs])

    async def keep_referenced(self, tenant: Tenant, blobs: Sequence[str]) -> None:
        """Removes from the released blobs those of `blobs` that a turn refers to."""
        async with self.write(tenant) as writer:
            await writer.executemany("keep_used_blob", [{"tenant": tenant, "sha256": sha256} for sha256 in blobs])

    async def turns_to_delete(self, tenant: Tenant, what: DeleteResource) -> list[TurnToDelete]:
        """Returns turns that a deletion includes, at most `DELETE_TURNS_MAX`.

        Follow-ups come before their parent if the deletion includes them. In an erasure, turns that a feature wants to
        delete first come alone.
        """
        deletion, rows = self.deletions[what.kind], list[dict[str, Any]]()
        bounds = {"limit": DELETE_TURNS_MAX, "depth_max": BRANCH_TURNS_MAX}
        if deletion.erased is not None:
            user = what.name if deletion.erased == "user" else None
            for statement in (one.erase_first for one in self._tables if one.erase_first):
                rows += await self.read(statement, tenant=tenant, user=user, limit=DELETE_TURNS_MAX)
        if not rows:
            rows = await self.read(deletion.turns, tenant=tenant, name=what.name, **bounds)
        return [TurnToDelete(row["turn"], is_running=row["outcome"] == "running") for row in rows]

    def build_row(self, key: TurnKey, turn: Turn) -> TurnRow:
        """Returns the row of a folded turn, with the rows of the features. Raises TurnUnknown without a request."""
        return build_row(key, turn, [one.rows for one in self._tables])

    def of_unstored(self, row: TurnRow) -> AddedRows:
        """Returns the rows of features that are also written for a turn with `store: false`."""
        names = {name for one in self._tables for name in one.of_unstored}
        return {name: values for name, values in row.added.items() if name in names}

    async def turn(self, key: TurnKey) -> TurnRecord | None:
        """Returns the record of the turn, or None if it was never recorded or is deleted."""
        rows = await self.read("turn", tenant=key.tenant, turn=key.turn)
        return turn_record(rows[0]) if rows else None

    async def session(self, tenant: Tenant, session: str, since: datetime) -> SessionRecord | None:
        """Returns the session, or None. The session is active if it was used after `since`."""
        rows = await self.read("session", tenant=tenant, session=session)
        return session_record(rows[0], since) if rows else None

    async def sessions(
        self,
        tenant: Tenant,
        project: str | None,
        before: PageCursor,
        limit: int,
        since: datetime,
        user: str | None = None,
        *,
        owner: str | None,
    ) -> list[SessionRecord]:
        """Returns sessions last used before `before`, most recent first; of `project`, `user` and `owner` if set."""
        page: dict[str, Any] = {"before_at": before.at, "before": before.name, "limit": limit}
        of = {"project": project, "user": user}
        kind = "".join(f"{name}_" for name, value in of.items() if value is not None)
        if owner is not None:
            kind, of = "owner_", {**of, "owner": owner}
        rows = await self.read(f"{kind}sessions", tenant=tenant, **of, **page)
        return [session_record(row, since) for row in rows]

    async def numbered_sessions(
        self,
        tenant: Tenant,
        project: str | None,
        offset: int,
        limit: int,
        since: datetime,
        user: str | None = None,
        *,
        owner: str | None,
    ) -> tuple[list[SessionRecord], int]:
        """Returns the sessions after the first `offset`, and the total number of sessions."""
        page: dict[str, Any] = {"tenant": tenant, "limit": limit, "offset": offset}
        if owner is not None:
            of = {"owner": owner, "user": user, "project": project}
            rows = await self.read("owner_sessions_from", **of, **page)
            counted = await self.read("count_owner_sessions", tenant=tenant, **of)
        elif user is not None:
            rows = await self.read("user_sessions_from", user=user, project=project, **page)
            counted = await self.read("count_user_sessions", tenant=tenant, user=user, project=project)
        else:
            kind, given = ("sessions", {}) if project is None else ("project_sessions", {"project": project})
            rows = await self.read(f"{kind}_from", **page, **given)
            counted = await self.read("count_sessions", tenant=tenant, project=project or "")
        return [session_record(row, since) for row in rows], counted[0]["total"]

    async def turn_with_blob(self, tenant: Tenant, sha256: str, owner: str) -> TurnId | None:
        """Returns a turn of `owner` that refers to a blob; None if there is none."""
        rows = await self.read("owned_blob_use", tenant=tenant, sha256=sha256, owner=owner)
        return rows[0]["turn"] if rows else None

    async def exists(self, scope: Scope, kind: str, name: str) -> bool:
        """Returns whether a turn or session exists, and the scope shows it."""
        rows = await self.read(f"owner_of_{kind}", tenant=scope.tenant, name=name)
        return bool(rows) and may_use(scope, rows[0]["owner"])

    async def session_turns(
        self, tenant: Tenant, session: str, after: PageCursor, limit: int, *, is_newest_first: bool = False
    ) -> list[TurnRecord]:
        """Returns turns of a session after `after`, oldest first; if `is_newest_first`, turns before it.

        Fewer than `limit` if they are large, see RowBudget.
        """
        statement = "session_turns_newest" if is_newest_first else "session_turns"
        page = {"after_at": after.at, "after": after.name, "limit": limit}
        rows = await self.read_turns(statement, tenant=tenant, session=session, **page)
        return [turn_record(row) for row in rows]

    async def list_running(
        self, tenant: Tenant, session: str | None, after: PageCursor, limit: int, *, owner: str | None
    ) -> list[TurnRecord]:
        """Returns running turns after `after`, oldest first. `session` and `owner` are None for those of all.

        Fewer than `limit` if they are large, see RowBudget.
        """
        listed = await self.read(
            "running", tenant=tenant, session=session, owner=owner, after_at=after.at, after=after.name, limit=limit
        )
        return [turn_record(row) for row in await read_listed(self.read, tenant, listed)]

    async def turns_since(self, tenant: Tenant, session: str, since: Seq) -> list[TurnPosition]:
        """Returns the turns of a session that run, or whose last entry is after `since`, ordered by it."""
        rows = await self.read("turns_since", tenant=tenant, session=session, since=since)
        return [TurnPosition(row["turn"], row["cursor"], is_running=bool(row["is_running"])) for row in rows]

    async def last_turn(self, tenant: Tenant, session: str) -> TurnId | None:
        """Returns the newest turn of a session, or None without any."""
        rows = await self.read("last_turn", tenant=tenant, session=session)
        return rows[0]["turn"] if rows else None

    async def branch(self, key: TurnKey, ancestors_max: int = BRANCH_TURNS_MAX) -> list[TurnRecord]:
        """Returns the turn and its stored ancestors, oldest first; empty if the turn is not stored."""
        rows = await self.read("branch", tenant=key.tenant, turn=key.turn, depth_max=ancestors_max)
        return await convert_turns(len(rows), lambda: [turn_record(row) for row in rows])

    async def leaves(self, tenant: Tenant, session: str, before: PageCursor, limit: int) -> list[dict[str, Any]]:
        """Returns turns without follow-ups, older than `before`, newest first."""
        return await self.read(
            "leaves", tenant=tenant, session=session, before_at=before.at, before=before.name, limit=limit
        )

    async def branch_to(self, tenant: Tenant, leaf: dict[str, Any]) -> Branch:
        """Returns the branch that ends with the row `leaf` of `leaves`: at most BRANCH_TURNS_MAX of its turns."""
        chain = await self.read("branch_ids", tenant=tenant, turn=leaf["turn"], depth_max=BRANCH_TURNS_MAX)
        return branch_of(leaf, [row["turn"] for row in chain])

    async def read(self, name: str, /, **values: Any) -> list[dict[str, Any]]:
        """Returns the rows of a named query. Waiting tenants take turns: a tenant may have hundreds of slow queries."""
        async with self._reads.reserve(tenant=values.get("tenant", "")):
            return await self.database.read(self.sql[name], values)

    async def read_turns(self, name: str, /, **values: Any) -> list[dict[str, Any]]:
        """Like `read`, for a page of turns: returns no more rows than RowBudget allows."""
        async with self._reads.reserve(tenant=values.get("tenant", "")):
            return await self.database.read(self.sql[name], values, is_page=True)

    @asynccontextmanager
    async def write(self, tenant: str = "") -> AsyncIterator[Writer]:
        """Runs the block in a transaction. Writes of tenants wait for each other, fairly by tenant.

        Writes of a store `without_queue`, and writes without a `tenant`, wait only for the running transaction. In the
        queue the recorder would fall behind: an ended turn with `store: false` needs three transactions.

        Raises StoreTooNew if a newer version has migrated the database and a value is refused.
        """
        slot = self._writes.reserve(tenant=tenant) if tenant and self._is_queued else nullcontext()
        try:
            async with slot, self.database.transaction() as writer:
                self._note_answer()
                yield Writer(writer, self.sql, self._note_answer)
        except StoreRefused:
            # A newer schema may refuse what this version writes: a process of the newer version has to write that.
            await self.database.raise_if_too_new()
            raise

    def _note_answer(self) -> None:
        self.answered_at = asyncio.get_running_loop().time()


async def convert_turns(number: int, convert: Callable[[], T]) -> T:
    """Returns `convert()`, which converts `number` turns; in a thread if that would stop the event loop for long."""
    return await asyncio.to_thread(convert) if number > CONVERT_IN_LOOP_MAX else convert()


def _encode_system(system: str | list[dict[str, Any]] | None) -> str | None:
    return msgspec.json.encode(system).decode() if system is not None else None
