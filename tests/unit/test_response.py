"""The response that streams a turn, with a log in memory and without a server: how each stream ends."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import CoroutineType, SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.streaming import response
from tailrace.gateway.streaming.response import HeldStream
from tailrace.proto.entries import Failure, StoredEntry
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import follower
from tailrace.proto.nats.log_server import LiveFeed
from tailrace.proto.ownership import ScopedKey
from tailrace.protocols.ai_sdk.stream import UI
from tailrace.protocols.common.event_count import count_events
from tailrace.testing import MemoryLog
from tests.harness.response_client import TAILRACE, Client, client
from tests.harness.turn_builder import KEY, Handwritten, attempt, completed_turn
from tests.harness.until import until


def log_of(stored: list[StoredEntry]) -> MemoryLog:
    log = MemoryLog()
    log.load(KEY, stored)
    return log


def running_turn() -> list[StoredEntry]:
    return completed_turn("a", "b").stored[:-3]


async def test_other_tasks_run_while_the_chunks_of_a_long_answer_are_counted() -> None:
    """20,000 deltas took 110 ms."""
    async with client(log_of(completed_turn(*["a"] * 2000).stored)) as one:
        counting, runs = asyncio.create_task(count_events(one.streams, ScopedKey.whole(KEY), UI, 0)), 0
        while not counting.done():
            runs += 1
            await asyncio.sleep(0)
        count, _ = await counting
    assert count > 2000
    assert runs > 5


async def test_events_that_only_another_gateway_has_read_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has received them is not refused."""
    monkeypatch.setattr(follower, "REREAD_S", 0.05)
    whole, log = completed_turn("a", "b").stored, log_of(running_turn())
    async with client(log) as one, one.fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST):
        count, _ = await count_events(one.streams, ScopedKey.whole(KEY), UI, 0)
        # The live feed loses the rest.
        feeds, log.turn_of(KEY).feeds = log.turn_of(KEY).feeds, []
        log.load(KEY, whole[-3:])
        log.turn_of(KEY).feeds = feeds
        assert await count_events(one.streams, ScopedKey.whole(KEY), UI, count) == (count, False)
        assert (await count_events(one.streams, ScopedKey.whole(KEY), UI, count + 1))[0] > count


@pytest.mark.parametrize(
    ("cause", "disconnects", "is_complete", "dialect"),
    [
        ("disconnected", [0.0], False, "tailrace"),
        ("draining", [], True, "tailrace"),
        # Bare text has no end of its own: a stream that stops must not look like a short answer.
        ("draining", [], False, "text"),
        ("expired", [0.0], True, "tailrace"),
    ],
)
@pytest.mark.parametrize("waits_for_answer", [False, True])
async def test_each_interruption_ends_the_stream_of_a_running_turn(
    cause: str, disconnects: list[float], dialect: str, *, is_complete: bool, waits_for_answer: bool
) -> None:
    """A client that disconnects, or whose credential expires, leaves the turn; one of a draining gateway returns."""
    async with client(log_of(running_turn())) as one:
        streaming = asyncio.create_task(one.run(DIALECTS[dialect], waits_for_answer=waits_for_answer))
        await until(lambda: b"b" in one.body.rpartition(b"a")[2])
        getattr(one, cause).set()
        await streaming
    assert (one.status, one.disconnects, one.is_complete) == (200, disconnects, is_complete)
    assert [reader.ending for reader in one.readers] == [cause]


def frames_of(task: asyncio.Task[None]) -> list[str]:
    """Returns the names of the coroutines that wait in a task."""
    names, waiting = list[str](), cast("object", task.get_coro())
    while isinstance(waiting, CoroutineType):
        names.append(waiting.__name__)
        waiting = waiting.cr_await
    return names


async def begin_idle(one: Client) -> asyncio.Task[None]:
    """Begins a stream, and returns its task when all stored entries were sent."""
    streaming = asyncio.create_task(one.run())
    await until(lambda: b"b" in one.body.rpartition(b"a")[2])
    return streaming


async def test_an_idle_stream_holds_no_frames_between_the_server_and_what_it_waits_for() -> None:
    """They took a quarter of its memory. `run` is the test's own."""
    async with client(log_of(running_turn()), beats_every_s=60) as one:
        streaming = await begin_idle(one)
        assert frames_of(streaming) == ["run", "respond"]
        one.disconnected.set()
        await streaming


@pytest.mark.parametrize("cause", ["disconnected", "draining", "expired"])
async def test_an_idle_stream_that_is_interrupted_sends_no_heartbeat(cause: str) -> None:
    async with client(log_of(running_turn()), beats_every_s=60) as one:
        streaming = await begin_idle(one)
        getattr(one, cause).set()
        await streaming
    assert TAILRACE.heartbeat not in one.body


async def test_an_idle_stream_ends_at_its_maximum_age() -> None:
    async with client(log_of(running_turn()), beats_every_s=60, stream_life_s=0.05) as one:
        await one.run()
    assert [reader.ending for reader in one.readers] == ["aged"]
    assert (one.disconnects, one.is_complete) == ([15.0], True)


async def test_a_request_that_is_cancelled_releases_its_idle_stream() -> None:
    """As uvicorn does with those that outlast its stop. The gateway has no reader of the turn any more."""
    async with client(log_of(running_turn()), beats_every_s=60) as one:
        streaming = await begin_idle(one)
        assert one.fan_out.has_readers(KEY)
        streaming.cancel()
        await asyncio.wait((streaming,))
        assert streaming.cancelled()
        assert not one.fan_out.has_readers(KEY)
    assert [reader.ending for reader in one.readers] == ["failed"]


class AwayLog(MemoryLog):
    """A log that is unavailable for the first two readers."""

    def __init__(self, stored: list[StoredEntry]) -> None:
        super().__init__()
        self.load(KEY, stored)
        self.reads = 0

    async def follow_into(
        self,
        key: TurnKey,
        after: Seq,
        receive: Callable[[list[StoredEntry]], None],
        subscription: AbstractAsyncContextManager[LiveFeed] | None = None,
    ) -> None:
        self.reads += 1
        if self.reads <= 2:
            raise LogUnavailable("away")
        await super().follow_into(key, after, receive, subscription)


async def test_a_held_reader_receives_heartbeats_until_the_log_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An EventSource treats a 503 as final. Without this it has an HTTP status."""
    monkeypatch.setattr(response, "TRY_LOG_EVERY_S", 0.01)
    stored = completed_turn("a", "b").stored
    async with client(AwayLog(stored)) as one:
        await one.run(make=HeldStream, cursor=stored[0].seq)
    assert (one.status, one.is_complete, one.sent[1]["body"]) == (200, True, TAILRACE.heartbeat)
    assert b"b" in one.body.rpartition(b"a")[2]
    async with client(AwayLog(stored)) as one:
        await one.run(cursor=stored[0].seq)
    assert one.status == 503


async def test_a_held_reader_whose_slots_are_taken_reads_the_turn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try joins the feed again, and has left it before."""
    monkeypatch.setattr(response, "TRY_LOG_EVERY_S", 0.01)
    stored = completed_turn("a", "b").stored
    busy = Refused("server_busy", "all slots are taken")
    slots: Any = SimpleNamespace(acquire=AsyncMock(side_effect=[busy, busy, None]), release=AsyncMock())
    async with client(log_of(stored)) as one:
        one.streams.admissions.limiter = SimpleNamespace(slots_of=lambda _: slots)
        await one.run(make=HeldStream, cursor=stored[0].seq)
    assert (one.status, one.is_complete) == (200, True)
    assert not one.fan_out.has_readers(KEY)


async def test_a_held_reader_is_sent_to_another_gateway_when_this_one_drains() -> None:
    stored = completed_turn("a").stored
    async with client(AwayLog(stored)) as one:
        streaming = asyncio.create_task(one.run(make=HeldStream, cursor=stored[0].seq))
        await until(lambda: one.body.count(TAILRACE.heartbeat) > 1)
        one.draining.set()
        await streaming
    assert (one.status, one.is_complete, one.disconnects) == (200, True, [])
    assert one.body == TAILRACE.heartbeat * one.body.count(TAILRACE.heartbeat)


async def test_a_reader_whose_stream_is_broken_off_has_time_to_resume() -> None:
    """OpenAI's SDK does not resume: without a reader, the on_disconnect policy may cancel the turn."""
    log = log_of(running_turn())
    async with client(log) as one:
        streaming = asyncio.create_task(one.run(DIALECTS["openai-chat"]))
        await until(lambda: b"b" in one.body.rpartition(b"a")[2])
        chain = (await log.read_turn(ScopedKey.whole(KEY))).chain
        await log.append(KEY, chain, attempt(chain, "restart"))
        await streaming
    assert (one.disconnects, one.is_complete) == ([15.0], False)
    assert [reader.ending for reader in one.readers] == ["broken"]


@pytest.mark.parametrize(("code", "status"), [("backend_overloaded", 529), ("a_newer_code", 500)])
async def test_a_turn_that_fails_before_its_first_word_has_an_http_status(code: str, status: int) -> None:
    """Many clients do not look for an error inside of a stream. A newer generator may store a code of its own."""
    log = Handwritten()
    log.store_request()
    log.end("failed", Failure(code, "Claude is overloaded"))
    async with client(log_of(log.stored)) as one:
        await one.run(waits_for_answer=True)
    assert one.status == status
    assert not one.disconnects


async def test_a_head_request_has_headers_alone() -> None:
    """Whether the turn runs or has ended."""
    for stored in (running_turn(), completed_turn("a").stored):
        async with client(log_of(stored)) as one:
            await one.run(method="HEAD")
        assert (one.status, one.body, one.is_complete) == (200, b"", True)
