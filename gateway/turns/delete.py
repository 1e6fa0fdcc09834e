"""Deletes turns: cancels those that run, purges the log, then the database. In this order nothing can return.

Persistence would record again what the log still has, and a running generator would write to a purged log. After a
crash at any point the same request deletes the rest.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.errors import Refused, TurnUnknown, not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, Counters, Slots, Tombstones, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.nats.step_records import StepRecords
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.resources import DeletedRows, DeleteResource, Kind, TurnToDelete
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.runtime.gather import gather_limited

# A round deletes up to a thousand turns. After this many consecutive rounds of fewer than MANY_TURNS turns, a deletion
# competes with new turns of the session, and ends.
ROUNDS_MAX = 100
MANY_TURNS = 100
LOOKED_AT_ONCE = 16
# An erasure deletes the rows of erased turns every ERASING_S seconds, and settles at most ERASED_TURNS turns before it
# overwrites their entries. A gateway that stops waits a little longer (GRACE_S).
ERASING_S, ERASED_TURNS = 3.0, 100


class DeletionSteps(NamedTuple):
    """The steps of a feature in deletions. The steps raise Refused and LogError, and can be repeated."""

    begin: Callable[[TurnKey], Awaitable[None]]
    """Called before a turn is deleted with its follow-ups."""
    release: Callable[[TurnKey, Turn], Awaitable[None]]
    """Called before the entries of a turn that has ended leave the log; for several turns at once."""
    withdraw: Callable[[Tenant, str], Awaitable[None]]
    """Called before the data of a user is erased."""


class PurgeRound(NamedTuple):
    """The turns that one round has removed from the log."""

    turns: tuple[TurnId, ...] = ()
    is_cut: bool = False
    """Whether the round has left turns to the next one."""


class RunningDeletion:
    """A deletion that runs: what it has deleted so far, and its time."""

    def __init__(self, *, erases: bool, within_s: float | None = None, draining: Flag | None = None) -> None:
        self.erases = erases
        self.turns: set[TurnId] = set()
        self.log_entries = 0
        self.rows = DeletedRows()
        self._rounds = 0
        self._ends_at = math.inf if within_s is None else _now() + within_s
        self._draining = draining

    def results(self) -> tuple[int, int, DeletedRows]:
        """Returns the numbers of turns, of log entries and of rows."""
        return len(self.turns), self.log_entries, self.rows

    def is_over(self) -> bool:
        """Returns whether its time is over. The first round always takes place, so that repeated requests finish."""
        is_stopping = self._draining is not None and self._draining.is_set()
        return self._rounds > 0 and (is_stopping or _now() >= self._ends_at)

    def round_deadline(self) -> float:
        """Begins a round, and returns the time after which it leaves turns to the next one."""
        self._rounds += 1
        return min(_now() + ERASING_S, self._ends_at) if self.erases else math.inf


def _now() -> float:
    return asyncio.get_running_loop().time()


class Deleter:
    """Deletes turns, sessions and projects of a tenant."""

    def __init__(self, connection: Connection, log: TurnLog, history: HistoryClient) -> None:
        self._tombstones = Tombstones(connection)
        self._log = log
        self._history = history
        self._settlement = Settlement(Counters(connection), Slots(connection))
        self._step_records = StepRecords(connection)
        self.steps: list[DeletionSteps] = []
        """The steps of the features."""

    async def delete(self, scope: Scope, kind: Kind, name: str, *, erases: bool = False) -> int:
        """Deletes a turn with its follow-ups, a session, or a project with its sessions. Returns the number of turns.

        `erases`: the log overwrites the entries. Raises Refused when it does not exist, or not all of it could be
        deleted; LogUnavailable. It can be repeated.
        """
        if kind == "turn":
            if not scope.is_whole_tenant:
                await self._require_owned(ScopedKey(scope, TurnId(name)))
            for steps in self.steps:
                await steps.begin(TurnKey(scope.tenant, TurnId(name)))
        deletion = RunningDeletion(erases=erases)
        await self.run(scope, kind, name, deletion)
        return len(deletion.turns)

    async def _require_owned(self, key: ScopedKey) -> None:
        """Raises Refused for another's turn that the log has; LogUnavailable. Persistence checks all others.

        It does not know the owner of a turn with `store: false`.
        """
        try:
            await self._log.require_owned(key)
        except TurnUnknown as unknown:
            if await self._log.has_turn(ScopedKey.whole(key.plain)):
                raise not_found("turn") from unknown

    async def withdraw(self, tenant: Tenant, user: str) -> None:
        """Keeps a user's data in other users' turns from becoming turns of the user. Raises Refused, LogError."""
        for steps in self.steps:
            await steps.withdraw(tenant, user)

    async def run(self, scope: Scope, kind: Kind, name: str, deletion: RunningDeletion) -> bool:
        """Deletes in rounds, and adds to `deletion` what it has deleted.

        Returns False if the time was over before the end. Raises Refused, LogUnavailable.
        """
        purged = PurgeRound()
        few, is_large, results = -1, False, deletion.results()
        while few < ROUNDS_MAX:
            left = await self._history.query(scope, DeleteResource(kind, name, purged.turns))
            deletion.rows += left.rows
            # A turn whose row is left is returned again.
            deletion.turns |= set(purged.turns) - {turn.turn for turn in left.turns}
            if not left.turns:
                return True
            if deletion.is_over():
                return False
            # Rounds without a result must end.
            few = 0 if is_large and deletion.results() != results else few + 1
            results = deletion.results()
            purged = await self._purge(scope, left.turns, deletion)
            is_large = len(purged.turns) >= MANY_TURNS or purged.is_cut
        raise Refused("session_busy", "turns were submitted during the deletion: repeat it when no client submits more")

    async def _purge(self, scope: Scope, turns: list[TurnToDelete], deletion: RunningDeletion) -> PurgeRound:
        """Removes turns from the log, and returns them.

        If any was running, purges none, but cancels those that run: persistence must record their ends first.
        """
        was_running = False
        for turn in turns:
            was_running |= turn.is_running and await self._try_cancel(ScopedKey(scope, turn.turn))
        if was_running:
            return PurgeRound()
        some = turns[:ERASED_TURNS] if deletion.erases else turns
        # Before the purge. Only turns that the log has are read: to learn that it lacks turns takes 100 ms, here once
        # for all turns.
        stored = await self._log.find_stored(TurnKey(scope.tenant, turn.turn) for turn in some)
        await gather_limited(self._release, stored, LOOKED_AT_ONCE)
        purged: list[TurnId] = []
        deadline = deletion.round_deadline()
        for turn in some:
            key = TurnKey(scope.tenant, turn.turn)
            if not (deletion.erases or turn.is_unstored):
                await self._log.purge(key)
            elif not await self._erase(key, deletion, deadline):
                break
            purged.append(turn.turn)
            if turn.is_unstored:
                # No later round returns this turn.
                deletion.turns.add(turn.turn)
        return PurgeRound(tuple(purged), is_cut=len(purged) < len(turns))

    async def _erase(self, key: TurnKey, deletion: RunningDeletion, deadline: float) -> bool:
        """Overwrites entries of a turn until `deadline`, but one at least. Returns whether none is left."""
        # Before its end is overwritten: a reader would note that the log has lost it (PROTOCOL R144).
        await self._tombstones.mark_deletion(key)
        erased = await self._log.erase(key, deadline)
        deletion.log_entries += erased.entries
        return erased.is_gone

    async def _try_cancel(self, key: ScopedKey) -> bool:
        """Cancels a turn. False when the log has none of it."""
        try:
            await self.cancel(key)
        except TurnUnknown:
            return False
        return True

    async def cancel(self, key: ScopedKey) -> None:
        """Cancels a turn. Raises TurnUnknown, LogUnavailable."""
        # Mark first: otherwise the cancelled turn would be sent to its webhook before it is purged.
        await self._tombstones.mark_deletion(key.plain)
        await cancel(self._log, key, "deletion")

    async def _release(self, key: TurnKey) -> None:
        """Settles a turn that a deletion has cancelled: its generator may find it purged, and no end to settle."""
        try:
            turn = await self._log.read_turn(ScopedKey.whole(key))
        except TurnUnknown:
            return
        if turn.end is not None and turn.end.cause == "deletion":
            has_holds = turn.request is not None and turn.request.holds
            reserved = (await self._step_records.read(key)).steps if has_holds else ()
            await self._settlement.settle(key, turn, reserved)
        for steps in self.steps:
            await steps.release(key, turn)
