"""The part of a feature in the database: its statements, and what it adds to the core's transactions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.records import TurnRecord

AddedRows = Mapping[str, Mapping[str, Any]]
"""Statements that are run for a turn after its row was written, each with the values that the row does not have."""


def _add_nothing(_: TurnKey, __: Turn, ___: TurnRecord) -> AddedRows:
    return {}


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
