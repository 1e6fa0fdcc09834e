"""How a question is answered: once all that any client was told is in the database. It knows no question."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from tailrace.persistence import paging
from tailrace.persistence.rows import micros
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.rpc import Answer
from tailrace.proto.records import Query

# An answer is one message, and a server takes 1 MiB of it unless it was told otherwise: a page of long turns is short.
PAGE_BYTES_MAX = 512 * 1024

A = TypeVar("A", bound=msgspec.Struct)
T = TypeVar("T", bound=msgspec.Struct)
Caught = Callable[[], Awaitable[None]]


def answering(
    question: type[Query[A]], ask: Callable[[Tenant, Any], Awaitable[A]], caught_up: Caught
) -> tuple[str, Answer]:
    """The name of a question, and what answers it over NATS."""
    decoder = msgspec.json.Decoder(question)

    async def answer(tenant: Tenant, asked: bytes) -> bytes:
        try:
            decoded = decoder.decode(asked)
        except DECODE_ERRORS as error:
            raise Refused("request_invalid", f"the question is not a {question.__name__}") from error
        await caught_up()
        return msgspec.json.encode(await ask(tenant, decoded))

    return question.query, answer


def paged(records: Sequence[T], limit: int, where: Callable[[T], tuple[datetime, str]]) -> tuple[list[T], str | None]:
    """The first `limit` records, or as many as one message takes, and the `next` of that page; None on the last.

    `records` are one more than `limit`, where others follow. `where`: the time and the name by which a record has its
    place in the list.
    """
    told = fitting(records[:limit])
    if len(told) == len(records):
        return told, None
    at, name = where(told[-1])
    return told, paging.write(paging.PageCursor(micros(at), name))


def fitting(records: Sequence[T]) -> list[T]:
    """As many from the front as one message takes; the first one always."""
    room = PAGE_BYTES_MAX
    for number, record in enumerate(records):
        room -= len(msgspec.json.encode(record))
        if room < 0:
            return list(records[: max(1, number)])
    return list(records)
