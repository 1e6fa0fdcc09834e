"""Projects, branches, totals, and what people change: their shapes, and the questions that persistence answers.

Those of turns and sessions are in records.py. A deletion goes through the gateway, which purges the log (PROTOCOL R35).
"""

from datetime import date, datetime
from typing import Any, ClassVar, Literal

import msgspec

from tailrace.proto.entries import Outcome
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.records import Query, SessionRecord, Totals

UsageBy = Literal["day", "model", "key", "session", "project"]
Kind = Literal["turn", "session", "project"]


class ProjectRecord(Totals, frozen=True, kw_only=True):
    """What sessions belong to, with the totals of all of them. `updated_at` is when one of them was last used."""

    id: str
    name: str
    description: str | None
    created_at: datetime
    updated_at: datetime
    is_active: bool
    sessions: int


class ProjectPage(msgspec.Struct, frozen=True):
    """Newest first. `next` is the cursor of the next page, None on the last."""

    projects: list[ProjectRecord]
    next: str | None


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """One way through a session: the turn that nobody has gone on from yet, and all before it, oldest first."""

    turn: TurnId
    outcome: Outcome | Literal["running"]
    asked_at: datetime
    length: int
    turns: list[TurnId]


class BranchPage(msgspec.Struct, frozen=True):
    """Newest leaf first. `next` is the cursor of the next page, None on the last."""

    branches: list[Branch]
    next: str | None


class UsageRecord(Totals, frozen=True, kw_only=True):
    """A day (UTC, of the question), a model, the name of an API key, a session, or a project.

    None are the sessions of no project, and what was asked without a key.
    """

    key: str | None
    last_used: datetime
    """When the last of its turns was asked."""


class UsagePage(msgspec.Struct, frozen=True):
    """In the order of the keys. `next` is the cursor of the next page, None on the last."""

    usage: list[UsageRecord]
    next: str | None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions that are active, what they have used by model, and which are being answered just now."""

    active_sessions: int
    by_model: list[UsageRecord]
    running: list[SessionId]


class TurnToDelete(msgspec.Struct, frozen=True):
    """A turn that goes when what was named goes."""

    turn: TurnId
    is_running: bool


class Remaining(msgspec.Struct, frozen=True):
    """What of a deletion is not done yet; nothing means that it is."""

    turns: list[TurnToDelete]


class GetProject(Query[ProjectRecord], frozen=True):
    """project_not_found."""

    query: ClassVar[str] = "project"
    project: str


class ListProjects(Query[ProjectPage], frozen=True):
    """cursor_invalid."""

    query: ClassVar[str] = "projects"
    after: str | None = None
    limit: int = 50


class ListBranches(Query[BranchPage], frozen=True):
    """session_not_found, cursor_invalid."""

    query: ClassVar[str] = "branches"
    session: str
    after: str | None = None
    limit: int = 50


class GetUsage(Query[UsagePage], frozen=True):
    """Of the turns that were asked from the first day to the last, both included, in UTC; cursor_invalid."""

    query: ClassVar[str] = "usage"
    by: UsageBy
    first: date
    last: date
    after: str | None = None
    limit: int = 50


class GetStats(Query[Stats], frozen=True):
    """Of the tenant who asks."""

    query: ClassVar[str] = "stats"


class CreateSession(Query[SessionRecord], frozen=True):
    """Before its first turn; session_exists."""

    query: ClassVar[str] = "new_session"
    session: str
    title: str | None = None
    model: str | None = None
    system_prompt: str | list[dict[str, Any]] | None = None
    project_id: str | None = None


class RenameSession(Query[SessionRecord], frozen=True):
    """None takes the title away; session_not_found."""

    query: ClassVar[str] = "rename_session"
    session: str
    title: str | None


class CreateProject(Query[ProjectRecord], frozen=True):
    """project_exists."""

    query: ClassVar[str] = "new_project"
    project: str
    name: str
    description: str | None = None


class DeleteResource(Query[Remaining], frozen=True):
    """The rows of `purged` go: the log has nothing of them any more. Then what is left of the thing that is named.

    A turn takes those with it that went on from it. With the last of its turns a session or project goes, too. Nothing
    purged, and nothing there: turn_not_found, session_not_found, project_not_found.
    """

    query: ClassVar[str] = "delete"
    kind: Kind
    name: str
    purged: tuple[TurnId, ...] = ()
