"""Batches in the database: their counts beside their turn, and queries about batches and their turns."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from tailrace.features.batches.records import (
    Api,
    BatchCounts,
    BatchPage,
    BatchTurns,
    GetBatch,
    ListBatches,
    ListBatchTurns,
    NumberedTurn,
    StoredBatch,
    counts_of,
)
from tailrace.persistence import paging
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.paging import PageCursor
from tailrace.persistence.queries import scope_of
from tailrace.persistence.rows import micros, moment
from tailrace.persistence.rpc import QueryHandler, fit_in_message, page_of
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows, Tables
from tailrace.proto.entries import Failure
from tailrace.proto.errors import not_found
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey, child_id
from tailrace.proto.records import TurnRecord
from tailrace.proto.runtime.settings import NoSettings

_counts = msgspec.json.Decoder(BatchCounts)
_failure = msgspec.json.Decoder(Failure)
_metadata = msgspec.json.Decoder(dict[str, str])


class BatchTable:
    """The turns that are batches. Every method raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def batch(self, key: TurnKey) -> StoredBatch | None:
        """Returns the batch, or None if the turn is no batch or has no row."""
        rows = await self._store.read("batch", tenant=key.tenant, turn=key.turn)
        return batch_record(rows[0]) if rows else None

    async def batches(
        self, tenant: Tenant, before: PageCursor, limit: int, of: Api | None = None, *, owner: str | None
    ) -> list[StoredBatch]:
        """Returns batches older than `before`, newest first; with `of` only those of one other API, or of `owner`."""
        page = {"before_at": before.at, "before": before.name, "limit": limit, "of": of, "owner": owner}
        statement = "batches" if of is None else "api_batches"
        return [batch_record(row) for row in await self._store.read(statement, tenant=tenant, **page)]

    async def newer_batches(
        self, tenant: Tenant, after: PageCursor, limit: int, of: Api | None = None, *, owner: str | None
    ) -> list[StoredBatch]:
        """Returns batches newer than `after`, oldest first; with `of` only those of one other API, or of `owner`."""
        page = {"after_at": after.at, "after": after.name, "limit": limit, "of": of, "owner": owner}
        statement = "newer_batches" if of is None else "newer_api_batches"
        return [batch_record(row) for row in await self._store.read(statement, tenant=tenant, **page)]


class BatchQueries:
    """Runs the queries of one tenant at a time; a query does not find records of other tenants.

    Each query raises StoreError.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = BatchTable(store)

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [
            (GetBatch, self.batch),
            (ListBatches, self.batches),
            (ListBatchTurns, self.turns),
        ]

    async def batch(self, tenant: Tenant, query: GetBatch) -> StoredBatch:
        """Returns a batch. Raises Refused if the tenant has no such batch."""
        found = await self._table.batch(TurnKey(tenant, query.batch))
        if found is None:
            raise not_found("batch")
        return found

    async def batches(self, tenant: Tenant, query: ListBatches) -> BatchPage:
        """Returns a page of batches, newest first: after a cursor, or before or after a batch.

        Raises Refused for an invalid cursor or an unknown batch.
        """
        limit, owner = paging.clamp_limit(query.limit), scope_of(tenant, query).only_owner
        if query.before_batch is not None:
            after = await self._position(tenant, query.before_batch, query)
            newer = await self._table.newer_batches(tenant, after, limit + 1, query.of, owner=owner)
            page, following = await page_of(newer, limit, lambda one: (one.asked_at, one.batch))
            return BatchPage(page[::-1], following)
        before = paging.start(query.after, paging.NEWEST)
        if query.after_batch is not None:
            before = await self._position(tenant, query.after_batch, query)
        found = await self._table.batches(tenant, before, limit + 1, query.of, owner=owner)
        return BatchPage(*await page_of(found, limit, lambda one: (one.asked_at, one.batch)))

    async def _position(self, tenant: Tenant, batch: TurnId, query: ListBatches) -> paging.PageCursor:
        if not await self._store.exists(scope_of(tenant, query), "turn", batch):
            raise not_found("batch")
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


def batch_record(row: Mapping[str, Any]) -> StoredBatch:
    """Returns the batch in a row of `turns`, whose times are in microseconds since 1970."""
    return StoredBatch(
        batch=row["turn"],
        session=row["session"],
        outcome=row["outcome"],
        counts=_counts.decode(row["batch"]),
        error=_failure.decode(row["error"]) if row["error"] else None,
        metadata=_metadata.decode(row["metadata"]),
        asked_at=moment(row["asked_at"]),
        ended_at=moment(row["ended_at"]) if row["ended_at"] is not None else None,
        owner=row["owner"],
    )


def _rows_of(_: TurnKey, turn: Turn, __: TurnRecord) -> AddedRows:
    """Returns the counts of a batch, a column of its row."""
    counts = counts_of(turn)
    return {} if counts is None else {"put_batch": {"batch": msgspec.json.encode(counts).decode()}}


def _start(services: Services, _: NoSettings) -> Parts:
    return Parts(BatchQueries(services.store).handlers())


TABLES = Tables(
    read_queries(__package__),
    _rows_of,
    # The blob with the inputs of a batch has texts of the user of its turns.
    erase_turn=["release_batch_inputs", "delete_batch_input_uses"],
    # Batches are older than their turns, and submit a new turn for each cancelled one.
    erase_first="running_batches",
)
FEATURE = Feature(NoSettings, _start, TABLES)
