"""The number of events that a turn has in a dialect: for cursors that count events."""

import asyncio
from bisect import bisect_right

from tailrace.gateway.http import sse
from tailrace.gateway.streaming import writer
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.feed import TurnFeed
from tailrace.gateway.streaming.reader import StreamContext
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.ownership import ScopedKey

DONE = b"[DONE]"


async def has_unsure_count(streams: StreamContext, key: ScopedKey, dialect: Dialect, seen: int) -> bool:
    """Returns whether some of a client's first `seen` events may be of a log that a restore has thrown away.

    A restored turn has had the events of its entries up to the restore, and a count says not of which log others are.
    Raises TurnUnknown, LogUnavailable.
    """
    if not streams.log.restores.offset:
        return False
    async with streams.fan_out.subscribe(key, BEFORE_FIRST) as feed:
        tail = streams.log.restores.find_tail(feed.seqs[0])
        if tail is None:
            return False
        return seen > await _count_frames(feed, dialect, bisect_right(feed.seqs, tail))


async def count_events(streams: StreamContext, key: ScopedKey, dialect: Dialect, enough: int) -> tuple[int, bool]:
    """Returns how many events a turn has so far, without `[DONE]`, and whether it has ended.

    Counts what this gateway has read; if that is less than `enough`, what is stored: another gateway may be further on.
    Raises TurnUnknown, LogUnavailable.
    """
    known = await _count(streams, key, dialect, after_last=False)
    return known if known[0] >= enough else await _count(streams, key, dialect, after_last=True)


async def _count(streams: StreamContext, key: ScopedKey, dialect: Dialect, *, after_last: bool) -> tuple[int, bool]:
    cursor = (await streams.log.read_turn(key)).chain.last if after_last else BEFORE_FIRST
    async with streams.fan_out.subscribe(key, cursor, from_start=True) as feed:
        return await _count_frames(feed, dialect), feed.is_ended


async def _count_frames(feed: TurnFeed, dialect: Dialect, most: int | None = None) -> int:
    """Counts the events of the first `most` entries; without it, of all."""
    count = position = 0
    while position < (len(feed.entries) if most is None else most):
        frames = feed.frames(dialect, position, min(writer.FRAMES_MAX, (most or len(feed.entries)) - position))
        count += sum(count_data_events(frame.events) for frame in frames)
        position += len(frames)
        # Lets other tasks run between the pieces of a long answer.
        await asyncio.sleep(0)
    return count


def count_data_events(events: sse.Events) -> int:
    """Counts the events without `[DONE]`, as the workflow transport of AI SDK does."""
    return sum(event.data != DONE for event in events)
