"""Batched direct reads: the size of pages, the number of concurrent reads, and fairness between tenants."""

import asyncio
import time
from contextlib import AsyncExitStack
from signal import SIGCONT

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto import subjects
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection
from tailrace.proto.nats.direct_get import FEW_PER_READ, PAGE_BYTES_MAX, READS_MAX, DirectReader
from tests.harness.freeze import freeze
from tests.harness.proxy import Proxy
from tests.harness.sizes import sizes_of

CALLERS = 5 * READS_MAX


@pytest.mark.rule("R14")
async def test_a_page_has_a_byte_limit(connection: Connection, key: TurnKey) -> None:
    """An entry that exceeds it is the last of its page; no entry is left out, and those that follow are counted."""
    subject = subjects.entry(key, "event")
    sizes = [10, 3 * PAGE_BYTES_MAX, 20, PAGE_BYTES_MAX // 2, PAGE_BYTES_MAX, 30]
    for size in sizes:
        await connection.jetstream.publish(subject, b"x" * size)
    reads, first, pages = DirectReader(connection), Seq(1), []
    while True:
        page = await reads.page(subject, first)
        pages.append([len(message.data) for message in page.messages])
        assert page.following == len(sizes) - sum(map(len, pages))
        if page.is_last:
            break
        first = Seq(int((page.messages[-1].headers or {})["Nats-Sequence"]) + 1)
    assert pages == [sizes[:2], sizes[2:5], sizes[5:]]


async def test_the_largest_requests_are_read_at_once_without_losing_the_connection(own_connection: Connection) -> None:
    """nats-server closes a connection with too many unsent bytes, and all readers of the process would wait."""
    keys = [TurnKey(Tenant("loud"), TurnId(new_id())) for _ in range(FEW_PER_READ * READS_MAX)]
    largest = b"x" * (own_connection.client.max_payload - 1000)
    for key in keys:
        await own_connection.jetstream.publish(subjects.entry(key, "request"), largest, timeout=10)
    reads = DirectReader(own_connection)
    await reads.page(subjects.entry(keys[0], "request"), Seq(1), 1)
    reading = [asyncio.create_task(reads.page(subjects.entry(key, "request"), Seq(1), 1)) for key in keys]
    await asyncio.sleep(0)
    await own_connection.flush()
    # A busy process reads late.
    time.sleep(1)  # noqa: ASYNC251
    pages = await asyncio.gather(*reading)
    assert [len(page.messages[0].data) for page in pages] == [len(largest)] * len(keys)
    assert own_connection.disconnects == 0


@pytest.mark.rule("F13")
@pytest.mark.rule("R14")
async def test_an_answer_to_an_earlier_try_is_accepted(own_server: NatsServer, key: TurnKey) -> None:
    """With half a second of delay each way no try would be answered within its own timeout."""
    subject = subjects.entry(key, "event")
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(Proxy.in_front_of(own_server.url))
        connection = await Connection.open(link.url_of(own_server.url), "test")
        stack.push_async_callback(connection.close)
        for _ in range(3):
            await connection.jetstream.publish(subject, b"x")
        reads = DirectReader(connection)
        await reads.page(subject, Seq(1))
        before = sizes_of(reads)
        link.fail("delay")
        page = await reads.page(subject, Seq(1))
        assert (len(page.messages), page.is_last) == (3, True)
        assert sizes_of(reads) == before
        link.restore()


@pytest.mark.rule("R14")
async def test_concurrent_reads_are_limited_and_fair_between_tenants(
    own_server: NatsServer, own_connection: Connection, key: TurnKey
) -> None:
    """The others wait in this process. A read of another tenant comes before those that have waited longer."""
    other = TurnKey(Tenant("other"), TurnId(new_id()))
    subjects_of = [subjects.entry(each, "event") for each in (key, other)]
    for subject in subjects_of:
        await own_connection.jetstream.publish(subject, b"x")
    reads = DirectReader(own_connection)
    await reads.page(subjects_of[0], Seq(1))
    freeze(own_server)
    try:
        many = [asyncio.create_task(reads.page(subjects_of[0], Seq(1))) for _ in range(CALLERS)]
        await asyncio.sleep(0)
        one = asyncio.create_task(reads.page(subjects_of[1], Seq(1)))
        await asyncio.sleep(0)
    finally:
        own_server.signal(SIGCONT)
    assert len((await one).messages) == 1
    assert sum(page.done() for page in many) <= 2 * READS_MAX
    assert [len(page.messages) for page in await asyncio.gather(*many)] == [1] * CALLERS
