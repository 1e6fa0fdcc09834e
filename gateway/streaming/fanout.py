"""Fan-out: each turn that is read here is followed once and rendered once per dialect, for all its readers.

A reader is an index into the turn's entries. There is no other buffer: a slow reader costs nothing and delays no other.
"""

import asyncio
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

from tailrace.gateway import metrics
from tailrace.gateway.streaming import sse
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.proto.entries import Attempt, End, Stored
from tailrace.proto.errors import CursorUnknown, LogError, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey

# The log answers in less than a millisecond, or is unavailable.
KEPT_TIMEOUT_S = 0.5


class TurnFeed:
    """The entries of one turn after `after`, as they are stored, and their frames."""

    def __init__(self, key: TurnKey, after: Seq) -> None:
        self.key = key
        self.after = after
        self.entries: list[Stored] = []
        self.seqs: list[Seq] = []
        self.is_ended = False
        self.readers = 0
        self._error: LogError | None = None
        self._caught_up = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()
        self._rendered: dict[str, _Rendered] = {}

    async def follow(self, log: TurnLog) -> None:
        """Adds entries until the turn has ended. An error is raised in `caught_up`, and sets `is_broken`."""
        try:
            async with aclosing(log.follow(self.key, self.after)) as follower:
                async for entries in follower:
                    self._add(entries)
                    self._caught_up.set()
            # The iterator ends with the turn. After a cursor at the end nothing comes, and the turn has ended, too.
            self.is_ended = True
        except LogError as error:
            self._error = error
        finally:
            self._caught_up.set()
            self._wake()

    async def caught_up(self) -> None:
        """Waits until the stored entries are here. Raises TurnUnknown, CursorUnknown, LogUnavailable."""
        await self._caught_up.wait()
        if self._error is not None:
            raise self._error

    def reaches(self, cursor: Seq) -> bool:
        """Whether a reader with `cursor` can start here."""
        return cursor == self.after or self._position(cursor) > 0

    def start(self, cursor: Seq, dialect: Dialect) -> int:
        """The index that a reader with `cursor` starts at."""
        position = 0 if cursor == self.after else self._position(cursor)
        if cursor == BEFORE_FIRST and not dialect.can_reset:
            # A new reader has nothing to reset.
            return max((i for i, stored in enumerate(self.entries) if _is_restart(stored)), default=-1) + 1
        return position

    def frames(self, dialect: Dialect, start: int, most: int, bytes_max: int = sys.maxsize) -> list["RenderedFrame"]:
        """Up to `most` frames from the index `start` on, of `bytes_max` bytes together, or one longer frame."""
        rendered = self._rendered.get(dialect.name)
        if rendered is None:
            rendered = self._rendered[dialect.name] = _Rendered(dialect, self.key)
        frames = rendered.render(self.entries, start + most)[start : start + most]
        size = 0
        for index, frame in enumerate(frames):
            size += len(frame.data)
            if size > bytes_max:
                return frames[: max(index, 1)]
        return frames

    async def changed(self, position: int, timeout_s: float) -> bool:
        """Waits for more than `position` entries, or until no more will come; False after `timeout_s` seconds."""
        if len(self.entries) > position or self.is_ended or self.is_broken:
            return True
        # Each reader waits here for each entry: asyncio.timeout took a tenth of the time that a delta costs.
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _wake_one, waiting)
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.discard(waiting)
        return len(self.entries) > position or self.is_ended or self.is_broken

    @property
    def is_broken(self) -> bool:
        """Whether the turn cannot be followed further. Its readers are disconnected, retry, and receive the error."""
        return self._error is not None

    def _add(self, entries: list[Stored]) -> None:
        self.entries += entries
        self.seqs += [stored.seq for stored in entries]
        self.is_ended = bool(entries) and isinstance(entries[-1].entry, End)
        metrics.ENTRIES.inc(len(entries))
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            _wake_one(waiter)

    def _position(self, cursor: Seq) -> int:
        """The index after the entry `cursor`; 0 when it is no entry of this feed."""
        position = bisect_right(self.seqs, cursor)
        return position if position and self.seqs[position - 1] == cursor else 0


class RenderedFrame(NamedTuple):
    """A frame with its bytes, which all readers of a dialect share."""

    data: bytes
    events: sse.Events
    is_break: bool


class _Rendered:
    """The frames of a turn in one dialect, as far as they were needed."""

    def __init__(self, dialect: Dialect, key: TurnKey) -> None:
        self._render = dialect.render
        self._state: Any = dialect.start(key)
        self._frames: list[RenderedFrame] = []

    def render(self, entries: list[Stored], end: int) -> list[RenderedFrame]:
        """All frames so far, at least those before the index `end`."""
        for stored in entries[len(self._frames) : end]:
            frame, self._state = self._render(self._state, stored)
            self._frames.append(RenderedFrame(frame.data, frame.events, frame.is_break))
        return self._frames


class FanOut:
    """The feeds of this process, each followed in `group`, and for `linger_s` after its last reader."""

    def __init__(self, log: TurnLog, group: asyncio.TaskGroup, linger_s: float) -> None:
        self._log = log
        self._group = group
        self._linger_s = linger_s
        self._feeds: dict[TurnKey, TurnFeed] = {}
        self._following: dict[TurnFeed, asyncio.Task[None]] = {}
        self._dropping: dict[TurnFeed, asyncio.TimerHandle] = {}

    @asynccontextmanager
    async def subscribe(self, key: TurnKey, cursor: Seq, *, from_start: bool = False) -> AsyncIterator[TurnFeed]:
        """The feed of a turn for a reader with `cursor`; `from_start`, with all entries before it, too.

        Raises TurnUnknown, CursorUnknown, LogUnavailable before it begins.
        """
        if from_start and cursor:
            async with self.subscribe(key, BEFORE_FIRST) as feed:
                await self._reach(feed, cursor)
                yield feed
            return
        feed = await self._join(key, cursor) or await self._enter(self._open(key, cursor))
        try:
            yield feed
        finally:
            self._leave(feed)

    def is_read(self, key: TurnKey) -> bool:
        return any(feed.key == key and feed.readers for feed in self._following)

    def close(self) -> None:
        """Stops following all turns."""
        for timer in self._dropping.values():
            timer.cancel()
        for following in self._following.values():
            following.cancel()

    async def _join(self, key: TurnKey, cursor: Seq) -> TurnFeed | None:
        """The feed that other readers use already; None when a reader with `cursor` cannot start there."""
        while (feed := self._feeds.get(key)) is not None:
            try:
                await self._enter(feed)
            except CursorUnknown:
                if feed.after == cursor:
                    raise
                # The cursor of the feed's first reader was unknown. That says nothing of this one.
                continue
            if feed.is_ended and not await self._is_kept(key):
                self._forget(feed)
            elif feed.reaches(cursor):
                return feed
            # The cursor is older than the feed, or this gateway's feed is behind another's, or the turn was deleted:
            # the log is read from the cursor.
            self._leave(feed)
            return None
        return None

    async def _is_kept(self, key: TurnKey) -> bool:
        """Whether an ended turn is still in the log: a deletion, or the retention, is not announced here."""
        try:
            async with asyncio.timeout(KEPT_TIMEOUT_S):
                return await self._log.has_end(key)
        except (TimeoutError, LogUnavailable):
            # While the log is unavailable, the entries here are served.
            return True

    async def _reach(self, feed: TurnFeed, cursor: Seq) -> None:
        """Waits until `feed` has the entry `cursor`. Raises CursorUnknown when the turn has no such entry."""
        if feed.reaches(cursor):
            return
        # Another gateway may have received more, or a first read was stale: the log says whether it exists.
        async with self.subscribe(feed.key, cursor):
            pass
        while not feed.reaches(cursor):
            await feed.caught_up()
            await feed.changed(len(feed.entries), self._linger_s)

    async def _enter(self, feed: TurnFeed) -> TurnFeed:
        feed.readers += 1
        if (timer := self._dropping.pop(feed, None)) is not None:
            timer.cancel()
        try:
            await feed.caught_up()
        except BaseException:
            self._leave(feed)
            raise
        return feed

    def _leave(self, feed: TurnFeed) -> None:
        feed.readers -= 1
        if not feed.readers:
            # A client that lost its connection returns within a second or two: then nothing has to be read again.
            linger_s = 0 if feed.is_broken else self._linger_s
            self._dropping[feed] = asyncio.get_running_loop().call_later(linger_s, self._drop, feed)

    def _open(self, key: TurnKey, cursor: Seq) -> TurnFeed:
        feed = TurnFeed(key, cursor)
        known = self._feeds.get(key)
        if known is None or cursor < known.after:
            self._feeds[key] = feed
        self._following[feed] = self._group.create_task(self._follow(feed))
        return feed

    async def _follow(self, feed: TurnFeed) -> None:
        await feed.follow(self._log)
        if feed.is_broken:
            # At once: its readers ask again without a pause.
            self._forget(feed)

    def _drop(self, feed: TurnFeed) -> None:
        del self._dropping[feed]
        self._following.pop(feed).cancel()
        self._forget(feed)

    def _forget(self, feed: TurnFeed) -> None:
        if self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]


def _wake_one(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _is_restart(stored: Stored) -> bool:
    return isinstance(stored.entry, Attempt) and stored.entry.mode == "restart"
