"""TurnWriter: writes the frames of a turn to one client, as they come."""

import asyncio
import random
from collections.abc import Callable, Sequence

from starlette.types import Send

from tailrace.gateway import metrics
from tailrace.gateway.http import sse
from tailrace.gateway.http.deferred_response import body
from tailrace.gateway.http.http_protocol import direct_writer
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.endings import BROKEN, StreamEnding
from tailrace.gateway.streaming.feed import TurnFeed, end_at_change
from tailrace.proto.entries import StoredEntry
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import TurnKey

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
"""Called after each write with the turn's entries, the index of the first written one, and that after the last."""
Snapshot = Callable[[TurnKey, Turn, int], sse.Events]
"""Renders the turn so far as a few events. The arguments: key, fold, and the number of events that the few replace."""


class FrameWriter:
    """Writes frames to one client. `send` waits until the client has read enough of the earlier frames."""

    def __init__(self, send: Send, dialect: Dialect, id_prefix: bytes = b"") -> None:
        """`id_prefix` precedes each SSE id."""
        self.is_within_frame = False
        """Whether only a part of a write was sent, so that the body would now end in the middle of a frame."""
        self._send = send
        self._write_part = direct_writer(send)
        self._dialect = dialect
        self._id_prefix = id_prefix
        self._needs_retry = dialect.sends_retry

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
            metrics.SENT_BYTES.value += len(data)
            if self._needs_retry:
                data = sse.retry(random.randint(*RETRY_MS)) + data  # noqa: S311  # no secret
                self._needs_retry = False
        return data, is_break


class TurnWriter(FrameWriter):
    """Writes a turn to one client."""

    def __init__(
        self,
        send: Send,
        dialect: Dialect,
        feed: TurnFeed,
        position: int = 0,
        *,
        id_prefix: bytes = b"",
        to_skip: int = 0,
        part: int = 0,
        snapshot: Snapshot | None = None,
        observe: WriteObserver = lambda _entries, _start, _end: None,
    ) -> None:
        """Writes the frames from the index `position` on, without their first `to_skip` events.

        `part`: the number of events of the first frame that the client has received.
        With `snapshot`, the turn so far is written as the events that `snapshot` returns; the frames after them follow.
        """
        super().__init__(send, dialect, id_prefix)
        self.feed = feed
        self.position = position
        """The index of the turn's next entry."""
        self._to_skip = to_skip
        self._part = part
        self._snapshot = snapshot
        self._observe = observe
        self._needs_begin = snapshot is not None or position > 0
        self._changed: asyncio.Future[None] | None = None
        """The future that the caller awaits before the next step."""

    async def step(self) -> StreamEnding | bool | asyncio.Future[None]:
        """Writes what the feed has. Returns how the stream ends, whether there was news, or what is to be waited for.

        False means that nothing came for a heartbeat interval. While the caller waits for the result, new entries are
        written. The next step follows when it is done.
        """
        if self._changed is not None:
            self.stop()
            if self.position == len(self.feed.entries) and self.feed.ending is None:
                return False
        if not await self.write_stored():
            return BROKEN
        if self.position < len(self.feed.entries):
            # Lets other tasks run between the pieces of a long replay.
            await asyncio.sleep(0)
            return True
        if (ending := self.feed.ending) is not None:
            return ending
        self._changed = self.feed.begin_calling(end_at_change if self._to_skip else self.write_new)
        return self._changed

    def go_on(self, feed: TurnFeed, position: int, observe: WriteObserver) -> None:
        """Writes another turn from the next step on."""
        self.feed, self.position, self._observe = feed, position, observe
        self._to_skip, self._snapshot, self._needs_begin = 0, None, position > 0

    def stop(self) -> None:
        """Writes no more new entries until the next step."""
        if self._changed is not None:
            self.feed.end_calling(self._changed)
            self._changed = None

    async def write_stored(self) -> bool:
        """Writes the next entries that the feed has. Returns False after a break: the body must be cut short."""
        if self._needs_begin:
            self._needs_begin = False
            await self._begin()
        start = self.position
        frames = self.feed.frames(self._dialect, start, FRAMES_MAX, PIECE_BYTES_MAX)
        self.position += len(frames)
        if self._to_skip:
            frames, self._to_skip = skip_events(frames, self._to_skip)
        if self._part:
            frames[:1], self._part = skip_events(frames[:1], self._part)[0], 0
        if not await self.write(frames):
            return False
        self._observe(self.feed.entries, start, self.position)
        return True

    def write_new(self) -> bool:
        """Writes new entries to the connection; returns whether all were written without a wait and the turn goes on.

        The feed calls this function as entries come, so no task is needed. `write_stored` writes the entries that are
        left.
        """
        feed, start, end = self.feed, self.position, len(self.feed.entries)
        if start == end or feed.is_ended or feed.is_broken or self._needs_retry:
            return False
        prefix, pieces = self._id_prefix, []
        for frame in feed.frames(self._dialect, start, FRAMES_MAX):
            if frame.is_break:
                return False
            pieces.append(sse.encode(frame.events, prefix) if prefix and frame.events else frame.data)
        data = b"".join(pieces)
        if len(data) > PIECE_BYTES_MAX or (data and not self._write_part(data)):
            return False
        metrics.SENT_BYTES.value += len(data)
        self.position += len(pieces)
        self._observe(feed.entries, start, self.position)
        return self.position == end

    async def _begin(self) -> None:
        """Writes the snapshot, or renders the entries before the position to bring the dialect's state up to there.

        Both are done in steps, between which other tasks run.
        """
        feed, end = self.feed, self.position
        if self._snapshot is None:
            for position in range(0, end, FRAMES_MAX):
                feed.frames(self._dialect, position, min(FRAMES_MAX, end - position))
                await asyncio.sleep(0)
            return
        turn, count, position = EMPTY_TURN, 0, 0
        while position < len(feed.entries):
            frames = feed.frames(self._dialect, position, FRAMES_MAX)
            turn = fold(feed.entries[position : position + len(frames)], turn)
            count += sum(len(frame.events) for frame in frames)
            position += len(frames)
            await asyncio.sleep(0)
        self.position = position
        await self.write([Frame(self._snapshot(feed.key, turn, count))])
        self._observe(feed.entries, 0, position)


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
