"""TurnWriter: writes a turn to one client as entries come, and waits for a slow client alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tailrace.gateway.clients.native.stream import TAILRACE
from tailrace.gateway.http.deferred_response import body
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.endings import BROKEN, WHOLE, StreamEnding
from tailrace.gateway.streaming.feed import TurnFeed
from tailrace.gateway.streaming.reader import Reader
from tailrace.gateway.streaming.response import serve
from tailrace.gateway.streaming.writer import PIECE_BYTES_MAX, TurnWriter
from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import BEFORE_FIRST
from tests.harness.turn_builder import KEY, completed_turn
from tests.harness.until import until

TURN = completed_turn("a", "b").stored
UNINTERRUPTED = cast(
    "Reader",
    SimpleNamespace(
        until_interrupted=lambda _: nullcontext(),
        is_interrupted=False,
        was_interrupted_idle=False,
        wait_idle=lambda _: None,
    ),
)


class Client(asyncio.Transport):
    """A connection of uvicorn, whose client receives the bodies that a writer sends, unless it stops reading."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.bodies: list[bytes] = []
        self.notes: list[tuple[int, int]] = []
        self.failure: OSError | None = None
        self._flow = FlowControl(self)
        given: Any = ({"method": "GET"}, self, self._flow, *[None] * 8)
        self.cycle = RequestResponseCycle(*given)
        self.cycle.response_started = self.cycle.chunked_encoding = True
        self.send: Any = self.cycle.send

    def read(self) -> None:
        self._flow.resume_writing()

    def stop_reading(self) -> None:
        self._flow.pause_writing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.failure is not None:
            raise self.failure
        self.written.append(bytes(data))
        self.bodies.append(bytes(data).split(b"\r\n", 1)[1].removesuffix(b"\r\n"))

    def note(self, _: Sequence[StoredEntry], start: int, end: int) -> None:
        if start < end:
            self.notes.append((start, end))


def numbered_dialect(break_at: int = -1, large_at: int = -1) -> Dialect:
    """A dialect that renders each entry as its sequence, with a break at one entry and a long text at another."""

    def render(state: None, stored: StoredEntry) -> tuple[Frame, None]:
        data = b"x" * (PIECE_BYTES_MAX + 1) if stored.seq == large_at else b"%d " % stored.seq
        return Frame(data=data, is_break=stored.seq == break_at), state

    return Dialect("numbered", lambda _: None, render, lambda _, __: Frame(), heartbeat=b": ", can_reset=True)


def text_of(stored: Sequence[StoredEntry]) -> bytes:
    return b"".join(b"%d " % one.seq for one in stored)


@asynccontextmanager
async def writing(
    feed: TurnFeed, client: Client, dialect: Dialect
) -> AsyncIterator[tuple[TurnWriter, asyncio.Task[StreamEnding]]]:
    """Writes the turn to the client in a task, and yields when it waits for entries."""
    writer = TurnWriter(client.send, dialect, feed, observe=client.note)

    async def beat() -> None:
        await client.send(body(dialect.heartbeat, more=True))

    async with asyncio.timeout(10):
        task = asyncio.create_task(serve(UNINTERRUPTED, writer.step, beat))
        await until(lambda: feed.waiting_readers)
        try:
            yield writer, task
        finally:
            task.cancel()
            await asyncio.wait((task,))
            writer.stop()


def feed_of(stored: list[StoredEntry], heartbeat_s: float = 60.0) -> TurnFeed:
    feed = TurnFeed(KEY, BEFORE_FIRST, heartbeat_s)
    feed.add(stored)
    return feed


async def test_a_snapshot_counts_as_a_write_of_all_entries_in_it() -> None:
    feed, client = feed_of(TURN), Client()
    writer = TurnWriter(client.send, TAILRACE, feed, snapshot=lambda *_: (), observe=client.note)
    assert await writer.step() is WHOLE
    assert client.notes == [(0, len(feed.entries))]


async def test_an_entry_is_written_when_it_is_added() -> None:
    """Without a switch to the reader's task: the test does not wait between the two."""
    feed, client = feed_of(TURN[:2]), Client()
    async with writing(feed, client, numbered_dialect()) as (_, task):
        for number, stored in enumerate(TURN[2:-1], 3):
            feed.add([stored])
            assert b"".join(client.bodies) == text_of(TURN[:number])
        feed.add(TURN[-1:])
        assert await task is WHOLE
    assert b"".join(client.bodies) == text_of(TURN)
    assert [start for start, _ in client.notes] == [0, *range(2, len(TURN))]


@pytest.mark.parametrize("stored", [0, 1])
async def test_the_first_bytes_have_the_reconnection_delay_whether_they_are_stored_or_new(stored: int) -> None:
    feed, client = feed_of(TURN[:stored]), Client()
    async with writing(feed, client, TAILRACE):
        feed.add(TURN[stored:-1])
        await until(lambda: len(client.notes) == stored + 1)
    assert b"".join(client.bodies).startswith(b"retry: ")
    assert b"".join(client.bodies).count(b"retry: ") == 1


async def test_a_slow_client_is_waited_for_alone() -> None:
    """It receives each entry once and in order, and what it has not received is not noted as written."""
    feed, slow, fast = feed_of(TURN[:1]), Client(), Client()
    async with writing(feed, slow, numbered_dialect()) as (writer, task), writing(feed, fast, numbered_dialect()):
        slow.stop_reading()
        for stored in TURN[1:-1]:
            feed.add([stored])
            await asyncio.sleep(0)
        assert b"".join(fast.bodies) == text_of(TURN[:-1])
        assert (slow.bodies, slow.notes) == ([text_of(TURN[:1])], [(0, 1)])
        assert writer.is_within_frame
        slow.read()
        await until(lambda: len(slow.notes) == 3)
        assert b"".join(slow.bodies) == text_of(TURN[:-1])
        assert slow.notes == [(0, 1), (1, 2), (2, len(TURN) - 1)]
        assert not writer.is_within_frame
        feed.add(TURN[-1:])
        assert await task is WHOLE


async def test_a_write_that_is_cancelled_while_the_client_is_slow_is_within_a_frame() -> None:
    feed, client = feed_of(TURN[:1]), Client()
    async with writing(feed, client, numbered_dialect()) as (writer, task):
        client.stop_reading()
        feed.add(TURN[1:2])
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
        assert writer.is_within_frame
    assert client.bodies == [text_of(TURN[:1])]


async def test_a_write_that_fails_ends_its_own_stream_only() -> None:
    feed, failing, other = feed_of(TURN[:1]), Client(), Client()
    async with writing(feed, failing, numbered_dialect()) as (_, task), writing(feed, other, numbered_dialect()):
        failing.failure = OSError("gone")
        feed.add(TURN[1:2])
        with pytest.raises(OSError, match="gone"):
            await task
        assert b"".join(other.bodies) == text_of(TURN[:2])


async def test_a_break_and_a_large_frame_are_left_to_the_task() -> None:
    """A large frame is written in pieces. After a break nothing is written, though the turn goes on."""
    feed, client = feed_of(TURN[:1]), Client()
    async with writing(feed, client, numbered_dialect(TURN[3].seq, TURN[2].seq)) as (_, task):
        for stored in TURN[1:4]:
            feed.add([stored])
            await until(lambda: feed.waiting_readers or task.done())
        feed.add(TURN[4:5])
        assert await task is BROKEN
    assert list(map(len, client.bodies)) == [2, 2, PIECE_BYTES_MAX, 1, 2]


async def test_a_silence_after_entries_brings_a_heartbeat_and_a_feed_keeps_nothing_of_a_reader_that_has_left() -> None:
    """Many readers may come and go while the turn is silent."""
    feed, client = feed_of(TURN[:1], heartbeat_s=0.01), Client()
    async with writing(feed, client, numbered_dialect()):
        feed.add(TURN[1:2])
        await until(lambda: text_of(TURN[1:2]) in client.bodies and client.bodies[-1] == b": ")
    assert not feed.waiting_readers
