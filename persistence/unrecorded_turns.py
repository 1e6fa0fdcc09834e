"""Turns of which the recorder writes no row: a feature handles these turns, and finds them for deletions."""

from typing import Protocol

from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.resources import TurnToDelete


class UnrecordedTurns(Protocol):
    """The turns without rows that a feature handles. Each method raises LogUnavailable, StoreError."""

    async def divert(self, key: TurnKey, turn: Turn) -> bool:
        """Handles a delivered turn and returns True, or returns False for other turns. May be repeated."""

    async def find_to_delete(self, key: TurnKey) -> TurnToDelete | None:
        """Returns the turn for a deletion; None if it is not such a turn, or not in the log."""

    async def list_of_user(self, tenant: Tenant, user: str | None) -> list[TurnToDelete]:
        """Returns some unrecorded turns of a user, or of all users if `user` is None."""
