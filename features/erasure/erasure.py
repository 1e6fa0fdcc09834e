"""Erases all data of a user or a tenant: deletes the turns, overwrites their entries, withdraws inputs of batches."""

import asyncio
from datetime import timedelta
from typing import Literal, NamedTuple

from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.delete import LOOKED_AT_ONCE, RunningDeletion
from tailrace.proto import batch
from tailrace.proto.batch_records import ListBatches
from tailrace.proto.entries import MESSAGE_BATCHES, Outcome, Via
from tailrace.proto.errors import BlobUnknown, LogError, Refused, TurnUnknown
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Counters, Tombstones
from tailrace.proto.nats.settlement import give_back_deleted
from tailrace.proto.resources import DeletedRows
from tailrace.proto.runtime.gather import gather_limited

BATCHES_PAGE = 200
# No batch runs longer.
BATCH_LIFE = timedelta(days=1)


class Erasure(NamedTuple):
    """The result of an erasure: the number of turns, of log entries and of rows."""

    turns: int
    log_entries: int
    """Entries that were overwritten."""
    rows: DeletedRows
    is_complete: bool = True
    """False: some are left, because its time was over, its gateway stops, or NATS or persistence became unavailable."""


def _may_store(outcome: Outcome | Literal["running"], via: Via) -> bool:
    """Returns whether turns of a batch may still be stored: answers of a message batch come after its cancellation."""
    return outcome == "running" or (via == MESSAGE_BATCHES and outcome != "completed")


class Eraser:
    """Erases data of users and tenants."""

    def __init__(self, gateway: Gateway) -> None:
        self._deleter = gateway.deleter
        self._tombstones = Tombstones(gateway.connection)
        self._log = gateway.log
        self._history = gateway.history
        self._counters = Counters(gateway.connection)
        self._draining = gateway.streams.draining

    async def erase(
        self, tenant: Tenant, kind: Literal["user", "tenant"], name: str, within_s: float | None = None
    ) -> Erasure:
        """As `Deleter.delete`, for all data of a user or the tenant, whose entries the log overwrites (PROTOCOL R91).

        With `within_s`, it stops after about so many seconds, or when the gateway stops or a part of the system becomes
        unavailable, and returns what it has erased. It then raises only if it has erased nothing. Each turn, entry and
        row is counted by one call only.
        """
        draining = None if within_s is None else self._draining
        deletion = RunningDeletion(erases=True, within_s=within_s, draining=draining)
        try:
            if kind == "user":
                await self._withdraw(tenant, name)
            is_complete = await self._deleter.run(tenant, kind, name, deletion)
        except (LogError, Refused):
            if within_s is None or deletion.results() == (0, 0, DeletedRows()):
                raise
            is_complete = False
        return Erasure(len(deletion.turns), deletion.log_entries, deletion.rows, is_complete)

    async def _withdraw(self, tenant: Tenant, user: str) -> None:
        """Keeps the batches of other users from submitting the user's inputs, or storing their answers."""
        after: str | None = None
        oldest = await self._log.now() - BATCH_LIFE
        while True:
            page = await self._history.query(tenant, ListBatches(after, BATCHES_PAGE))
            for one in page.batches:
                if _may_store(one.outcome, one.counts.via):
                    await self._withdraw_from(TurnKey(tenant, one.batch), user)
            after = page.next
            if after is None or page.batches[-1].asked_at < oldest:
                return

    async def _withdraw_from(self, key: TurnKey, user: str) -> None:
        """Marks the user's inputs of a batch that are no turns yet as deleted; gives back what they reserve."""
        try:
            turn = await self._log.read_turn(key)
            if turn.request is None or turn.request.batch is None or turn.request.user == user:
                return
            if not _may_store(turn.outcome, turn.request.via):
                return
            lines = await self._deleter.inputs_of(key, turn.request.batch)
        except (TurnUnknown, BlobUnknown):
            return
        of_user: dict[TurnKey, bytes] = {}
        for number, line in enumerate(lines):
            if batch.user_of(line) == user:
                of_user[batch.child_key(key, number)] = line
            await asyncio.sleep(0)
        stored = await self._log.find_stored(of_user)
        unstored = [child for child in of_user if child not in stored]
        deleted = await self._tombstones.find_deleted(unstored)
        new = [child for child in unstored if child not in deleted]
        await gather_limited(self._tombstones.mark_deletion, new, LOOKED_AT_ONCE)
        # The generator may have stored some before it could see the mark. The erasure finds these, and their own ends
        # settle them.
        stored = await self._log.find_stored(new)
        if turn.request.via == "messages":
            for child in new:
                if child not in stored:
                    await give_back_deleted(self._counters, child, of_user[child])
