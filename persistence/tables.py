"""The part of a feature in the database: its statements, and its additions to the core's transactions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.proto.resources import Kind

AddedRows = Mapping[str, Mapping[str, Any]]
"""Statements that are run for a turn after its row was written, each with the values that the row does not have."""


def _add_nothing(_: TurnKey, __: Turn, ___: TurnRecord) -> AddedRows:
    return {}


Names = Sequence[tuple[str, str, str]]
"""Names that totals must not keep: dimensions, each with the first and last of the names."""


class Deletion(NamedTuple):
    """How the rows of one kind of resource are deleted. Each statement gets `tenant` and `name`."""

    turns: str
    """A query of the turns that the deletion includes: at most `limit`, each with at most `depth_max` ancestors."""
    when_empty: Sequence[tuple[str, str]] = ()
    """The deletions after the last turn, in this order: statements, each after its field of DeletedRows, or ""."""
    has_follow_ups: bool = False
    """Whether the deletion includes follow-ups; `turns` returns them before their parents."""
    has_many_sessions: bool = False
    """Whether the deletion includes whole sessions; each is deleted after its last turn."""
    erased: Literal["user", "tenant"] | None = None
    """Whose data is erased, with that of features about turns without rows; None: a resource is deleted."""
    names: Callable[[str, bool], Names] = lambda _, __: ()
    """Called with the name, and whether no turn is left. Returns the names that totals must not keep. Must be pure."""


class Tables(NamedTuple):
    """The part of one feature in the database.

    The core's migrations make the tables, in one order for both databases.
    """

    queries: str
    """The text of its queries.sql, see `read_queries`."""
    rows: Callable[[TurnKey, Turn, TurnRecord], AddedRows] = _add_nothing
    """Returns the rows of a turn, which are written in the transaction that records it. Must be pure."""
    of_unstored: Sequence[str] = ()
    """Statements of `rows` that also run for a turn with `store: false`, at its request and at its end: for rows
    without content."""
    delete_turn: Sequence[str] = ()
    """Statements that run before the row of a turn is deleted, with its `tenant` and `turn`."""
    erase_turn: Sequence[str] = ()
    """Statements that run before `delete_turn` if all data of the turn's user is erased."""
    erase_first: str = ""
    """A query of the turns that an erasure deletes before all others, with `tenant`, `limit`, and `user` or NULL."""
    erase_tenant: Sequence[tuple[str, str]] = ()
    """The deletions of an erased tenant after its last turn, like `Deletion.when_empty`."""
    erase_user: Sequence[tuple[str, str]] = ()
    """The same for an erased user."""
    put_session: Sequence[str] = ()
    """Statements that run after each turn has written its session, and after a session is created without a turn."""
    count_models: Sequence[str] = ()
    """Statements that add the usage by model of turns to totals (`sign` 1) after their rows are written, and remove it
    (-1) before that. `listed` is a JSON list of [tenant, session, turn] of the turns that have such usage."""
    deletions: Mapping[Kind, Deletion] = {}
    """The kinds of resources that the feature deletes."""
