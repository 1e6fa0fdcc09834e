"""A gateway subscribes to a turn before it stores it, if the response follows the turn."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry
from tailrace.proto.errors import LogFull
from tailrace.proto.ids import Seq
from tailrace.proto.nats import TurnLog, jetstream_log
from tailrace.proto.nats.log_server import BATCH, LiveFeed, Page
from tailrace.proto.subjects import TurnKey
from tests.harness.generator_in_loop import words
from tests.harness.readers import story_of
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

STREAM = {"accept": "text/event-stream"}


@pytest.mark.rule("R16")
@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize("is_late", [False, True], ids=["", "late"])
@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "key-1"}], ids=["", "idempotent"])
async def test_the_stream_of_a_new_turn_reads_nothing_from_the_log(
    system: System, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], *, is_late: bool
) -> None:
    """Its generator is another process. A second reader shares the feed.

    On a busy machine, the turn may have ended before its gateway goes on after the append.
    """
    # On a busy machine, the second reader and the count of the turn's entries come late.
    gateway = await new_gateway(system.nats_url, linger_s=20)
    monkeypatch.setattr(jetstream_log, "COUNT_TIMEOUT_S", 10)
    reads = list[TurnKey]()

    async def read(self: TurnLog, key: TurnKey, after: Seq, limit: int = BATCH) -> Page:
        reads.append(key)
        return await original(self, key, after, limit)

    async def append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        appended = await original_append(self, key, chain, entry)
        if is_late:
            await until(lambda: self.has_end(key))
        return appended

    original, original_append = TurnLog.read, TurnLog.append
    monkeypatch.setattr(TurnLog, "read", read)
    monkeypatch.setattr(TurnLog, "append", append)
    answer = await gateway.client.post("/v1/turns", json={"message": "#sim words=5 rate=0"}, headers=STREAM | headers)
    received = [one.raw for one in parse(answer.content)]
    assert story_of(received).text == words(5)
    events = await gateway.client.get(f"{answer.headers['location']}/events")
    assert [one.raw for one in parse(events.content)] == received
    assert reads == []


async def test_a_turn_that_cannot_be_stored_leaves_no_subscription(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = list[TurnKey](), list[TurnKey]()

    @asynccontextmanager
    async def subscribe(self: TurnLog, key: TurnKey, kind: str = ">") -> AsyncIterator[LiveFeed]:
        try:
            async with original(self, key, kind) as feed:
                opened.append(key)
                yield feed
        finally:
            closed.append(key)

    async def refuse(*_: object, **__: object) -> Chain:
        assert len(opened) == 1
        raise LogFull("the log is full")

    original = TurnLog.subscribe
    monkeypatch.setattr(TurnLog, "subscribe", subscribe)
    monkeypatch.setattr(TurnLog, "append", refuse)
    answer = await gateway.client.post("/v1/turns", json={"message": "hello"}, headers=STREAM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_full")
    assert closed == opened
