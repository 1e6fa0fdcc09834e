"""NATS request handlers of persistence: decode, wait until the database has caught up, run the query, encode."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from tailrace.persistence import paging
from tailrace.persistence.rows import micros
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.rpc import Handler, decode_query
from tailrace.proto.records import Query

# A response is one NATS message, which is 1 MiB at most by default. Pages of long turns are shortened to fit.
PAGE_BYTES_MAX = 512 * 1024
# The columns of a turn that may be long.
LONG_COLUMNS = ("input", "content", "text")

A = TypeVar("A", bound=msgspec.Struct)
T = TypeVar("T", bound=msgspec.Struct)
CatchUp = Callable[[Tenant | None], Awaitable[None]]
"""Waits until all stored entries of a tenant are recorded; None: of all tenants."""
QueryHandler = tuple[type[Query[Any]], Callable[[Tenant, Any], Awaitable[Any]]]
"""A query, and the method that answers it for a tenant."""


class RowBudget:
    """How many rows of turns one page reads: those that fill a message, and the next one.

    A turn may have megabytes: 200 of them would fill the memory, and the queries of all tenants would wait for them.
    """

    def __init__(self) -> None:
        self._left = PAGE_BYTES_MAX

    def ends_with(self, row: Mapping[str, Any]) -> bool:
        """Counts the next row, and returns whether no further one is needed.

        In `fit_in_message`, a record is at least as long as its columns, so that the page ends before this row.
        """
        is_last = self._left < 0
        self._left -= sum(len(row[name]) for name in LONG_COLUMNS)
        return is_last


def handler(
    query: type[Query[A]],
    run: Callable[[Tenant, Any], Awaitable[A]],
    catch_up: CatchUp,
    require_owned: Callable[[Tenant, Query[A]], Awaitable[None]],
) -> tuple[str, Handler]:
    """Returns the subject name of `query` and the NATS handler that answers it with `run`.

    `require_owned` refuses a query of a private user about what it does not own.
    """

    async def answer(tenant: Tenant, body: bytes) -> bytes:
        decoded = decode_query(body, query)
        await catch_up(None if query.is_about_all_tenants else tenant)
        await require_owned(tenant, decoded)
        return msgspec.json.encode(await run(tenant, decoded))

    return query.query, answer


async def page_of(
    records: AsyncIterable[T] | Sequence[T], limit: int, sort_key: Callable[[T], tuple[datetime, str]]
) -> tuple[list[T], str | None]:
    """Returns the first `limit` records, or as many as fit in a message, and the page's `next`; None on the last page.

    `records` has one more than `limit` if more follow. `sort_key` returns the time and name that order the list.
    """
    page, following = await fit_in_message(records, limit)
    if following is None:
        return page, None
    at, name = sort_key(page[-1])
    return page, paging.encode(paging.PageCursor(micros(at), name))


async def fit_in_message(records: AsyncIterable[T] | Sequence[T], limit: int) -> tuple[list[T], T | None]:
    """Returns the first `limit` records, or as many as fit in `PAGE_BYTES_MAX`, and the next record; None if none is
    left.

    The page has at least one record, even a larger one. Reads no record after the next one.
    """
    page, left = list[T](), PAGE_BYTES_MAX
    async for record in _each(records) if isinstance(records, Sequence) else records:
        left -= len(msgspec.json.encode(record))
        if page and (left < 0 or len(page) == limit):
            return page, record
        page.append(record)
    return page, None


async def _each(records: Sequence[T]) -> AsyncIterator[T]:
    for record in records:
        yield record
