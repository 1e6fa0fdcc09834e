"""Erases all data of a user or a tenant: deletes the turns, overwrites their entries."""

from typing import Literal, NamedTuple

from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.delete import RunningDeletion
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.ownership import Scope
from tailrace.proto.resources import DeletedRows


class Erasure(NamedTuple):
    """The result of an erasure: the number of turns, of log entries and of rows."""

    turns: int
    log_entries: int
    """Entries that were overwritten."""
    rows: DeletedRows
    is_complete: bool = True
    """False: data is left, because the time was over, the gateway stops, or NATS or persistence is unavailable."""


class Eraser:
    """Erases data of users and tenants."""

    def __init__(self, gateway: Gateway) -> None:
        self._deleter = gateway.deleter
        self._draining = gateway.streams.draining

    async def erase(
        self, scope: Scope, kind: Literal["user", "tenant"], name: str, within_s: float | None = None
    ) -> Erasure:
        """Like `Deleter.delete`, for all data of a user or the tenant; the log overwrites the entries (PROTOCOL R91).

        With `within_s`, it stops after about so many seconds, or when the gateway stops or a part of the system becomes
        unavailable, and returns what it has erased. After that, it raises only if it has erased nothing. Each turn,
        entry and row is counted by one call only.
        """
        draining = None if within_s is None else self._draining
        deletion = RunningDeletion(erases=True, within_s=within_s, draining=draining)
        try:
            if kind == "user":
                await self._deleter.withdraw(scope.tenant, name)
            is_complete = await self._deleter.run(scope, kind, name, deletion)
        except (LogError, Refused):
            if within_s is None or deletion.results() == (0, 0, DeletedRows()):
                raise
            is_complete = False
        return Erasure(len(deletion.turns), deletion.log_entries, deletion.rows, is_complete)
