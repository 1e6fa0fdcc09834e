"""What is written to the database and read from it, by name. The SQL stands in sql.py, SQLite behind database.py."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from tailrace.persistence import sql
from tailrace.persistence.database import Database
from tailrace.persistence.paging import PageCursor
from tailrace.persistence.rows import (
    Row,
    batch_record,
    branch_of,
    micros,
    project_record,
    session_record,
    turn_record,
    usage_record,
)
from tailrace.proto.batch_records import StoredBatch
from tailrace.proto.entries import Failure
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, Tenant, TurnId
from tailrace.proto.records import SessionRecord, TurnRecord
from tailrace.proto.resources import (
    Branch,
    CreateProject,
    CreateSession,
    DeleteResource,
    ProjectRecord,
    TurnToDelete,
    UsageBy,
    UsageRecord,
)
from tailrace.proto.subjects import TurnKey

BRANCH_TURNS_MAX = 10_000
DOOMED_MAX = 1_000
RELEASED_MAX = 200
ANSWERING_MAX = 1_000

USAGE = {
    "day": sql.USAGE_BY_DAY,
    "model": sql.USAGE_BY_MODEL,
    "key": sql.USAGE_BY_KEY,
    "session": sql.USAGE_BY_SESSION,
    "project": sql.USAGE_BY_PROJECT,
}
DOOMED = {"turn": sql.TURN_AND_FOLLOW_UPS, "session": sql.TURNS_OF_SESSION, "project": sql.TURNS_OF_PROJECT}
# What goes with the last of their turns, in this order.
EMPTIED = {
    "turn": (),
    "session": (sql.DELETE_SESSION,),
    "project": (sql.DELETE_PROJECT_SESSIONS, sql.DELETE_PROJECT),
}


class Store(Database):
    """The turns, sessions, projects and usage of every tenant. `since`: what was used after it is active."""

    async def record(self, rows: Sequence[Row], reached: Seq = BEFORE_FIRST) -> None:
        """Writes all of `rows` in one transaction, or none, and that they are of the log up to `reached`.

        Writing a turn twice changes nothing, and an older fold of it changes nothing.
        """
        columns = [msgspec.structs.asdict(row) for row in rows]
        async with self.transaction() as writer:
            for statement in (sql.PUT_SESSION, sql.PUT_PROJECT, sql.PUT_TURN, sql.PUT_USAGE, sql.PUT_BLOB_USES):
                await writer.executemany(statement, columns)
            await writer.execute(sql.REACH, {"seq": reached})

    async def recorded_upto(self) -> Seq:
        """The last entry of the log that was recorded here."""
        return Seq((await self.read(sql.REACHED))[0]["seq"])

    async def reach_nothing(self) -> None:
        """Notes that all of the log will be recorded again."""
        async with self.transaction() as writer:
            await writer.execute(sql.REACH_NOTHING)

    async def lose(self, first: Seq, why: Failure) -> int:
        """Ends those as failed that run here and have left the log, which begins at `first`; how many they were."""
        columns = {"first": first, "error": msgspec.json.encode(why).decode()}
        async with self.transaction() as writer:
            return (await writer.execute(sql.LOSE_TURNS, columns)).rowcount

    async def running(self) -> list[TurnKey]:
        """The turns of all tenants that run here."""
        return [TurnKey(row["tenant"], row["turn"]) for row in await self.read(sql.RUNNING_TURNS)]

    async def lose_turns(self, lost: Sequence[TurnKey], why: Failure) -> None:
        """Ends those of `lost` as failed that run here."""
        error = msgspec.json.encode(why).decode()
        async with self.transaction() as writer:
            await writer.executemany(
                sql.LOSE_TURN, [{"tenant": key.tenant, "turn": key.turn, "error": error} for key in lost]
            )

    async def new_session(self, tenant: Tenant, new: CreateSession, at: datetime) -> bool:
        """False when there is one of that name, which is then as it was."""
        columns = {
            "tenant": tenant,
            "session": new.session,
            "title": new.title,
            "model": new.model,
            "system": msgspec.json.encode(new.system_prompt).decode() if new.system_prompt is not None else None,
            "project": new.project_id,
            "asked_at": micros(at),
        }
        async with self.transaction() as writer:
            made = await writer.execute(sql.NEW_SESSION, columns)
            await writer.execute(sql.PUT_PROJECT, columns)
            return made.rowcount > 0

    async def rename_session(self, tenant: Tenant, session: str, title: str | None) -> None:
        async with self.transaction() as writer:
            await writer.execute(sql.RENAME_SESSION, {"tenant": tenant, "session": session, "title": title})

    async def new_project(self, tenant: Tenant, new: CreateProject, at: datetime) -> bool:
        """False when there is one of that id, which is then as it was."""
        columns = {"tenant": tenant, **msgspec.structs.asdict(new), "created_at": micros(at)}
        async with self.transaction() as writer:
            made = await writer.execute(sql.NEW_PROJECT, columns)
            return made.rowcount > 0

    async def delete(self, tenant: Tenant, what: DeleteResource) -> None:
        """Deletes the rows of `what.purged`, and a session or project that has no turns then.

        What they referred to is released.
        """
        async with self.transaction() as writer:
            for statement in (sql.RELEASE_BLOBS, sql.DELETE_BLOB_USES, sql.DELETE_USAGE, sql.DELETE_TURN):
                await writer.executemany(statement, [{"tenant": tenant, "turn": turn} for turn in what.purged])
            for statement in EMPTIED[what.kind]:
                await writer.execute(statement, {"tenant": tenant, "name": what.name})

    async def release(self, tenant: Tenant, blobs: str) -> None:
        """Releases blobs whose turn has no row: a JSON list of their SHA-256."""
        async with self.transaction() as writer:
            await writer.execute(sql.RELEASE_NAMED_BLOBS, {"tenant": tenant, "blobs": blobs})

    async def released(self, tenant: Tenant, after: str = "") -> list[str]:
        """The blobs that were released and are not settled, in order, after one of them; at most `RELEASED_MAX`."""
        rows = await self.read(sql.RELEASED_BLOBS, tenant=tenant, after=after, limit=RELEASED_MAX)
        return [row["sha256"] for row in rows]

    async def releasing(self) -> list[Tenant]:
        """The tenants who have any, at most `RELEASED_MAX`."""
        return [row["tenant"] for row in await self.read(sql.RELEASING_TENANTS, limit=RELEASED_MAX)]

    async def used(self, tenant: Tenant, blobs: Sequence[str]) -> list[str]:
        """Those of `blobs` that a turn refers to."""
        return [sha256 for sha256 in blobs if await self.read(sql.BLOB_USE, tenant=tenant, sha256=sha256)]

    async def settle(self, tenant: Tenant, blobs: Sequence[str]) -> None:
        """Notes that nobody need look at released `blobs` any more."""
        async with self.transaction() as writer:
            await writer.executemany(sql.FORGET_BLOB, [{"tenant": tenant, "sha256": sha256} for sha256 in blobs])

    async def doomed(self, tenant: Tenant, what: DeleteResource) -> list[TurnToDelete]:
        """Turns that go with what is named, at most `DOOMED_MAX`; a turn's follow-ups before it."""
        bounds = {"limit": DOOMED_MAX, "depth_max": BRANCH_TURNS_MAX}
        rows = await self.read(DOOMED[what.kind], tenant=tenant, name=what.name, **bounds)
        return [TurnToDelete(row["turn"], is_running=row["outcome"] == "running") for row in rows]

    async def turn(self, key: TurnKey) -> TurnRecord | None:
        rows = await self.read(sql.TURN, tenant=key.tenant, turn=key.turn)
        return turn_record(rows[0]) if rows else None

    async def batch(self, key: TurnKey) -> StoredBatch | None:
        rows = await self.read(sql.BATCH, tenant=key.tenant, turn=key.turn)
        return batch_record(rows[0]) if rows else None

    async def batches(self, tenant: Tenant, before: PageCursor, limit: int) -> list[StoredBatch]:
        """Those asked before `before`, newest first."""
        rows = await self.read(sql.BATCHES, tenant=tenant, before_at=before.at, before=before.name, limit=limit)
        return [batch_record(row) for row in rows]

    async def session(self, tenant: Tenant, session: str, since: datetime) -> SessionRecord | None:
        rows = await self.read(sql.SESSION, tenant=tenant, session=session)
        return session_record(rows[0], since) if rows else None

    async def sessions(
        self, tenant: Tenant, project: str | None, before: PageCursor, limit: int, since: datetime
    ) -> list[SessionRecord]:
        """Those last used before `before`, newest first; of one project, if one is named."""
        place: dict[str, Any] = {"before_at": before.at, "before": before.name, "limit": limit}
        if project is None:
            rows = await self.read(sql.SESSIONS, tenant=tenant, **place)
        else:
            rows = await self.read(sql.PROJECT_SESSIONS, tenant=tenant, project=project, **place)
        return [session_record(row, since) for row in rows]

    async def session_turns(self, tenant: Tenant, session: str, after: PageCursor, limit: int) -> list[TurnRecord]:
        """Those asked after `after`, oldest first."""
        rows = await self.read(
            sql.SESSION_TURNS, tenant=tenant, session=session, after_at=after.at, after=after.name, limit=limit
        )
        return [turn_record(row) for row in rows]

    async def last_turn(self, tenant: Tenant, session: str) -> TurnId | None:
        rows = await self.read(sql.LAST_TURN, tenant=tenant, session=session)
        return rows[0]["turn"] if rows else None

    async def branch(self, key: TurnKey, most: int = BRANCH_TURNS_MAX) -> list[TurnRecord]:
        """The turn and `most` of its ancestors, as far as they are here, oldest first. Empty when it is not here."""
        rows = await self.read(sql.BRANCH, tenant=key.tenant, turn=key.turn, depth_max=most)
        return [turn_record(row) for row in rows]

    async def leaves(self, tenant: Tenant, session: str, before: PageCursor, limit: int) -> list[dict[str, Any]]:
        """The turns that no other goes on from, asked before `before`, newest first."""
        return await self.read(
            sql.LEAVES, tenant=tenant, session=session, before_at=before.at, before=before.name, limit=limit
        )

    async def branch_to(self, tenant: Tenant, leaf: dict[str, Any]) -> Branch:
        chain = await self.read(sql.CHAIN, tenant=tenant, turn=leaf["turn"], depth_max=BRANCH_TURNS_MAX)
        return branch_of(leaf, [row["turn"] for row in chain])

    async def project(self, tenant: Tenant, project: str, since: datetime) -> ProjectRecord | None:
        rows = await self.read(sql.PROJECT, tenant=tenant, project=project)
        return project_record(rows[0], since) if rows else None

    async def projects(self, tenant: Tenant, before: PageCursor, limit: int, since: datetime) -> list[ProjectRecord]:
        """Those made before `before`, newest first."""
        rows = await self.read(sql.PROJECTS, tenant=tenant, before_at=before.at, before=before.name, limit=limit)
        return [project_record(row, since) for row in rows]

    async def usage(
        self, tenant: Tenant, by: UsageBy, start: datetime, end: datetime, after: str | None, limit: int
    ) -> list[UsageRecord]:
        """What the turns used that were asked from `start` until before `end`, in the order of the keys."""
        times = {"from_at": micros(start), "to_at": micros(end)}
        rows = await self.read(USAGE[by], tenant=tenant, after=after, limit=limit, **times)
        return [usage_record(row) for row in rows]

    async def active_sessions(self, tenant: Tenant, since: datetime) -> int:
        rows = await self.read(sql.ACTIVE_SESSIONS, tenant=tenant, since=micros(since))
        return int(rows[0]["sessions"])

    async def active_usage(self, tenant: Tenant, since: datetime) -> list[UsageRecord]:
        """What the active sessions have used, a line a model."""
        return [usage_record(row) for row in await self.read(sql.ACTIVE_USAGE, tenant=tenant, since=micros(since))]

    async def answering(self, tenant: Tenant) -> list[SessionId]:
        """The sessions that have a running turn, at most `ANSWERING_MAX`."""
        rows = await self.read(sql.ANSWERING, tenant=tenant, limit=ANSWERING_MAX)
        return [row["session"] for row in rows]
