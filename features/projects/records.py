"""Records of projects, and the queries about them that persistence answers."""

from datetime import datetime
from typing import ClassVar

import msgspec

from tailrace.proto.records import Query, Totals


class ProjectRecord(Totals, frozen=True, kw_only=True):
    """A group of sessions, with their totals. `updated_at` is when a session was last used."""

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


class GetProject(Query[ProjectRecord], frozen=True):
    """One project. Refused: project_not_found."""

    query: ClassVar[str] = "project"
    owned: ClassVar[tuple[str, ...] | None] = ()
    project: str


class ListProjects(Query[ProjectPage], frozen=True):
    """A page of projects, newest first. Refused: cursor_invalid."""

    query: ClassVar[str] = "projects"
    owned: ClassVar[tuple[str, ...] | None] = ()
    after: str | None = None
    limit: int = 50
    offset: int | None = None
    """How many projects are before the page; instead of `after`."""


class CreateProject(Query[ProjectRecord], frozen=True):
    """Creates a project. Refused: project_exists."""

    query: ClassVar[str] = "new_project"
    project: str
    name: str
    description: str | None = None
