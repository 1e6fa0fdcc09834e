"""Batched reads of a real server: what a page holds, and how many are asked for at once."""

import asyncio
from signal import SIGCONT, SIGSTOP

import pytest

from deploy.nats_server import NatsServer
from proto import subjects
from proto.ids import Seq
from proto.log import Connection
from proto.log.reads import AT_ONCE, PAGE_BYTES_MAX, Reads
from proto.subjects import TurnKey
from tests.until import until

CALLERS = 5 * AT_ONCE


@pytest.mark.rule("R14")
async def test_a_page_of_long_entries_is_short_and_none_is_left_out(connection: Connection, key: TurnKey) -> None:
    """One that is longer than a page may be is the last of its page, and the next begins after it."""
    subject = subjects.entry(key, "event")
    sizes = [10, 3 * PAGE_BYTES_MAX, 20, PAGE_BYTES_MAX // 2, PAGE_BYTES_MAX, 30]
    for size in sizes:
        await connection.jetstream.publish(subject, b"x" * size)
    reads, first, pages = Reads(connection), Seq(1), []
    while True:
        page = await reads.page(subject, first)
        pages.append([len(message.data) for message in page.messages])
        if page.is_last:
            break
        first = Seq(int((page.messages[-1].headers or {})["Nats-Sequence"]) + 1)
    assert pages == [sizes[:2], sizes[2:5], sizes[5:]]


@pytest.mark.rule("R14")
async def test_no_more_is_asked_for_at_once_than_a_server_answers_in_time(
    own_server: NatsServer, own_connection: Connection, key: TurnKey
) -> None:
    """While it stands still the rest waits here, and costs the others nothing; all of it is told after that."""
    subject = subjects.entry(key, "event")
    await own_connection.jetstream.publish(subject, b"x")
    reads = Reads(own_connection)
    await reads.page(subject, Seq(1))
    own_server.signal(SIGSTOP)
    try:
        asking = [asyncio.create_task(reads.page(subject, Seq(1))) for _ in range(CALLERS)]
        await until(lambda: len(reads._batches) >= AT_ONCE)
        assert len(reads._batches) == AT_ONCE
    finally:
        own_server.signal(SIGCONT)
    pages = await asyncio.gather(*asking)
    assert [len(page.messages) for page in pages] == [1] * CALLERS
