"""The fan-out of a turn to its readers, without a network: where a reader starts, when it waits, when entries go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.gateway import metrics
from tailrace.gateway.clients.native.stream import TAILRACE
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.endings import BROKEN, FAILED, WHOLE
from tailrace.gateway.streaming.feed import FanOut, TurnFeed, is_delta
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.proto import events
from tailrace.proto.entries import Event, Failure, StoredEntry
from tailrace.proto.errors import CursorUnknown, LogError, LogUnavailable, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.restores import Restores
from tailrace.proto.runtime.flag import Flag
from tests.harness.turn_builder import KEY, Handwritten, attempted_turn, completed_turn, opening_events
from tests.harness.until import until
from tests.harness.virtual_time import run

TEXT = DIALECTS["text"]
STORED = completed_turn("a").stored


class ScriptedLog:
    """A log whose followers receive what a test sends: lists of entries, an error, or None for the end."""

    restores = Restores()

    def __init__(self) -> None:
        self.followers: list[asyncio.Queue[list[StoredEntry] | LogError | None]] = []
        self.after: list[Seq] = []
        self.is_purged = False
        self.is_away = False
        self.is_silent = False

    async def has_end(self, _: TurnKey) -> bool:
        if self.is_silent:
            await asyncio.Event().wait()
        if self.is_away:
            raise LogUnavailable("?")
        return not self.is_purged

    async def follow_into(
        self, _: TurnKey, after: Seq, receive: Callable[[list[StoredEntry]], None], __: object = None
    ) -> None:
        queue: asyncio.Queue[list[StoredEntry] | LogError | None] = asyncio.Queue()
        self.followers.append(queue)
        self.after.append(after)
        while (items := await queue.get()) is not None:
            if isinstance(items, LogError):
                raise items
            receive(items)

    async def send(self, *items: list[StoredEntry] | LogError | None, number: int = -1) -> None:
        await until(lambda: self.followers)
        for one in items:
            self.followers[number].put_nowait(one)


def feed_of(*entries: list[StoredEntry], after: Seq = BEFORE_FIRST, heartbeat_s: float = 60.0) -> TurnFeed:
    """A feed of the turn with `entries`, which has not ended if no `end` is among them."""
    feed = TurnFeed(KEY, after, heartbeat_s)
    for each in entries:
        feed.add(each)
    return feed


@asynccontextmanager
async def fanned_out(
    *sent: list[StoredEntry] | LogError | None, linger_s: float = 10.0
) -> AsyncIterator[tuple[ScriptedLog, asyncio.TaskGroup, FanOut]]:
    """Yields a log that sends `sent` to its first follower, a group of tasks, and the fan-out of the log."""
    log = ScriptedLog()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        if sent:
            group.create_task(log.send(*sent))
        fan_out = FanOut(cast("TurnLog", log), group, linger_s=linger_s, heartbeat_s=60.0)
        yield log, group, fan_out
        fan_out.close()


async def subscribe(fan_out: FanOut, cursor: Seq = BEFORE_FIRST, *, from_start: bool = False) -> tuple[TurnFeed, int]:
    """Subscribes once. Returns the feed, and how many entries it had then."""
    async with fan_out.subscribe(ScopedKey.whole(KEY), cursor, from_start=from_start) as feed:
        return feed, len(feed.entries)


async def send_to_next(log: ScriptedLog, *items: list[StoredEntry] | LogError | None) -> None:
    """Sends to the follower that starts next."""
    count = len(log.followers)
    await until(lambda: len(log.followers) > count)
    await log.send(*items)


def restarted_entries() -> list[StoredEntry]:
    log = completed_turn("old")
    log.stored.pop()
    again = Handwritten()
    for one in log.stored:
        again.store(one.entry)
    again.store_attempt("restart")
    again.store_events(*opening_events())
    again.store_texts("new")
    return again.stored


async def test_a_reader_that_a_silence_woke_sees_an_entry_that_came_since() -> None:
    """The loop may run both before the reader, which was once broken off then."""
    feed = feed_of(heartbeat_s=0)
    changed = asyncio.create_task(feed.wait_for_change(0))
    await asyncio.sleep(0)
    # The silence wakes the reader in the loop's next turn, and then the entry comes; the reader runs in the one after.
    asyncio.get_running_loop().call_soon(feed.add, completed_turn("a").stored)
    assert await changed


async def test_a_feed_says_how_a_stream_ends_that_was_sent_all_of_it() -> None:
    failed = Handwritten()
    failed.store_request()
    failed.end("failed", Failure("backend_overloaded", "Claude is overloaded"))
    broken, at_the_end = feed_of(STORED[:-1]), feed_of([])
    assert broken.ending is None
    broken.fail(LogUnavailable("?"))
    at_the_end.is_ended = True
    endings = [feed.ending for feed in (broken, at_the_end, feed_of(STORED), feed_of(failed.stored))]
    assert endings == [BROKEN, WHOLE, WHOLE, FAILED]


def test_a_delta_is_an_event_that_adds_to_a_block() -> None:
    """Neither the request, nor the start and the stop of a block, nor the end."""
    kinds = [type(events.decode(one.entry.event)) if isinstance(one.entry, Event) else None for one in STORED]
    assert [is_delta(one) for one in STORED] == [kind is events.BlockDelta for kind in kinds]
    assert [is_delta(one) for one in STORED].count(True) == 1


async def test_waiting_readers_are_woken_after_each_silence() -> None:
    """Each of them then sends a heartbeat; a reader that leaves does not wake the others."""
    feed = feed_of(heartbeat_s=0.01)
    leaving, staying = (asyncio.create_task(feed.wait_for_change(0)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert not await staying
    assert not await feed.wait_for_change(0)


def test_a_silence_is_counted_from_the_last_entry() -> None:
    """In virtual time: a heartbeat each second without an entry, and none after an entry came."""

    async def times_of_writes() -> list[float]:
        loop, feed, times = asyncio.get_running_loop(), feed_of(heartbeat_s=1.0), list[float]()

        def write() -> bool:
            times.append(round(loop.time() - begun, 3))
            return len(times) < 5

        begun = loop.time()
        loop.call_later(2.5, feed.add, STORED[:1])
        await feed.call_at_changes(write)
        feed.close()
        return times

    assert run(times_of_writes()) == [1.0, 2.0, 2.5, 3.5, 4.5]


async def test_a_reader_whose_write_fails_raises_its_error_and_stops_no_other() -> None:
    feed = feed_of()

    def fail() -> bool:
        raise ZeroDivisionError

    def end() -> bool:
        return False

    failing, leaving, staying = (asyncio.create_task(feed.call_at_changes(write)) for write in (fail, end, end))
    await asyncio.sleep(0)
    leaving.cancel()
    feed.add(STORED[:1])
    await staying
    with pytest.raises(ZeroDivisionError):
        await failing
    feed.close()


async def test_entries_are_counted() -> None:
    before = metrics.ENTRIES.value
    feed_of(STORED[:2], STORED[2:5])
    assert metrics.ENTRIES.value == before + 5


async def test_the_request_is_known_of_a_turn_that_is_followed_from_its_beginning() -> None:
    async with fanned_out(STORED, None) as (_, __, fan_out):
        assert fan_out.request_of(KEY) is None
        await subscribe(fan_out)
        assert fan_out.request_of(KEY) == STORED[0].entry


@pytest.mark.rule("R135")
async def test_the_wait_for_a_model_is_a_comment_and_other_hidden_entries_are_nothing() -> None:
    log = attempted_turn()
    log.store(Event(prev=log.chain.last, attempt=1, event=events.encode_wait("no such host"), is_hidden=True))
    log.store_events(*opening_events(), is_hidden=True)
    sent = [frame.data for frame in feed_of(log.stored[2:]).frames(DIALECTS["openai-chat"], 0, 100)]
    assert sent == [b": waiting for the model: no such host\n"] + [b""] * (len(sent) - 1)


async def test_a_reader_starts_after_its_cursor() -> None:
    stored = completed_turn("a", "b").stored
    live = feed_of(stored[2:4], stored[4:], after=stored[1].seq)
    assert [live.can_start_at(one.seq) for one in stored] == [False] + [True] * (len(stored) - 1)
    assert not live.can_start_at(Seq(stored[-1].seq + 1))
    assert not live.can_start_at(BEFORE_FIRST)
    assert [live.start_index(one.seq, TAILRACE) for one in stored[1:]] == list(range(len(stored) - 1))


async def test_a_new_reader_starts_after_the_last_restart_where_the_dialect_cannot_reset() -> None:
    """Plain text has the new answer alone; tailrace sends the old one and a reset."""
    stored = restarted_entries()
    live = feed_of(stored)
    start = live.start_index(BEFORE_FIRST, TEXT)
    assert b"".join(frame.data for frame in live.frames(TEXT, start, 100)) == b"new"
    assert live.start_index(BEFORE_FIRST, TAILRACE) == 0
    assert live.start_index(stored[3].seq, TEXT) == 4
    assert feed_of(completed_turn("a").stored).start_index(BEFORE_FIRST, TEXT) == 0


async def test_a_turn_is_rendered_once_in_each_dialect() -> None:
    """At the first request for a frame; all readers share its bytes, in pieces of any size."""
    rendered: list[Seq] = []

    def render(state: None, stored: StoredEntry) -> tuple[Frame, None]:
        rendered.append(stored.seq)
        return Frame(data=b"%d " % stored.seq), state

    counting = Dialect("counting", lambda _: None, render, lambda _, __: Frame(), can_reset=True)
    stored = completed_turn("a", "b").stored
    live = feed_of(stored)
    first = live.frames(counting, 0, 3)
    assert [frame.data for frame in first] == [b"%d " % one.seq for one in stored[:3]]
    assert live.frames(counting, 1, 100) == live.frames(counting, 1, 100)
    assert live.frames(counting, 0, 3)[0] is first[0]
    assert rendered == [one.seq for one in stored]


async def test_frames_are_bounded_by_their_bytes() -> None:
    """A frame that is longer than the bound is returned alone."""

    def render(state: None, stored: StoredEntry) -> tuple[Frame, None]:
        return Frame(data=b"x" * 30), state

    sized = Dialect("sized", lambda _: None, render, lambda _, __: Frame(), can_reset=True)
    feed = feed_of(completed_turn("a", "b").stored)
    assert len(feed.frames(sized, 0, 100, 70)) == len(feed.frames(sized, 0, 100, 60)) == 2
    assert len(feed.frames(sized, 0, 2, 60)) == 2
    assert len(feed.frames(sized, 0, 100, 20)) == 1
    assert feed.frames(sized, len(feed.entries), 100, 20) == []


async def test_waiting_readers_are_woken_by_entries_and_by_an_error() -> None:
    """A reader that waits for an entry that is there does not wait."""
    stored, feed = completed_turn("a").stored, feed_of()
    feed.add(stored[:2])
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        assert await feed.wait_for_change(1)
        waiting = [group.create_task(feed.wait_for_change(2)) for _ in range(3)]
        await asyncio.sleep(0)
        feed.add(stored[2:3])
        assert await asyncio.gather(*waiting) == [True] * 3
        waiting = [group.create_task(feed.wait_for_change(3)) for _ in range(3)]
        await asyncio.sleep(0)
        feed.fail(LogUnavailable("away"))
        feed.close()
        assert await asyncio.gather(*waiting) == [True] * 3
    assert (feed.is_broken, feed.is_ended, len(feed.entries)) == (True, False, 3)


async def test_a_cursor_at_the_end_is_at_the_end() -> None:
    """Nothing follows it, which is not the same as nothing yet: its reader does not wait."""
    async with fanned_out(None) as (_, _, fan_out), fan_out.subscribe(ScopedKey.whole(KEY), STORED[-1].seq) as feed:
        assert feed.is_ended
        assert feed.start_index(STORED[-1].seq, TAILRACE) == len(feed.entries) == 0
        assert await feed.wait_for_change(0)


@pytest.mark.parametrize("error", [TurnUnknown("?"), CursorUnknown("?"), LogUnavailable("?")])
async def test_an_error_before_the_first_entry_is_raised_to_the_subscriber_and_leaves_no_feed(error: LogError) -> None:
    """A response can still say so, and a client that guesses ids does not fill the memory."""
    async with fanned_out(error) as (_, _, fan_out):
        with pytest.raises(type(error)):
            await subscribe(fan_out)
        await until(lambda: fan_out.feed_count == 0)


async def test_readers_of_one_turn_share_one_follower() -> None:
    """Also a reader that reconnects within the linger time, with any cursor that the feed has."""
    async with fanned_out(STORED) as (log, _, fan_out):
        async with fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as first:
            async with fan_out.subscribe(ScopedKey.whole(KEY), STORED[1].seq) as second:
                assert (second is first, first.readers, fan_out.has_readers(KEY)) == (True, 2, True)
            assert (first.readers, fan_out.has_readers(KEY)) == (1, True)
        assert (first.readers, fan_out.has_readers(KEY)) == (0, False)
        assert (await subscribe(fan_out, STORED[2].seq))[0] is first
    assert log.after == [BEFORE_FIRST]


async def test_a_reader_with_an_earlier_cursor_gets_a_follower_from_there() -> None:
    """What is known here begins after its cursor; later readers from anywhere then share the longer one."""
    async with (
        fanned_out(STORED[3:]) as (log, group, fan_out),
        fan_out.subscribe(ScopedKey.whole(KEY), STORED[2].seq) as late,
    ):
        group.create_task(send_to_next(log, STORED))
        async with (
            fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as early,
            fan_out.subscribe(ScopedKey.whole(KEY), STORED[4].seq) as third,
        ):
            assert (early is late, third is early) == (False, True)
            assert (late.readers, early.readers) == (1, 2)
    assert log.after == [STORED[2].seq, BEFORE_FIRST]


async def test_a_wrong_cursor_fails_only_its_own_reader() -> None:
    """A reader with a valid cursor that connects during the lookup of a wrong one gets no 400, which would be final."""
    async with fanned_out() as (log, group, fan_out):
        wrong = asyncio.create_task(subscribe(fan_out, Seq(999)))
        await until(lambda: log.followers)
        good = [group.create_task(subscribe(fan_out)) for _ in range(2)]
        await asyncio.sleep(0)
        sending = group.create_task(send_to_next(log, STORED))
        await log.send(CursorUnknown("?"))
        with pytest.raises(CursorUnknown):
            await wrong
        await sending
        assert (await good[0])[0] is (await good[1])[0]
    assert log.after == [Seq(999), BEFORE_FIRST]


async def test_a_turn_is_dropped_after_its_last_reader_and_the_linger() -> None:
    async with fanned_out(STORED, linger_s=0.01) as (_, _, fan_out):
        await subscribe(fan_out)
        await until(lambda: fan_out.feed_count == 0)


async def test_a_reader_that_returns_within_the_linger_keeps_the_feed() -> None:
    """The timer of the reader before it drops nothing."""
    async with fanned_out(STORED[:4], linger_s=0.05) as (log, _, fan_out):
        await subscribe(fan_out)
        async with fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as feed:
            await asyncio.sleep(0.1)
            await log.send(STORED[4:])
            await until(lambda: len(feed.entries) == len(STORED))
    assert log.after == [BEFORE_FIRST]


async def test_a_feed_that_broke_does_not_linger() -> None:
    """Its readers reconnect at once, and no new reader can use it."""
    async with fanned_out(STORED[:4], linger_s=60.0) as (log, _, fan_out):
        async with fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as feed:
            await log.send(LogUnavailable("?"))
            await until(lambda: feed.is_broken)
        await until(lambda: fan_out.feed_count == 0)


async def test_a_deleted_turn_is_not_sent_to_new_readers() -> None:
    """Readers that have it open continue; a new reader receives what the log answers."""
    async with (
        fanned_out(STORED, None) as (log, group, fan_out),
        fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as first,
    ):
        await until(lambda: first.is_ended)
        assert (await subscribe(fan_out))[0] is first
        log.is_purged = True
        group.create_task(send_to_next(log, TurnUnknown("?")))
        with pytest.raises(TurnUnknown):
            await subscribe(fan_out, STORED[1].seq)
        assert first.frames(TAILRACE, 0, 100)


async def test_an_ended_turn_is_sent_while_the_log_is_unavailable() -> None:
    """The feed has all of it, and whether it was deleted is unknown."""
    async with (
        fanned_out(STORED, None) as (log, _, fan_out),
        fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as first,
    ):
        await until(lambda: first.is_ended)
        log.is_away = True
        assert (await subscribe(fan_out))[0] is first


async def test_a_reader_that_leaves_while_the_log_is_asked_is_not_counted() -> None:
    async with fanned_out(STORED, None, linger_s=0) as (log, group, fan_out):
        async with fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as feed:
            await until(lambda: feed.is_ended)
            log.is_silent = True
            leaving = group.create_task(subscribe(fan_out))
            await until(lambda: feed.readers == 2)
            leaving.cancel()
            await asyncio.wait((leaving,))
            assert feed.readers == 1
        assert not fan_out.has_readers(KEY)
        await until(lambda: fan_out.feed_count == 0)


async def test_a_reader_from_the_start_waits_for_its_cursor() -> None:
    """Dialects that render the answer from its beginning read the shared feed, also if it is behind the client."""
    async with fanned_out(STORED[:4], linger_s=0) as (log, group, fan_out):
        connecting = group.create_task(subscribe(fan_out, STORED[4].seq, from_start=True))
        # The log is asked whether the cursor exists; its answer alone does not bring the feed forward.
        await until(lambda: len(log.followers) == 2)
        await log.send(STORED[5:])
        await until(lambda: fan_out.feed_count == 1)
        assert not connecting.done()
        await log.send(STORED[4:], number=0)
        feed, count = await connecting
        assert (feed.after, count) == (BEFORE_FIRST, len(STORED))
    assert log.after == [BEFORE_FIRST, STORED[4].seq]


@pytest.mark.timeout(10, method="thread")
@pytest.mark.parametrize("is_fork", [False, True], ids=["unknown to the log", "of a fork, which the log still has"])
async def test_a_reader_from_the_start_with_an_invalid_cursor_is_refused(*, is_fork: bool) -> None:
    async with fanned_out(STORED[:4]) as (log, _, fan_out):
        refused = asyncio.create_task(subscribe(fan_out, Seq(999), from_start=True))
        await until(lambda: len(log.followers) == 2)
        await log.send([] if is_fork else CursorUnknown("?"))
        if is_fork:
            # The turn ends without the entry.
            await log.send(STORED[4:], None, number=0)
        with pytest.raises(CursorUnknown):
            await refused
        assert not fan_out.has_readers(KEY)


async def test_the_end_of_a_turn_that_was_read_here_is_known_without_the_log() -> None:
    async with fanned_out(STORED[:-1]) as (log, group, fan_out):
        presence = ReaderPresence(cast("TurnLog", log), cast("Rpc", None), fan_out, group, Flag())
        async with fan_out.subscribe(ScopedKey.whole(KEY), BEFORE_FIRST) as feed:
            await until(lambda: fan_out.request_of(KEY))
            assert not fan_out.has_ended(KEY)
            await log.send(STORED[-1:], None)
            await until(lambda: feed.is_ended)
        log.is_silent = True
        assert await presence.is_over(KEY)
