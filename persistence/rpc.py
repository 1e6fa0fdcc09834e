"""NATS request handlers of persistence: decode, wait until the database has caught up, run the query, encode."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from tailrace.persistence import paging
from tailrace.persistence.rows import micros
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.rpc import Handler
from tailrace.proto.records import Query

# A response is one NATS message, which is 1 MiB at most by default. Pages of long turns are shortened to fit.
PAGE_BYTES_MAX = 512 * 1024

A = TypeVar("A", bound=msgspec.Struct)
T = TypeVar("T", bound=msgspec.Struct)
CatchUp = Callable[[], Awaitable[None]]


def handler(
    query: type[Query[A]], run: Callable[[Tenant, Any], Awaitable[A]], catch_up: CatchUp
) -> tuple[str, Handler]:
    """Returns the subject name of `query` and the NATS handler that answers it with `run`."""
    decoder = msgspec.json.Decoder(query)

    async def answer(tenant: Tenant, body: bytes) -> bytes:
        try:
            decoded = decoder.decode(body)
        except DECODE_ERRORS as error:
            raise Refused("request_invalid", f"the query is not a {query.__name__}") from error
        await catch_up()
        return msgspec.json.encode(await run(tenant, decoded))

    return query.query, answer


def page_of(
    records: Sequence[T], limit: int, sort_key: Callable[[T], tuple[datetime, str]]
) -> tuple[list[T], str | None]:
    """Returns the first `limit` records, or as many as fit in a message, and the page's `next`; None on the last page.

    `records` has one more than `limit` if more follow. `sort_key` returns the time and name that order the list.
    """
    page = fit_in_message(records[:limit])
    if len(page) == len(records):
        return page, None
    at, name = sort_key(page[-1])
    return page, paging.encode(paging.PageCursor(micros(at), name))


async def read_message(records: AsyncIterator[T]) -> list[T]:
    """Returns the first records, up to the one that does not fit in `PAGE_BYTES_MAX` any more. Reads no further one."""
    read, left = list[T](), PAGE_BYTES_MAX
    async for record in records:
        read.append(record)
        left -= len(msgspec.json.encode(record))
        # A single record is a page, also if it is larger.
        if left < 0 and len(read) > 1:
            break
    return read


def fit_in_message(records: Sequence[T]) -> list[T]:
    """Returns as many of the first records as fit in `PAGE_BYTES_MAX`; always at least one."""
    left = PAGE_BYTES_MAX
    for number, record in enumerate(records):
        left -= len(msgspec.json.encode(record))
        if left < 0:
            return list(records[: max(1, number)])
    return list(records)
