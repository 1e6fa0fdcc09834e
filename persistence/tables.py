"""The part of a feature in the database: its statements, and what it adds to the core's transactions."""

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
"""Names that totals must not keep: each a dimension, and its first and last name."""


class Deletion(NamedTuple):
    """How the rows of one kind of resource are deleted. Each statement gets `tenant` and `name`."""

    turns: str
    """A query of the turns that the deletion includes, at most `limit`, with at most `depth_max` ancestors each."""
    when_empty: Sequence[tuple[str, str]] = ()
    """The deletions after the last turn, in this order: a field of DeletedRows, or "", and a statement."""
    has_follow_ups: bool = False
    """Whether it includes the turns that continue others, which `turns` returns before these."""
    has_many_sessions: bool = False
    """Whether it includes whole sessions, each of which is deleted after its last turn."""
    erased: Literal["user", "tenant"] | None = None
    """Whose data is erased, also what features have of turns without rows; None for a deletion of a resource."""
    names: Callable[[str, bool], Names] = lambda _, __: ()
    """Gets the name, and whether no turn is left. Returns the names that totals must not keep. Must be pure."""


class Tables(NamedTuple):
    """The part of one feature in the database.

    The core's migrations make the tables, in one order for both databases.
    """

    queries: str
    """The text of its queries.sql, see `read_queries`."""
    rows: Callable[[TurnKey, Turn, TurnRecord], AddedRows] = _add_nothing
    """Returns the rows of a turn, which are written in the transaction that records it. Must be pure."""
    delete_turn: Sequence[str] = ()
    """Statements that run before the row of a turn is deleted, with its `tenant` and `turn`."""
    erase_turn: Sequence[str] = ()
    """Statements that run before these if all data of the turn's user is erased."""
    erase_first: str = ""
    """A query of the turns that an erasure deletes before all others, with `tenant`, `limit`, and `user` or NULL."""
    erase_tenant: Sequence[tuple[str, str]] = ()
    """The deletions of an erased tenant after its last turn, like `Deletion.when_empty`."""
    put_session: Sequence[str] = ()
    """Statements that run after each turn has written its session, and after a session is created without a turn."""
    count_models: Sequence[str] = ()
    """Statements that add the usage by model of turns to totals (`sign` 1) after their rows are written, and remove it
    (-1) before. `listed` is a JSON list of [tenant, session, turn], of those turns that have such usage."""
    deletions: Mapping[Kind, Deletion] = {}
    """The kinds of resources that the feature deletes."""
