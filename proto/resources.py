"""Records of projects, branches and usage, and the queries and commands about them that persistence answers.

Those of turns and sessions are in records.py. Before a deletion the gateway purges the log (PROTOCOL R35).
"""

from datetime import date, datetime
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tailrace.proto.entries import Outcome
from tailrace.proto.ids import SessionId, Tenant, TurnId
from tailrace.proto.records import Query, SessionRecord, Totals
from tailrace.proto.usage import Usage

USAGE_BY = ("day", "model", "key", "user", "session", "project")
"""The dimensions by which usage is summed, besides `metadata.NAME`."""
Kind = Literal["turn", "session", "project", "user", "tenant"]


class ProjectRecord(Totals, frozen=True, kw_only=True):
    """A group of sessions, with their totals. `updated_at` is when one of them was last used."""

    id: str
    """The id of the project."""
    name: str
    """The name of the project for people."""
    description: str | None
    """The purpose of the project."""
    created_at: datetime
    """When the project was created."""
    updated_at: datetime
    """When one of its sessions was last used."""
    is_active: bool
    """Whether the project was used recently."""
    sessions: int
    """The number of its sessions."""


class ProjectPage(msgspec.Struct, frozen=True):
    """A page of projects, newest first. `next` is the cursor of the next page, None on the last."""

    projects: list[ProjectRecord]
    next: str | None
    total: int | None = None
    """All projects; None for a page after a cursor."""


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """A branch of a session: a turn without a follow-up turn, and its ancestors, oldest first."""

    turn: TurnId
    """The last turn of the branch."""
    outcome: Outcome | Literal["running"]
    """How that turn ended, or `running`."""
    asked_at: datetime
    """When that turn was accepted."""
    length: int
    """The number of turns of the branch."""
    turns: list[TurnId]
    """The turns of the branch, oldest first."""


class BranchPage(msgspec.Struct, frozen=True):
    """A page of branches, newest leaf first. `next` is the cursor of the next page, None on the last."""

    branches: list[Branch]
    next: str | None


class UsageRecord(Totals, frozen=True, kw_only=True):
    """The usage of a day (UTC), a model, an API key's id, a user, a session, a project, or a value in the metadata.

    The key is None for sessions without a project, for turns without an API key or a user, and for deleted sessions.
    """

    key: str | None
    """The day, model, key, user, session, project or value that this usage belongs to."""
    last_used: datetime
    """When the last of its turns started."""


class UsagePage(msgspec.Struct, frozen=True):
    """A page of usage records, ordered by key. `next` is the cursor of the next page, None on the last."""

    usage: list[UsageRecord]
    next: str | None
    whole_since: datetime | None = None
    """When the last turn was accepted whose usage and cost an older version has counted; None: there is none."""


class BilledUsage(msgspec.Struct, frozen=True):
    """The usage that a model is billed for on a day (UTC) on which turns were accepted."""

    day: date
    model: str
    turns: int
    usage: Usage
    cost_nano_usd: int


class BilledUsageList(msgspec.Struct, frozen=True):
    """By day and model. The list has at most as many rows as the days have models."""

    usage: list[BilledUsage]
    tenants: list[Tenant]
    """Further tenants that have usage, in order; empty after the last one."""
    whole_since: datetime | None = None
    """As in UsagePage."""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The number of active sessions, recent usage, and the sessions with a running turn."""

    active_sessions: int
    by_model: list[UsageRecord]
    """The usage of all turns since the start of the UTC day on which the idle window began."""
    running: list[SessionId]


class TurnToDelete(msgspec.Struct, frozen=True):
    """A turn that a deletion still has to purge from the log."""

    turn: TurnId
    is_running: bool
    is_unstored: bool = False
    """Whether its request has `store: false`: the log overwrites its entries."""


class DeletedRows(msgspec.Struct, frozen=True):
    """The rows that a deletion has removed from the database, and the blobs that it has removed from their store."""

    turns: int = 0
    """The number of turns."""
    sessions: int = 0
    """The number of sessions."""
    projects: int = 0
    """The number of projects."""
    files: int = 0
    """The number of uploaded files."""
    blobs: int = 0
    """The number of blobs."""

    def __add__(self, other: "DeletedRows") -> "DeletedRows":
        return DeletedRows(
            *(a + b for a, b in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True))
        )


class Remaining(msgspec.Struct, frozen=True):
    """The turns that a deletion has not purged yet. Empty when the deletion is complete."""

    turns: list[TurnToDelete]
    rows: DeletedRows = DeletedRows()
    """The rows that this step has deleted."""


class GetProject(Query[ProjectRecord], frozen=True):
    """One project. Refused: project_not_found."""

    query: ClassVar[str] = "project"
    project: str


class ListProjects(Query[ProjectPage], frozen=True):
    """A page of projects, newest first. Refused: cursor_invalid."""

    query: ClassVar[str] = "projects"
    after: str | None = None
    limit: int = 50
    offset: int | None = None
    """How many projects are before the page; instead of `after`."""


class ListBranches(Query[BranchPage], frozen=True):
    """A page of a session's branches, newest leaf first. Refused: session_not_found, cursor_invalid."""

    query: ClassVar[str] = "branches"
    session: str
    after: str | None = None
    limit: int = 50


class GetUsage(Query[UsagePage], frozen=True):
    """A page of usage from day `first` to day `last`, inclusive, in UTC (R90). Refused: cursor_invalid."""

    query: ClassVar[str] = "usage"
    by: str
    """`day`, `model`, `key` (`by` of the request), `user`, `session`, `project` or `metadata.NAME`."""
    first: date
    last: date
    after: str | None = None
    limit: int = 50
    key: str | None = None
    """Only the usage of this key."""


class GetBilledUsage(Query[BilledUsageList], frozen=True):
    """The usage of a tenant by day and billed model (R121), and the next tenants that have usage; for operators."""

    query: ClassVar[str] = "billed"
    first: date
    last: date


class GetStats(Query[Stats], frozen=True):
    """The tenant's statistics."""

    query: ClassVar[str] = "stats"


class CreateSession(Query[SessionRecord], frozen=True):
    """Creates a session before its first turn. Refused: session_exists."""

    query: ClassVar[str] = "new_session"
    session: str
    title: str | None = None
    model: str | None = None
    system_prompt: str | list[dict[str, Any]] | None = None
    project_id: str | None = None
    user: str | None = None


class ChangeSession(Query[SessionRecord], frozen=True):
    """Changes a session, except what is unset; None removes a value. Refused: session_not_found."""

    query: ClassVar[str] = "rename_session"
    session: str
    title: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    system_prompt: str | list[dict[str, Any]] | UnsetType | None = UNSET


class CreateProject(Query[ProjectRecord], frozen=True):
    """Creates a project. Refused: project_exists."""

    query: ClassVar[str] = "new_project"
    project: str
    name: str
    description: str | None = None


class DeleteResource(Query[Remaining], frozen=True):
    """Deletes the rows of the turns `purged`, which the log no longer has, and returns the turns still to purge.

    Deleting a turn, or the turns of a user, also deletes the turns that continue it. A session or project is deleted
    with its last turn, and so are the sessions of a user, and the sessions, projects and files of a tenant.
    Refused if `purged` is empty and the resource does not exist: turn_not_found, session_not_found, project_not_found.
    """

    query: ClassVar[str] = "delete"
    kind: Kind
    name: str
    purged: tuple[TurnId, ...] = ()
