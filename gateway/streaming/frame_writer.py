"""FrameWriter: writes the frames of a turn to one client, as they come or at a given pace."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.types import Send

from tailrace.gateway import metrics
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.gateway.streaming.pacing import Pace
from tailrace.gateway.streaming.response import body
from tailrace.proto.entries import StoredEntry
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime.eager import run_to_first_wait

# Limits of one write, in frames and bytes: a late reader receives the past in large pieces, and a client that does not
# read has only a few pieces in memory here.
FRAMES_MAX = 256
PIECE_BYTES_MAX = 64 * 1024
# Range of the reconnection delay (`retry:`). An EventSource waits three seconds by default, which users notice. The
# delay is random: otherwise all readers of a gateway that stops would reconnect to the next one at the same moment.
RETRY_MS = (500, 2000)
# The pause before a body is cut short. A browser then drops the events that it has received but not yet dispatched:
# without the pause this happened to 2 in 100 streams in Chromium.
DISPATCH_S = 0.25

WriteObserver = Callable[[Sequence[StoredEntry], int, int], None]
"""Is called after each write with the turn's entries, and the index of the first one written and of the next one."""
Snapshot = Callable[[TurnKey, Turn, int], sse.Events]
"""Renders the turn so far as a few events. The arguments: key, fold, and the number of events that these replace."""


class FrameWriter:
    """Writes to one client. `send` waits until the client has read enough of what was written before."""

    def __init__(
        self,
        send: Send,
        dialect: Dialect,
        *,
        heartbeat_s: float,
        id_prefix: bytes = b"",
        pace: Pace | None = None,
        observe: WriteObserver,
    ) -> None:
        self.is_within_frame = False
        """Whether only a part of a write was sent, so that the body would now end in the middle of a frame."""
        self._send = send
        self._dialect = dialect
        self._heartbeat_s = heartbeat_s
        self._id_prefix = id_prefix
        self._pace = pace
        self._observe = observe
        self._position = 0
        """The index of the turn's next entry."""
        self._unfinished: tuple[Awaitable[None], int] | None = None
        """The rest of a write that `_write_new` has begun and that waits for the client, and its first entry."""
        self._needs_retry = dialect.sends_retry

    async def write_turn(
        self, feed: TurnFeed, position: int, *, to_skip: int = 0, snapshot: Snapshot | None = None
    ) -> bool:
        """Writes the frames from the index `position` on until the turn ends, the feed breaks or a frame is a break.

        Returns whether the turn has ended. The first `to_skip` events are not written. With `snapshot`, the turn so far
        is written as the events that it returns, and the frames after it follow.
        """
        self._position = position
        if snapshot is not None:
            turn, count, self._position = await self._fold(feed)
            await self.write([Frame(snapshot(feed.key, turn, count))])
            self._observe(feed.entries, 0, self._position)
        elif position:
            await self._render(feed, position)
        most, now = FRAMES_MAX, asyncio.get_running_loop().time
        while True:
            start = self._position
            if self._pace is not None:
                most = self._pace.count_due(feed.entries, start, FRAMES_MAX, now())
            frames = feed.frames(self._dialect, start, most, PIECE_BYTES_MAX)
            self._position += len(frames)
            if to_skip:
                frames, to_skip = skip_events(frames, to_skip)
            if not await self.write(frames):
                return False
            self._observe(feed.entries, start, self._position)
            if self._position < len(feed.entries):
                is_news = await self._wait_until_due(feed)
            elif feed.is_broken or feed.is_ended:
                return feed.is_ended
            elif self._pace is not None or to_skip:
                is_news = await feed.wait_for_change(self._position)
            else:
                is_news = await self._follow(feed)
            if not is_news and self._dialect.heartbeat:
                await self._send(body(self._dialect.heartbeat, more=True))

    async def _follow(self, feed: TurnFeed) -> bool:
        """Writes new entries as they are added to the feed; returns False after a silence.

        Returns True when something is to be done that may wait: more entries, the end of the turn, a slow client.
        """
        await feed.call_at_changes(partial(self._write_new, feed))
        if self._unfinished is not None:
            rest, start = self._unfinished
            await rest
            self._unfinished, self.is_within_frame = None, False
            self._observe(feed.entries, start, self._position)
            return True
        return self._position < len(feed.entries) or feed.is_ended or feed.is_broken

    def _write_new(self, feed: TurnFeed) -> bool:
        """Writes new entries without waiting; returns whether it could, and whether the turn goes on."""
        start = self._position
        if start == len(feed.entries) or feed.is_ended or feed.is_broken:
            return False
        frames = feed.frames(self._dialect, start, FRAMES_MAX, PIECE_BYTES_MAX)
        for frame in frames:
            if frame.is_break or len(frame.data) > PIECE_BYTES_MAX:
                return False
        self._position += len(frames)
        data, _ = self._join(frames)
        if data and (rest := run_to_first_wait(self._send(body(data, more=True)))) is not None:
            self._unfinished, self.is_within_frame = (rest, start), True
            return False
        self._observe(feed.entries, start, self._position)
        return True

    async def write(self, frames: list[Frame]) -> bool:
        """Writes `frames` up to the first break. Returns False if there was one: the body must then be cut short."""
        data, is_break = self._join(frames)
        self.is_within_frame = bool(data)
        for start in range(0, len(data), PIECE_BYTES_MAX):
            await self._send(body(data[start : start + PIECE_BYTES_MAX], more=True))
        self.is_within_frame = False
        if is_break:
            await asyncio.sleep(DISPATCH_S)
        return not is_break

    def _join(self, frames: list[Frame]) -> tuple[bytes, bool]:
        """Returns the bytes of `frames` up to the first break, and whether there was one."""
        prefix, pieces, is_break = self._id_prefix, list[bytes](), False
        for frame in frames:
            pieces.append(sse.encode(frame.events, prefix) if prefix and frame.events else frame.data)
            if frame.is_break:
                is_break = True
                break
        if data := b"".join(pieces):
            metrics.SENT_BYTES.inc(len(data))
            if self._needs_retry:
                data = sse.retry(random.randint(*RETRY_MS)) + data  # noqa: S311  # no secret
                self._needs_retry = False
        return data, is_break

    async def _wait_until_due(self, feed: TurnFeed) -> bool:
        """Waits until the next entry is due, at most one heartbeat interval; returns whether it is."""
        if self._pace is None:
            # Lets other tasks run between the pieces of a long replay.
            await asyncio.sleep(0)
            return True
        wait_s = self._pace.due_in_s(feed.entries[self._position], asyncio.get_running_loop().time())
        await asyncio.sleep(min(max(wait_s, 0), self._heartbeat_s))
        return wait_s <= self._heartbeat_s

    async def _render(self, feed: TurnFeed, end: int) -> None:
        """Renders the entries before the index `end`, in steps, to bring the dialect's state up to there."""
        for position in range(0, end, FRAMES_MAX):
            feed.frames(self._dialect, position, min(FRAMES_MAX, end - position))
            await asyncio.sleep(0)

    async def _fold(self, feed: TurnFeed) -> tuple[Turn, int, int]:
        """Returns the turn so far, the number of its events and of its entries; computes them in steps."""
        turn, count, position = EMPTY_TURN, 0, 0
        while position < len(feed.entries):
            frames = feed.frames(self._dialect, position, FRAMES_MAX)
            turn = fold(feed.entries[position : position + len(frames)], turn)
            count += sum(len(frame.events) for frame in frames)
            position += len(frames)
            await asyncio.sleep(0)
        return turn, count, position


def skip_events(frames: list[Frame], count: int) -> tuple[list[Frame], int]:
    """Returns `frames` without their first `count` events, and how many events are still to be skipped.

    A frame that is skipped whole loses its break, too: the client was disconnected there and has reconnected since.
    """
    for index, frame in enumerate(frames):
        if len(frame.events) > count:
            rest = frame.events[count:]
            return [Frame(rest, frame.is_break), *frames[index + 1 :]], 0
        count -= len(frame.events)
    return [], count
