"""Fan-out: normally one follower per turn and one rendering per turn and dialect, for all readers of this process.

A reader is an index into the turn's entries, which all readers share. A slow reader costs no more than its connection's
write buffers, and delays no other reader.
"""

import asyncio
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from tailrace.gateway import metrics
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.endings import BROKEN, FAILED, WHOLE, StreamEnding
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, Failure, Request, StoredEntry
from tailrace.proto.errors import CursorUnknown, LogError, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.log_server import LiveFeed
from tailrace.proto.ownership import ScopedKey, may_use, owner_of

# The timeout of the check that an ended turn is still in the log. The log answers within a millisecond, or not at all.
KEPT_TIMEOUT_S = 0.5


class TurnFeed:
    """The entries of one turn after `after`, added as they are stored, and their frames in each dialect."""

    def __init__(self, key: TurnKey, after: Seq, heartbeat_s: float, id_offset: int = 0) -> None:
        """`heartbeat_s`: waiting readers are woken after this many seconds without an entry. `id_offset`: what the ids
        of events add to the sequences (see Restores)."""
        self.key = key
        self.after = after
        self.entries: list[StoredEntry] = []
        self.seqs: list[Seq] = []
        self.is_ended = False
        self.is_broken = False
        """Whether the turn cannot be followed further. Its readers are disconnected, retry, and receive the error."""
        self.readers = 0
        self._after_restart = 0
        """The index of the entry after the last restart."""
        self._error: LogError | None = None
        self._caught_up: asyncio.Event | None = asyncio.Event()
        """Set, and then None, when the feed has all entries that were stored when it began."""
        self._heartbeat_s = heartbeat_s
        self._id_offset = id_offset
        self._loop = asyncio.get_running_loop()
        self._woken_at = self._loop.time()
        self._silence = self._loop.call_later(heartbeat_s, self._wake_after_silence)
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        """The readers of `begin_calling`: the future that ends the wait, and the function to call."""
        self._rendered: dict[str, _DialectFrames] = {}

    @property
    def request(self) -> Request | None:
        """The turn's request; None as long as the feed has no entries, and in a feed that begins at a cursor."""
        first = self.entries[0].entry if self.entries else None
        return first if isinstance(first, Request) else None

    @property
    def ending(self) -> StreamEnding | None:
        """How a stream ends after all entries were sent; None: more will come."""
        if not self.is_ended:
            return BROKEN if self.is_broken else None
        match self.entries[-1:]:
            case [StoredEntry(entry=End(error=Failure()))]:
                return FAILED
            case _:
                # This includes a feed without entries, whose cursor is at the turn's end.
                return WHOLE

    def add(self, entries: list[StoredEntry]) -> None:
        """Adds the next entries. After the first call, maybe without entries, the feed has all that were stored."""
        for stored in entries:
            self.entries.append(stored)
            self.seqs.append(stored.seq)
            if type(stored.entry) is Attempt and stored.entry.mode == "restart":
                self._after_restart = len(self.entries)
        self.is_ended = bool(entries) and type(entries[-1].entry) is End
        metrics.ENTRIES.value += len(entries)
        if self._caught_up is not None:
            self._end_catching_up()
        self._wake()

    @property
    def waiting_readers(self) -> int:
        """The number of readers that wait for a change."""
        return len(self._waiting)

    def fail(self, error: LogError) -> None:
        """Marks the feed as broken: the turn cannot be followed further.

        From now on, `wait_until_caught_up` raises `error`.
        """
        self._error = error
        self.is_broken = True

    def close(self) -> None:
        """Wakes the readers for the last time: no more entries will come."""
        self._end_catching_up()
        self._wake()
        self._silence.cancel()

    async def wait_until_caught_up(self) -> None:
        """Waits until the feed has all entries that were stored when it began.

        Raises TurnUnknown, CursorUnknown, LogUnavailable.
        """
        if self._caught_up is not None:
            await self._caught_up.wait()
        if self._error is not None:
            raise self._error

    def can_start_at(self, cursor: Seq) -> bool:
        """Returns whether this feed has all entries after `cursor`, so that a reader can start there."""
        return cursor == self.after or self._position(cursor) > 0

    def start_index(self, cursor: Seq, dialect: Dialect) -> int:
        """Returns the index of the entry that a reader with `cursor` starts at."""
        if cursor == BEFORE_FIRST and not dialect.can_reset:
            # The dialect cannot reset a client. A new reader starts at the last restart, and needs no reset.
            return self._after_restart
        return 0 if cursor == self.after else self._position(cursor)

    def frames(self, dialect: Dialect, start: int, most: int, bytes_max: int = sys.maxsize) -> list[Frame]:
        """Returns the frames from the index `start` on: at most `most`, and at most `bytes_max` bytes or one frame.

        An entry is rendered once in each dialect, when the first reader needs it.
        """
        rendered = self._rendered.get(dialect.name + dialect.variant)
        if rendered is None:
            rendered = self._rendered[dialect.name + dialect.variant] = _DialectFrames([], dialect.start(self.key))
        end = min(start + most, len(self.entries))
        for stored in self.entries[len(rendered.frames) : end]:
            marked = replace(stored, seq=self._id_offset + stored.seq) if self._id_offset else stored
            frame, rendered.state = dialect.render(rendered.state, marked)
            rendered.frames.append(frame if frame.data or frame.is_break else dialect.comment_on(stored))
        frames = rendered.frames[start:end]
        size = 0
        for index, frame in enumerate(frames):
            size += len(frame.data)
            if size > bytes_max:
                return frames[: max(index, 1)]
        return frames

    def render_reset(self, dialect: Dialect) -> Frame:
        """Returns the frame that discards what a reader has of the answer: that of a restart after the request."""
        request = self.entries[0]
        _, state = dialect.render(dialect.start(self.key), request)
        restart = Attempt(prev=request.seq, attempt=0, generator="", backend="", mode="restart")
        return dialect.render(state, replace(request, seq=self._id_offset + request.seq, entry=restart))[0]

    async def wait_for_change(self, position: int) -> bool:
        """Waits until there are more than `position` entries, or no more will come; returns False after a silence."""
        if len(self.entries) <= position and not (self.is_ended or self.is_broken):
            await self.call_at_changes(end_at_change)
        return len(self.entries) > position or self.is_ended or self.is_broken

    async def call_at_changes(self, write: Callable[[], bool]) -> None:
        """Calls `write` at each change and after each silence, until it returns False. Raises what `write` raises."""
        stopped = self.begin_calling(write)
        try:
            await stopped
        finally:
            self.end_calling(stopped)

    def begin_calling(self, write: Callable[[], bool]) -> asyncio.Future[None]:
        """Calls `write` at each change and after each silence.

        The result is done when `write` has returned False or raised. A switch to a reader's task would cost more than
        most writes, so the feed calls `write` directly. The readers share one timer: timers for each reader and entry
        took a tenth of the time of a delta. Call `end_calling` with the result.
        """
        stopped: asyncio.Future[None] = self._loop.create_future()
        self._waiting[stopped] = write
        return stopped

    def end_calling(self, stopped: asyncio.Future[None]) -> None:
        """Ends what `begin_calling` has begun. May be called twice."""
        self._waiting.pop(stopped, None)

    def _end_catching_up(self) -> None:
        if self._caught_up is not None:
            self._caught_up.set()
            self._caught_up = None

    def _wake(self) -> None:
        self._woken_at = self._loop.time()
        for stopped, write in tuple(self._waiting.items()):
            # The reader was cancelled and is leaving.
            if stopped.done():
                continue
            try:
                if not write():
                    stopped.set_result(None)
            except Exception as error:  # noqa: BLE001  # it ends this reader, and no other
                stopped.set_exception(error)

    def _wake_after_silence(self) -> None:
        """Wakes the readers if nothing has woken them for a heartbeat interval; schedules itself again."""
        if self._loop.time() >= self._woken_at + self._heartbeat_s:
            self._wake()
        self._silence = self._loop.call_at(self._woken_at + self._heartbeat_s, self._wake_after_silence)

    def _position(self, cursor: Seq) -> int:
        """Returns the index after the entry at `cursor`; 0 when this feed has no such entry."""
        position = bisect_right(self.seqs, cursor)
        return position if position and self.seqs[position - 1] == cursor else 0


@dataclass
class _DialectFrames:
    """The frames of a turn in one dialect so far, and the dialect's state after them."""

    frames: list[Frame]
    state: Any


class FanOut:
    """The feeds of this process. A task in `group` follows each turn until it has had no reader for `linger_s`."""

    def __init__(self, log: TurnLog, group: asyncio.TaskGroup, *, linger_s: float, heartbeat_s: float) -> None:
        self._log = log
        self._group = group
        self._linger_s = linger_s
        self._heartbeat_s = heartbeat_s
        self._feeds: dict[TurnKey, TurnFeed] = {}
        self._following: dict[TurnFeed, asyncio.Task[None]] = {}
        self._dropping: dict[TurnFeed, asyncio.TimerHandle] = {}
        self._readers = Counter[TurnKey]()

    @asynccontextmanager
    async def subscribe(self, key: ScopedKey, cursor: Seq, *, from_start: bool = False) -> AsyncIterator[TurnFeed]:
        """Yields a feed with all entries after `cursor`; with `from_start`, also those before it.

        Raises TurnUnknown, CursorUnknown, LogUnavailable before it yields.
        """
        feed = await self.join(key, cursor, from_start=from_start)
        try:
            yield feed
        finally:
            self.leave(feed)

    async def join(self, key: ScopedKey, cursor: Seq, *, from_start: bool = False) -> TurnFeed:
        """Returns what `subscribe` yields; raises the same errors. Call `leave` with the result."""
        if not key.scope.is_whole_tenant:
            await self._require_owned(key)
        plain, start = key.plain, BEFORE_FIRST if from_start else cursor
        feed = await self._join_shared(plain, start) or await self._add_reader(self._create_feed(plain, start))
        if start != cursor:
            try:
                await self._wait_for_cursor(feed, cursor)
            except BaseException:
                self.leave(feed)
                raise
        return feed

    async def _require_owned(self, key: ScopedKey) -> None:
        """Raises TurnUnknown for a turn that the scope does not show, also if its feed is in memory; LogUnavailable."""
        request = self.request_of(key.plain)
        if request is not None and may_use(key.scope, owner_of(request)):
            return
        await self._log.require_owned(key)

    @asynccontextmanager
    async def expect(self, key: TurnKey) -> AsyncIterator[None]:
        """Surrounds the append of a new turn.

        Subscribes before it, and makes a feed after it, without a read. Drops the feed if no reader comes within
        `linger_s`. Raises LogUnavailable if the connection is closed.
        """
        async with AsyncExitStack() as stack:
            live = await stack.enter_async_context(self._log.subscribe(key))
            yield
            if key not in self._feeds:
                feed = self._create_feed(key, BEFORE_FIRST, _keep(stack.pop_all(), live))
                self._drop_later(feed, self._linger_s)

    @property
    def feed_count(self) -> int:
        """The number of feeds that this process keeps."""
        return len({*self._feeds.values(), *self._following, *self._dropping})

    def has_readers(self, key: TurnKey) -> bool:
        """Returns whether the turn has readers in this process."""
        return key in self._readers

    def has_ended(self, key: TurnKey) -> bool:
        """Returns whether this process has read the turn's end; False also for a turn that it does not follow."""
        feed = self._feeds.get(key)
        return feed is not None and feed.is_ended

    def request_of(self, key: TurnKey) -> Request | None:
        """Returns the request of a turn that this process follows from its beginning; otherwise None."""
        feed = self._feeds.get(key)
        return None if feed is None else feed.request

    def close(self) -> None:
        """Stops following all turns."""
        for timer in self._dropping.values():
            timer.cancel()
        for following in self._following.values():
            following.cancel()

    async def _join_shared(self, key: TurnKey, cursor: Seq) -> TurnFeed | None:
        """Adds a reader to the feed that other readers use; None if no such feed can start at `cursor`."""
        while (feed := self._feeds.get(key)) is not None:
            try:
                await self._add_reader(feed)
            except CursorUnknown:
                if feed.after == cursor:
                    raise
                # The cursor that this feed was created with is unknown. This reader's cursor may be known: try again.
                continue
            try:
                is_gone = feed.is_ended and not await self._is_kept(key)
            except BaseException:
                self.leave(feed)
                raise
            if is_gone:
                self._forget(feed)
            elif feed.can_start_at(cursor):
                return feed
            # The turn has left the log, the feed begins after the cursor, or the client has the cursor from another
            # gateway, whose feed is further on. In each case the caller reads the log from the cursor.
            self.leave(feed)
            return None
        return None

    async def _is_kept(self, key: TurnKey) -> bool:
        """Returns whether an ended turn is still in the log. No message announces deletion or expiry."""
        try:
            async with asyncio.timeout(KEPT_TIMEOUT_S):
                return await self._log.has_end(key)
        except (TimeoutError, LogUnavailable):
            # Serve the entries of the feed while the log is unavailable.
            return True

    async def _wait_for_cursor(self, feed: TurnFeed, cursor: Seq) -> None:
        """Waits until `feed` has the entry `cursor`. Raises CursorUnknown when the turn has no such entry."""
        if feed.can_start_at(cursor):
            return
        # The feed may be behind another gateway's, or its first read was stale. Subscribing at the cursor asks the log:
        # it raises CursorUnknown when no such entry exists.
        async with self.subscribe(ScopedKey.whole(feed.key), cursor):
            pass
        while not feed.can_start_at(cursor):
            # The log had the entry, and the turn has ended without it: the entry belongs to a fork.
            if feed.is_ended:
                raise CursorUnknown("the turn has ended without an entry at this cursor")
            await feed.wait_until_caught_up()
            await feed.wait_for_change(len(feed.entries))

    async def _add_reader(self, feed: TurnFeed) -> TurnFeed:
        feed.readers += 1
        self._readers[feed.key] += 1
        if (timer := self._dropping.pop(feed, None)) is not None:
            timer.cancel()
        try:
            await feed.wait_until_caught_up()
        except BaseException:
            self.leave(feed)
            raise
        return feed

    def leave(self, feed: TurnFeed) -> None:
        """Ends the reading of one reader."""
        feed.readers -= 1
        self._readers[feed.key] -= 1
        if not self._readers[feed.key]:
            del self._readers[feed.key]
        if not feed.readers:
            # A client that lost its connection reconnects within a second or two, and needs no read of the log then.
            self._drop_later(feed, 0 if feed.is_broken else self._linger_s)

    def _drop_later(self, feed: TurnFeed, wait_s: float) -> None:
        self._dropping[feed] = asyncio.get_running_loop().call_later(wait_s, self._drop, feed)

    def _create_feed(
        self, key: TurnKey, cursor: Seq, subscription: AbstractAsyncContextManager[LiveFeed] | None = None
    ) -> TurnFeed:
        feed = TurnFeed(key, cursor, self._heartbeat_s, self._log.restores.offset)
        known = self._feeds.get(key)
        if known is None or cursor < known.after:
            self._feeds[key] = feed
        self._following[feed] = self._group.create_task(self._follow(feed, subscription))
        return feed

    async def _follow(self, feed: TurnFeed, subscription: AbstractAsyncContextManager[LiveFeed] | None = None) -> None:
        """Adds entries to `feed` until the turn has ended, or cannot be followed further."""
        try:
            await self._log.follow_into(feed.key, feed.after, feed.add, subscription)
            # The turn has ended: without any entry if `after` is the turn's end.
            feed.is_ended = True
        except LogError as error:
            # Forget it now: its readers reconnect at once and need a new feed.
            self._forget(feed)
            feed.fail(error)
        finally:
            feed.close()

    def _drop(self, feed: TurnFeed) -> None:
        del self._dropping[feed]
        self._following.pop(feed).cancel()
        self._forget(feed)

    def _forget(self, feed: TurnFeed) -> None:
        if self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]


def end_at_change() -> bool:
    """Ends a wait at the first change: for `TurnFeed.begin_calling`."""
    return False


def is_delta(stored: StoredEntry) -> bool:
    """Returns whether an entry is a delta of the answer."""
    return isinstance(stored.entry, Event) and isinstance(events.decode(stored.entry.event), events.BlockDelta)


@asynccontextmanager
async def _keep(stack: AsyncExitStack, live: LiveFeed) -> AsyncIterator[LiveFeed]:
    """Yields a feed that is already subscribed; unsubscribes it at the end by closing `stack`."""
    async with stack:
        yield live
