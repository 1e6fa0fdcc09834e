"""The questions about batches, each with its answer. It writes nothing."""

from collections.abc import Mapping

from tailrace.persistence import paging
from tailrace.persistence.rpc import Caught, answering, fitting, paged
from tailrace.persistence.store import Store
from tailrace.proto.batch_records import (
    BatchPage,
    BatchTurns,
    GetBatch,
    ListBatches,
    ListBatchTurns,
    NumberedTurn,
    StoredBatch,
)
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, child_id
from tailrace.proto.nats.rpc import Answer
from tailrace.proto.subjects import TurnKey


class Batches:
    """Every question names the tenant that asks. What belongs to another one is not there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def answers(self, caught_up: Caught) -> Mapping[str, Answer]:
        """By the names under which they are asked."""
        return dict(
            [
                answering(GetBatch, self.batch, caught_up),
                answering(ListBatches, self.batches, caught_up),
                answering(ListBatchTurns, self.turns, caught_up),
            ]
        )

    async def batch(self, tenant: Tenant, ask: GetBatch) -> StoredBatch:
        found = await self._store.batch(TurnKey(tenant, ask.batch))
        if found is None:
            raise Refused("batch_not_found", "there is no such batch")
        return found

    async def batches(self, tenant: Tenant, ask: ListBatches) -> BatchPage:
        limit = paging.bounded(ask.limit)
        before = paging.begin(ask.after, paging.NEWEST)
        found = await self._store.batches(tenant, before, limit + 1)
        return BatchPage(*paged(found, limit, lambda one: (one.asked_at, one.batch)))

    async def turns(self, tenant: Tenant, ask: ListBatchTurns) -> BatchTurns:
        first, limit = max(0, ask.first), paging.bounded(ask.limit)
        turns: list[NumberedTurn] = []
        for number in range(first, first + limit):
            turn = await self._store.turn(TurnKey(tenant, child_id(ask.batch, number)))
            if turn is not None:
                turns.append(NumberedTurn(number, turn))
        told = fitting(turns)
        return BatchTurns(told, turns[len(told)].index if len(told) < len(turns) else first + limit)
