"""Turns that are being read here: each followed once, rendered once per dialect, shared by all its readers.

A reader is an index into what its turn has so far. That is all the buffer there is: a reader who is slow, or stands
still, costs nothing and holds nobody up.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

from tailrace.gateway import metrics
from tailrace.gateway.clients.dialect import Dialect
from tailrace.gateway.streaming import sse
from tailrace.proto.entries import Attempt, End, Stored
from tailrace.proto.errors import CursorUnknown, LogError, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey

# The log answers in less than a millisecond, or is away.
KEPT_TIMEOUT_S = 0.5


class TurnFeed:
    """One turn, from the entry after `after` on, as it is written."""

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
        """Adds entries until the turn has ended. What goes wrong is told to the readers, and to whoever catches up."""
        try:
            async with aclosing(log.follow(self.key, self.after)) as follower:
                async for entries in follower:
                    self._add(entries)
                    self._caught_up.set()
            # The iterator ends with the turn. A cursor at the end has nothing after it, and is at the end all the same.
            self.is_ended = True
        except LogError as error:
            self._error = error
        finally:
            self._caught_up.set()
            self._wake()

    async def caught_up(self) -> None:
        """Waits until what was stored already is here; raises TurnUnknown, CursorUnknown, LogUnavailable."""
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
            # Who has seen nothing need not be told to forget it.
            return max((i for i, stored in enumerate(self.entries) if _is_restart(stored)), default=-1) + 1
        return position

    def frames(self, dialect: Dialect, start: int, most: int) -> list["RenderedFrame"]:
        """Up to `most` frames from index `start` on; rendered once, whoever asks first."""
        rendered = self._rendered.get(dialect.name)
        if rendered is None:
            rendered = self._rendered[dialect.name] = _Rendered(dialect, self.key)
        return rendered.upto(self.entries, start + most)[start : start + most]

    async def changed(self, position: int, timeout_s: float) -> bool:
        """Waits until there is more than `position` entries, or no more will come; False after `timeout_s` seconds."""
        if self._has_more(position):
            return True
        # Each reader waits here for each entry: asyncio.timeout was a tenth of what it takes to tell one.
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _woken, waiting)
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.discard(waiting)
        return self._has_more(position)

    @property
    def is_broken(self) -> bool:
        """It cannot be followed any further. A reader is broken off, comes back, and is told why."""
        return self._error is not None

    def _has_more(self, position: int) -> bool:
        return len(self.entries) > position or self.is_ended or self.is_broken

    def _add(self, entries: list[Stored]) -> None:
        self.entries += entries
        self.seqs += [stored.seq for stored in entries]
        self.is_ended = bool(entries) and isinstance(entries[-1].entry, End)
        metrics.ENTRIES.inc(len(entries))
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            _woken(waiter)

    def _position(self, cursor: Seq) -> int:
        """The index after the entry `cursor`; 0 when that is none of these."""
        position = bisect_right(self.seqs, cursor)
        return position if position and self.seqs[position - 1] == cursor else 0


class RenderedFrame(NamedTuple):
    """A frame with its bytes, which all readers of a dialect share."""

    data: bytes
    events: sse.Events
    is_break: bool


class _Rendered:
    """A turn in one dialect, as far as it was asked for."""

    def __init__(self, dialect: Dialect, key: TurnKey) -> None:
        self._render = dialect.render
        self._state: Any = dialect.start(key)
        self._frames: list[RenderedFrame] = []

    def upto(self, entries: list[Stored], end: int) -> list[RenderedFrame]:
        for stored in entries[len(self._frames) : end]:
            frame, self._state = self._render(self._state, stored)
            self._frames.append(RenderedFrame(frame.data, frame.events, frame.is_break))
        return self._frames


class FanOut:
    """The turns that are read in this process, each followed in `group`, and for `linger_s` after its last reader."""

    def __init__(self, log: TurnLog, group: asyncio.TaskGroup, linger_s: float) -> None:
        self._log = log
        self._group = group
        self._linger_s = linger_s
        self._lives: dict[TurnKey, TurnFeed] = {}
        self._following: dict[TurnFeed, asyncio.Task[None]] = {}
        self._dropping: dict[TurnFeed, asyncio.TimerHandle] = {}

    @asynccontextmanager
    async def reading(self, key: TurnKey, cursor: Seq, *, from_start: bool = False) -> AsyncIterator[TurnFeed]:
        """The turn, for a reader with `cursor`; `from_start`, with all that came before it too.

        Raises TurnUnknown, CursorUnknown, LogUnavailable before it begins.
        """
        if from_start and cursor:
            async with self.reading(key, BEFORE_FIRST) as live:
                await self._reach(live, cursor)
                yield live
            return
        live = await self._joined(key, cursor) or await self._enter(self._open(key, cursor))
        try:
            yield live
        finally:
            self._leave(live)

    def is_read(self, key: TurnKey) -> bool:
        return any(live.key == key and live.readers for live in self._following)

    def close(self) -> None:
        """Stops following everything."""
        for timer in self._dropping.values():
            timer.cancel()
        for following in self._following.values():
            following.cancel()

    async def _joined(self, key: TurnKey, cursor: Seq) -> TurnFeed | None:
        """The turn as others read it already; None when a reader with `cursor` cannot start there."""
        while (live := self._lives.get(key)) is not None:
            try:
                await self._enter(live)
            except CursorUnknown:
                if live.after == cursor:
                    raise
                # Somebody else's cursor was none. That says nothing of this one.
                continue
            if live.is_ended and not await self._is_kept(key):
                self._forget(live)
            elif live.reaches(cursor):
                return live
            # This reader comes from further back, or another gateway has heard more, or it was deleted meanwhile: the
            # log is asked from its cursor.
            self._leave(live)
            return None
        return None

    async def _is_kept(self, key: TurnKey) -> bool:
        """Whether a turn that has ended is still in the log: nobody hears here of one that was deleted, or grew old."""
        try:
            async with asyncio.timeout(KEPT_TIMEOUT_S):
                return await self._log.has_end(key)
        except (TimeoutError, LogUnavailable):
            # When the log is away, what is here is all that there is to tell.
            return True

    async def _reach(self, live: TurnFeed, cursor: Seq) -> None:
        """Waits until `live` has the entry `cursor`; raises CursorUnknown for what is no entry of its turn."""
        if live.reaches(cursor):
            return
        # Another gateway may have heard more, or a first read was behind: the log says whether there is such an entry.
        async with self.reading(live.key, cursor):
            pass
        while not live.reaches(cursor):
            await live.caught_up()
            await live.changed(len(live.entries), self._linger_s)

    async def _enter(self, live: TurnFeed) -> TurnFeed:
        live.readers += 1
        if (timer := self._dropping.pop(live, None)) is not None:
            timer.cancel()
        try:
            await live.caught_up()
        except BaseException:
            self._leave(live)
            raise
        return live

    def _leave(self, live: TurnFeed) -> None:
        live.readers -= 1
        if not live.readers:
            # Who was cut off comes back within a second or two, and then nothing has to be read again.
            linger_s = 0 if live.is_broken else self._linger_s
            self._dropping[live] = asyncio.get_running_loop().call_later(linger_s, self._drop, live)

    def _open(self, key: TurnKey, cursor: Seq) -> TurnFeed:
        live = TurnFeed(key, cursor)
        known = self._lives.get(key)
        if known is None or cursor < known.after:
            self._lives[key] = live
        self._following[live] = self._group.create_task(self._follow(live))
        return live

    async def _follow(self, live: TurnFeed) -> None:
        await live.follow(self._log)
        if live.is_broken:
            # At once: who waits for it asks again without a pause.
            self._forget(live)

    def _drop(self, live: TurnFeed) -> None:
        del self._dropping[live]
        self._following.pop(live).cancel()
        self._forget(live)

    def _forget(self, live: TurnFeed) -> None:
        if self._lives.get(live.key) is live:
            del self._lives[live.key]


def _woken(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _is_restart(stored: Stored) -> bool:
    return isinstance(stored.entry, Attempt) and stored.entry.mode == "restart"
