"""Records of branches and deletions, and the queries and commands about sessions that persistence answers.

Records of turns and sessions are in records.py. Before a deletion the gateway purges the log (PROTOCOL R35).
"""

from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tailrace.proto.entries import Outcome
from tailrace.proto.ids import TurnId
from tailrace.proto.records import Query, SessionRecord

Kind = Literal["turn", "session", "project", "user", "tenant"]


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


class ListBranches(Query[BranchPage], frozen=True):
    """A page of a session's branches, newest leaf first. Refused: session_not_found, cursor_invalid."""

    query: ClassVar[str] = "branches"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str
    after: str | None = None
    limit: int = 50


class CreateSession(Query[SessionRecord], frozen=True):
    """Creates a session before its first turn. Refused: session_exists."""

    query: ClassVar[str] = "new_session"
    owned: ClassVar[tuple[str, ...] | None] = ()
    session: str
    title: str | None = None
    model: str | None = None
    system_prompt: str | list[dict[str, Any]] | None = None
    project_id: str | None = None
    user: str | None = None
    owner: str | None = None
    """The user of the credential that makes the session; null: the tenant."""


class ChangeSession(Query[SessionRecord], frozen=True):
    """Changes the set fields of a session; None removes a value. Refused: session_not_found."""

    query: ClassVar[str] = "rename_session"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str
    title: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    system_prompt: str | list[dict[str, Any]] | UnsetType | None = UNSET


class DeleteResource(Query[Remaining], frozen=True):
    """Deletes the rows of the turns `purged`, which the log no longer has, and returns the turns still to purge.

    Deleting a turn, or the turns of a user, also deletes the turns that continue it. With the last turn, the command
    deletes the session or project, the sessions of a user, or the sessions, projects and files of a tenant. Refused if
    `purged` is empty and the resource does not exist: turn_not_found, session_not_found, project_not_found.
    """

    query: ClassVar[str] = "delete"
    owned: ClassVar[tuple[str, ...] | None] = ()
    kind: Kind
    name: str
    purged: tuple[TurnId, ...] = ()
