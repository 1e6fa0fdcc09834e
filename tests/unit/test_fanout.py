"""The fan-out of a turn to its readers, without a network: where a reader starts, when it waits, when entries go."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import pytest
from starlette.types import Message

from tailrace.gateway.clients.native.stream import TAILRACE
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.fanout import FanOut, TurnFeed
from tailrace.gateway.streaming.frame_writer import FrameWriter
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.proto.entries import Stored
from tailrace.proto.errors import CursorUnknown, LogError, LogUnavailable, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.subjects import TurnKey
from tests.harness.turn_builder import Handwritten, completed_turn, opening_events
from tests.harness.until import until

KEY = TurnKey(Tenant("alice"), TurnId("turn-1"))
TEXT = DIALECTS["text"]


class ScriptedLog:
    """A log whose followers receive what a test sends: lists of entries, an error, or None for the end."""

    def __init__(self) -> None:
        self.followers: list[asyncio.Queue[list[Stored] | LogError | None]] = []
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
        self, _: TurnKey, after: Seq, receive: Callable[[list[Stored]], None], __: object = None
    ) -> None:
        queue: asyncio.Queue[list[Stored] | LogError | None] = asyncio.Queue()
        self.followers.append(queue)
        self.after.append(after)
        while (items := await queue.get()) is not None:
            if isinstance(items, LogError):
                raise items
            receive(items)

    async def send(self, *items: list[Stored] | LogError | None, number: int = -1) -> None:
        await until(lambda: self.followers)
        for one in items:
            self.followers[number].put_nowait(one)


def feed_of(*entries: list[Stored], after: Seq = BEFORE_FIRST, heartbeat_s: float = 60.0) -> TurnFeed:
    """A feed of the turn with `entries`, which has not ended if no `end` is among them."""
    feed = TurnFeed(KEY, after, heartbeat_s)
    for each in entries:
        feed.add(each)
    return feed


def fan_out_of(log: ScriptedLog, group: asyncio.TaskGroup, linger_s: float = 10.0) -> FanOut:
    return FanOut(cast("TurnLog", log), group, linger_s=linger_s, heartbeat_s=60.0)


def restarted_entries() -> list[Stored]:
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


async def test_a_snapshot_counts_as_a_write_of_all_entries_in_it() -> None:
    feed, written = feed_of(completed_turn("a").stored), list[tuple[int, int]]()

    async def send(_: Message) -> None: ...

    def observe(_: Sequence[Stored], start: int, end: int) -> None:
        written.append((start, end))

    writer = FrameWriter(send, TAILRACE, heartbeat_s=60.0, observers=[observe])
    assert await writer.write_turn(feed, 0, snapshot=lambda *_: ())
    assert written[0] == (0, len(feed.entries))


async def test_waiting_readers_are_woken_after_each_silence() -> None:
    """Each of them then sends a heartbeat; a reader that leaves does not wake the others."""
    feed = feed_of(heartbeat_s=0.01)
    leaving, staying = (asyncio.create_task(feed.wait_for_change(0)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert not await staying
    assert not await feed.wait_for_change(0)


async def test_a_reader_starts_after_its_cursor() -> None:
    """At an entry that is here, or where the following began; nowhere else."""
    stored = completed_turn("a", "b").stored
    live = feed_of(stored[2:4], stored[4:], after=stored[1].seq)
    assert [live.can_start_at(one.seq) for one in stored] == [False] + [True] * (len(stored) - 1)
    assert not live.can_start_at(Seq(stored[-1].seq + 1))
    assert not live.can_start_at(BEFORE_FIRST)
    assert [live.start(one.seq, TAILRACE) for one in stored[1:]] == list(range(len(stored) - 1))


async def test_a_new_reader_starts_after_the_last_restart_where_the_dialect_cannot_reset() -> None:
    """Plain text has the new answer alone; tailrace sends the old one and a reset."""
    stored = restarted_entries()
    live = feed_of(stored)
    start = live.start(BEFORE_FIRST, TEXT)
    assert b"".join(frame.data for frame in live.frames(TEXT, start, 100)) == b"new"
    assert live.start(BEFORE_FIRST, TAILRACE) == 0
    assert live.start(stored[3].seq, TEXT) == 4
    assert feed_of(completed_turn("a").stored).start(BEFORE_FIRST, TEXT) == 0


async def test_a_turn_is_rendered_once_in_each_dialect() -> None:
    """At the first request for a frame; all readers share its bytes, in pieces of any size."""
    rendered: list[Seq] = []

    def render(state: None, stored: Stored) -> tuple[Frame, None]:
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

    def render(state: None, stored: Stored) -> tuple[Frame, None]:
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


async def test_nothing_is_waited_for_after_the_end() -> None:
    stored = completed_turn("a").stored
    feed = feed_of(stored)
    assert feed.is_ended
    async with asyncio.timeout(5):
        assert await feed.wait_for_change(len(stored))


async def test_a_cursor_at_the_end_is_at_the_end() -> None:
    """Nothing follows it, which is not the same as nothing yet."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        group.create_task(log.send(None))
        async with fan_out.subscribe(KEY, stored[-1].seq) as feed:
            assert feed.is_ended
            assert feed.start(stored[-1].seq, TAILRACE) == len(feed.entries) == 0
        fan_out.close()


@pytest.mark.parametrize("error", [TurnUnknown("?"), CursorUnknown("?"), LogUnavailable("?")])
async def test_an_error_before_the_first_entry_is_raised_to_the_subscriber(error: LogError) -> None:
    """There a response can still say so."""
    log = ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        group.create_task(log.send(error))
        with pytest.raises(type(error)):
            async with fan_out.subscribe(KEY, BEFORE_FIRST):
                pass


async def test_readers_of_one_turn_share_one_follower() -> None:
    """Also a reader that reconnects within the linger time, with any cursor that the feed has."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        sending = group.create_task(log.send(stored))
        async with fan_out.subscribe(KEY, BEFORE_FIRST) as first:
            await sending
            async with fan_out.subscribe(KEY, stored[1].seq) as second:
                assert (second is first, first.readers, fan_out.has_readers(KEY)) == (True, 2, True)
            assert (first.readers, fan_out.has_readers(KEY)) == (1, True)
        assert (first.readers, fan_out.has_readers(KEY)) == (0, False)
        async with fan_out.subscribe(KEY, stored[2].seq) as again:
            assert again is first
        fan_out.close()
    assert log.after == [BEFORE_FIRST]


async def test_a_reader_with_an_earlier_cursor_gets_a_follower_from_there() -> None:
    """What is known here begins after its cursor; later readers from anywhere then share the longer one."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        group.create_task(log.send(stored[3:]))
        async with fan_out.subscribe(KEY, stored[2].seq) as late:

            async def tell_early() -> None:
                await until(lambda: len(log.followers) == 2)
                await log.send(stored)

            group.create_task(tell_early())
            async with fan_out.subscribe(KEY, BEFORE_FIRST) as early, fan_out.subscribe(KEY, stored[4].seq) as third:
                assert (early is late, third is early) == (False, True)
                assert (late.readers, early.readers) == (1, 2)
        fan_out.close()
    assert log.after == [stored[2].seq, BEFORE_FIRST]


async def test_a_wrong_cursor_fails_only_its_own_reader() -> None:
    """A reader with a valid cursor that connects during the lookup of a wrong one gets no 400, which would be final."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)

        async def connect(cursor: Seq) -> TurnFeed:
            async with fan_out.subscribe(KEY, cursor) as live:
                return live

        wrong = group.create_task(is_refused(connect(Seq(999))))
        await until(lambda: log.followers)
        good = [group.create_task(connect(BEFORE_FIRST)) for _ in range(2)]
        await asyncio.sleep(0)
        await log.send(CursorUnknown("?"))
        await until(lambda: len(log.followers) == 2)
        await log.send(stored)
        await wrong
        assert await good[0] is await good[1]
        fan_out.close()
    assert log.after == [Seq(999), BEFORE_FIRST]


async def is_refused(connecting: Awaitable[TurnFeed]) -> None:
    with pytest.raises(CursorUnknown):
        await connecting


async def test_a_turn_is_dropped_after_its_last_reader_and_the_linger() -> None:
    """Then nothing is left of it: no following, no entries, no timer."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group, 0.01)
        group.create_task(log.send(stored))
        async with fan_out.subscribe(KEY, BEFORE_FIRST):
            pass
        await until(lambda: not fan_out._feeds and not fan_out._following and not fan_out._dropping)


async def test_a_reader_that_returns_within_the_linger_keeps_the_feed() -> None:
    """The timer of the reader before it drops nothing."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group, 0.05)
        group.create_task(log.send(stored[:4]))
        async with fan_out.subscribe(KEY, BEFORE_FIRST):
            pass
        async with fan_out.subscribe(KEY, BEFORE_FIRST) as feed:
            dropped = asyncio.Event()
            asyncio.get_running_loop().call_later(0.1, dropped.set)
            await dropped.wait()
            await log.send(stored[4:])
            await until(lambda: len(feed.entries) == len(stored))
        fan_out.close()
    assert log.after == [BEFORE_FIRST]


async def test_a_feed_that_broke_does_not_linger() -> None:
    """Its readers reconnect at once, and no new reader can use it."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group, linger_s=60.0)
        group.create_task(log.send(stored[:4]))
        async with fan_out.subscribe(KEY, BEFORE_FIRST) as feed:
            await log.send(LogUnavailable("?"))
            await until(lambda: feed.is_broken)
        await until(lambda: not fan_out._dropping)
        assert not fan_out._following


async def test_a_deleted_turn_is_not_sent_to_new_readers() -> None:
    """Readers that have it open continue; a new reader receives what the log answers."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        group.create_task(log.send(stored, None))
        async with fan_out.subscribe(KEY, BEFORE_FIRST) as first:
            await until(lambda: first.is_ended)
            async with fan_out.subscribe(KEY, BEFORE_FIRST) as second:
                assert second is first
            log.is_purged = True
            group.create_task(send_to_next(log, TurnUnknown("?")))
            with pytest.raises(TurnUnknown):
                async with fan_out.subscribe(KEY, stored[1].seq):
                    pass
            assert first.frames(TAILRACE, 0, 100)
        fan_out.close()


async def test_an_ended_turn_is_sent_while_the_log_is_unavailable() -> None:
    """The feed has all of it, and whether it was deleted is unknown."""
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        group.create_task(log.send(stored, None))
        async with fan_out.subscribe(KEY, BEFORE_FIRST) as first:
            await until(lambda: first.is_ended)
            log.is_away = True
            async with fan_out.subscribe(KEY, BEFORE_FIRST) as second:
                assert second is first
        fan_out.close()


async def test_a_reader_that_leaves_while_the_log_is_asked_is_not_counted() -> None:
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        group.create_task(log.send(stored, None))
        async with fan_out.subscribe(KEY, BEFORE_FIRST) as feed:
            await until(lambda: feed.is_ended)
        log.is_silent = True
        leaving = group.create_task(fan_out.subscribe(KEY, BEFORE_FIRST).__aenter__())
        await until(lambda: fan_out.has_readers(KEY))
        leaving.cancel()
        await asyncio.wait((leaving,))
        assert not fan_out.has_readers(KEY)
        assert feed in fan_out._dropping
        fan_out.close()


async def send_to_next(log: ScriptedLog, *items: list[Stored] | LogError | None) -> None:
    """Sends to the follower that starts next."""
    count = len(log.followers)
    await until(lambda: len(log.followers) > count)
    await log.send(*items)


async def test_an_unknown_turn_leaves_no_feed() -> None:
    """Otherwise a client that guesses ids would fill the memory."""
    log = ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        group.create_task(log.send(TurnUnknown("?")))
        with pytest.raises(TurnUnknown):
            async with fan_out.subscribe(KEY, BEFORE_FIRST):
                pass
        await until(lambda: not fan_out._feeds and not fan_out._following and not fan_out._dropping)


async def test_a_reader_from_the_start_waits_for_its_cursor() -> None:
    """Dialects that render the answer from its beginning read the shared feed, also if it is behind the client."""
    stored, log = completed_turn("a", "b").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)

        async def connect() -> tuple[TurnFeed, int]:
            async with fan_out.subscribe(KEY, stored[4].seq, from_start=True) as feed:
                return feed, len(feed.entries)

        connecting = group.create_task(connect())
        await log.send(stored[:4])
        # The log is asked whether the cursor exists; its answer alone does not bring the feed forward.
        await until(lambda: len(log.followers) == 2)
        await log.send(stored[5:])
        await until(lambda: not fan_out._following or len(fan_out._dropping) == 1)
        assert not connecting.done()
        await log.send(stored[4:], number=0)
        feed, count = await connecting
        assert (feed.after, count) == (BEFORE_FIRST, len(stored))
        fan_out.close()
    assert log.after == [BEFORE_FIRST, stored[4].seq]


@pytest.mark.timeout(10, method="thread")
@pytest.mark.parametrize("is_fork", [False, True], ids=["unknown to the log", "of a fork, which the log still has"])
async def test_a_reader_from_the_start_with_an_invalid_cursor_is_refused(*, is_fork: bool) -> None:
    stored, log = completed_turn("a").stored, ScriptedLog()
    async with asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)

        async def connect() -> TurnFeed:
            async with fan_out.subscribe(KEY, Seq(999), from_start=True) as feed:
                return feed

        refused = group.create_task(is_refused(connect()))
        await log.send(stored[:4])
        await until(lambda: len(log.followers) == 2)
        await log.send([] if is_fork else CursorUnknown("?"))
        if is_fork:
            # The turn ends without the entry.
            await log.send(stored[4:], None, number=0)
        await refused
        assert not fan_out.has_readers(KEY)
        fan_out.close()


async def test_the_end_of_a_turn_that_was_read_here_is_known_without_the_log() -> None:
    """The count of unread tokens asks for each turn, a second after its reader has left."""
    log, stored = ScriptedLog(), completed_turn("a").stored
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        fan_out = fan_out_of(log, group)
        presence = ReaderPresence(cast("TurnLog", log), cast("Rpc", None), fan_out, group, Flag())
        async with asyncio.TaskGroup() as reading:
            reading.create_task(read_to_the_end(fan_out))
            await log.send(stored[:-1])
            await until(lambda: fan_out.request_of(KEY))
            assert not fan_out.has_ended(KEY)
            await log.send(stored[-1:], None)
        log.is_silent = True
        assert await presence.is_over(KEY)
        fan_out.close()


async def read_to_the_end(fan_out: FanOut) -> None:
    async with fan_out.subscribe(KEY, BEFORE_FIRST) as feed:
        while not feed.is_ended:
            await feed.wait_for_change(len(feed.entries))
