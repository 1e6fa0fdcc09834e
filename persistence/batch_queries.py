"""Read queries about batches and their turns."""

from collections.abc import AsyncIterator

from tailrace.persistence import paging
from tailrace.persistence.rows import micros
from tailrace.persistence.rpc import QueryHandler, fit_in_message, page_of
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
from tailrace.proto.errors import not_found
from tailrace.proto.ids import Tenant, TurnId, TurnKey, child_id


class BatchQueries:
    """Runs the queries of one tenant at a time; records of other tenants do not exist for it.

    Each query raises StoreError.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [
            (GetBatch, self.batch),
            (ListBatches, self.batches),
            (ListBatchTurns, self.turns),
        ]

    async def batch(self, tenant: Tenant, query: GetBatch) -> StoredBatch:
        """Returns a batch. Raises Refused if the tenant has no such batch."""
        found = await self._store.batch(TurnKey(tenant, query.batch))
        if found is None:
            raise not_found("batch")
        return found

    async def batches(self, tenant: Tenant, query: ListBatches) -> BatchPage:
        """Returns a page of batches, newest first: after a cursor, or before or after a batch.

        Raises Refused for an invalid cursor or an unknown batch.
        """
        limit = paging.clamp_limit(query.limit)
        if query.before_batch is not None:
            after = await self._position(tenant, query.before_batch)
            newer = await self._store.newer_batches(tenant, after, limit + 1, query.of)
            page, following = await page_of(newer, limit, lambda one: (one.asked_at, one.batch))
            return BatchPage(page[::-1], following)
        before = paging.start(query.after, paging.NEWEST)
        if query.after_batch is not None:
            before = await self._position(tenant, query.after_batch)
        found = await self._store.batches(tenant, before, limit + 1, query.of)
        return BatchPage(*await page_of(found, limit, lambda one: (one.asked_at, one.batch)))

    async def _position(self, tenant: Tenant, batch: TurnId) -> paging.PageCursor:
        found = await self.batch(tenant, GetBatch(batch))
        return paging.PageCursor(micros(found.asked_at), found.batch)

    async def turns(self, tenant: Tenant, query: ListBatchTurns) -> BatchTurns:
        """Returns the batch's turns from number `first` on, as many as fit in one message, and the next number."""
        first, limit = max(0, query.first), paging.clamp_limit(query.limit)
        page, following = await fit_in_message(self._existing(tenant, query.batch, range(first, first + limit)), limit)
        return BatchTurns(page, first + limit if following is None else following.index)

    async def _existing(self, tenant: Tenant, batch: TurnId, numbers: range) -> AsyncIterator[NumberedTurn]:
        for number in numbers:
            turn = await self._store.turn(TurnKey(tenant, child_id(batch, number)))
            if turn is not None:
                yield NumberedTurn(number, turn)
