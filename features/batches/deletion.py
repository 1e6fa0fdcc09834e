"""Steps of a deletion for batches: they end with their turns, give back reservations, and forget deleted inputs."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import msgspec

from tailrace.features.batches import input_lines
from tailrace.features.batches.give_back import give_back, give_back_deleted
from tailrace.features.batches.records import CANCEL_MESSAGE_BATCH, CancelMessageBatch, ListBatches
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.delete import LOOKED_AT_ONCE, DeletionSteps, is_unsettled
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import MESSAGE_BATCHES, Batch, Outcome, Via
from tailrace.proto.errors import BlobUnknown, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnKey, is_child_id
from tailrace.proto.nats import Counters, Tombstones
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.proto.runtime.gather import gather_limited
from tailrace.proto.subjects import GENERATORS

BATCHES_PAGE = 200
# No batch runs longer.
BATCH_LIFE = timedelta(days=1)


def _may_store(outcome: Outcome | Literal["running"], via: Via) -> bool:
    """Returns whether turns of a batch may still be stored: answers of a message batch come after its cancellation."""
    return outcome == "running" or (via == MESSAGE_BATCHES and outcome != "completed")


class BatchDeletion:
    """The steps of batches in deletions."""

    def __init__(self, gateway: Gateway) -> None:
        self._deleter = gateway.deleter
        self._tombstones = Tombstones(gateway.connection)
        self._log = gateway.log
        self._blobs = gateway.blob_store
        self._history = gateway.history
        self._rpc = gateway.rpc
        self._counters = Counters(gateway.connection)
        self._query_timeout_s = gateway.settings.query_timeout_s
        self._reading_inputs = asyncio.Lock()
        """One batch at a time, because its inputs are in memory."""

    @property
    def steps(self) -> DeletionSteps:
        return DeletionSteps(self._cancel, self._release, self._withdraw)

    async def _cancel(self, key: TurnKey) -> None:
        """Cancels a batch before its turns: it would submit new turns during the deletion."""
        try:
            turn = await self._log.read_turn(ScopedKey.whole(key))
            if turn.request is not None and turn.request.batch is not None:
                await self._deleter.cancel(ScopedKey.whole(key))
        except TurnUnknown:
            return

    async def _release(self, key: TurnKey, turn: Turn) -> None:
        """Gives back the reservations of a batch's inputs; stops its message batch. Marks a batch's turn as deleted."""
        request = turn.request
        if request is None:
            return
        if request.parent is not None and is_child_id(key.turn, request.parent):
            # The tombstone follows the purge. In between, a new generator of the batch would store the turn again.
            await self._tombstones.mark_deletion(key)
        if request.batch is None or turn.outcome == "completed":
            return
        if turn.progress is not None and turn.progress.message_batch is not None:
            # Anthropic bills what it has answered, and no result will say how much: the reservation stays.
            await self._stop_message_batch(key, turn.progress.message_batch)
        elif await is_unsettled(self._log, turn):
            async with self._reading_inputs:
                await self._give_back(key, request.batch)

    async def _give_back(self, key: TurnKey, spec: Batch) -> None:
        """Refunds the reservations of a batch's inputs that were never submitted."""
        try:
            lines = await self._inputs_of(key, spec)
        except BlobUnknown:
            return
        children = [input_lines.child_key(key, number) for number in range(len(lines))]
        stored = await self._log.find_stored(children)
        await gather_limited(
            lambda number: give_back(self._tombstones, self._counters, children[number], lines[number]),
            (number for number, child in enumerate(children) if child not in stored),
            LOOKED_AT_ONCE,
        )

    async def _stop_message_batch(self, key: TurnKey, name: str) -> None:
        """Cancels the message batch at Anthropic: after the purge no process knows of it."""
        query = msgspec.json.encode(CancelMessageBatch(name))
        timeout_s = self._query_timeout_s
        await self._rpc.request(key.tenant, CANCEL_MESSAGE_BATCH, query, timeout_s=timeout_s, role=GENERATORS)

    async def _withdraw(self, tenant: Tenant, user: str) -> None:
        """Keeps the batches of other users from submitting the user's inputs, or storing their answers."""
        after: str | None = None
        oldest = await self._log.now() - BATCH_LIFE
        while True:
            page = await self._history.query(Scope(tenant, WHOLE), ListBatches(after, BATCHES_PAGE))
            for one in page.batches:
                if _may_store(one.outcome, one.counts.via):
                    await self._withdraw_from(TurnKey(tenant, one.batch), user)
            after = page.next
            if after is None or page.batches[-1].asked_at < oldest:
                return

    async def _withdraw_from(self, key: TurnKey, user: str) -> None:
        """Marks the user's inputs that are no turns yet as deleted; gives back what they reserve."""
        try:
            turn = await self._log.read_turn(ScopedKey.whole(key))
            if turn.request is None or turn.request.batch is None or turn.request.user == user:
                return
            if not _may_store(turn.outcome, turn.request.via):
                return
            lines = await self._inputs_of(key, turn.request.batch)
        except (TurnUnknown, BlobUnknown):
            return
        of_user: dict[TurnKey, bytes] = {}
        for number, line in enumerate(lines):
            if input_lines.user_of(line) == user:
                of_user[input_lines.child_key(key, number)] = line
            await asyncio.sleep(0)
        stored = await self._log.find_stored(of_user)
        unstored = [child for child in of_user if child not in stored]
        deleted = await self._tombstones.find_deleted(unstored)
        new = [child for child in unstored if child not in deleted]
        await gather_limited(self._tombstones.mark_deletion, new, LOOKED_AT_ONCE)
        # The generator may have stored some turns before it could see the mark. The erasure finds these, and their own
        # ends settle them.
        stored = await self._log.find_stored(new)
        if turn.request.via == "messages":
            for child in new:
                if child not in stored:
                    await give_back_deleted(self._counters, child, of_user[child])

    async def _inputs_of(self, key: TurnKey, spec: Batch) -> Sequence[bytes]:
        """Returns the inputs of a batch. Raises BlobUnknown, LogUnavailable."""
        blob = await self._blobs.read(key.tenant, Blob(spec.sha256, spec.bytes))
        return input_lines.split_inputs(blob)[: spec.count]
