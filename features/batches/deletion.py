"""Steps of a deletion for batches: they end before their turns, and forget deleted inputs."""

import asyncio
from datetime import timedelta
from typing import Literal

import msgspec

from tailrace.features.batches import input_lines
from tailrace.features.batches.records import CANCEL_MESSAGE_BATCH, CancelMessageBatch, ListBatches
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.delete import LOOKED_AT_ONCE, DeletionSteps
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import MESSAGE_BATCHES, Outcome, Via
from tailrace.proto.errors import BlobUnknown, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnKey, is_child_id
from tailrace.proto.nats import Tombstones
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
        self._query_timeout_s = gateway.settings.query_timeout_s

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
        """Stops the message batch of a batch. Marks a batch's turn as deleted."""
        request = turn.request
        if request is None:
            return
        if request.parent is not None and is_child_id(key.turn, request.parent):
            # The tombstone follows the purge. In between, a new generator of the batch would store the turn again.
            await self._tombstones.mark_deletion(key)
        if request.batch is None or turn.outcome == "completed":
            return
        if turn.progress is not None and turn.progress.message_batch is not None:
            await self._stop_message_batch(key, turn.progress.message_batch)

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
        """Marks the user's inputs that are no turns yet as deleted."""
        try:
            turn = await self._log.read_turn(ScopedKey.whole(key))
            if turn.request is None or turn.request.batch is None or turn.request.user == user:
                return
            if not _may_store(turn.outcome, turn.request.via):
                return
            spec = turn.request.batch
            blob = await self._blobs.read(key.tenant, Blob(spec.sha256, spec.bytes))
        except (TurnUnknown, BlobUnknown):
            return
        of_user: list[TurnKey] = []
        for number, line in enumerate(input_lines.split_inputs(blob)[: spec.count]):
            if input_lines.user_of(line) == user:
                of_user.append(input_lines.child_key(key, number))
            await asyncio.sleep(0)
        # The generator may store some turns before it can see the mark. The erasure finds these.
        stored = await self._log.find_stored(of_user)
        unstored = [child for child in of_user if child not in stored]
        deleted = await self._tombstones.find_deleted(unstored)
        new = [child for child in unstored if child not in deleted]
        await gather_limited(self._tombstones.mark_deletion, new, LOOKED_AT_ONCE)
