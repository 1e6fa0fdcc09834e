"""Refuses and deletes a new turn whose parent was deleted during its submission (ADR 15)."""

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.delete import Deleter
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn

DELETED = "the conversation was deleted while this turn was submitted: repeat the request to start a new one"


class ParentCheck:
    """Deletes and refuses a stored turn if the deletion of its parent may have missed it."""

    def __init__(self, log: TurnLog, history: HistoryClient, deleter: Deleter) -> None:
        self._log = log
        self._history = history
        self._deleter = deleter

    async def check_parent(self, key: ScopedKey, parent: TurnId) -> None:
        """Raises Refused after it has deleted the turn; LogUnavailable."""
        if not await is_deleted(self._log, self._history, ScopedKey(key.scope, parent)):
            return
        try:
            # The parent may have been erased, and the request repeats its text.
            await self._deleter.delete(key.scope, "turn", key.turn, erases=True)
        except Refused as refused:
            if refused.code != "turn_not_found":
                raise
        raise Refused("parent_not_found", DELETED)


async def is_deleted(log: TurnLog, history: HistoryClient, parent: ScopedKey) -> bool:
    """Returns whether the parent of a stored turn was deleted; False when persistence is unavailable.

    A deletion first purges the turn and then looks for its follow-ups. So it finds each follow-up that was stored
    before the purge. A follow-up that is stored after the purge finds here that its parent is gone.
    """
    try:
        if not await log.has_end(parent.plain):
            await history.query(parent.scope, GetTurn(parent.turn))
    except LogUnavailable:
        return False
    except Refused as refused:
        return refused.code == "turn_not_found"
    return False
