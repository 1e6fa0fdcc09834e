"""The number of events that a turn has in a dialect: for cursors that count events."""

import asyncio

from tailrace.gateway.http import sse
from tailrace.gateway.streaming import writer
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.reader import StreamContext
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.ownership import ScopedKey

DONE = b"[DONE]"


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
        count = position = 0
        while position < len(feed.entries):
            frames = feed.frames(dialect, position, writer.FRAMES_MAX)
            count += sum(count_data_events(frame.events) for frame in frames)
            position += len(frames)
            # Lets other tasks run between the pieces of a long answer.
            await asyncio.sleep(0)
        return count, feed.is_ended


def count_data_events(events: sse.Events) -> int:
    """Counts the events without `[DONE]`, as the workflow transport of AI SDK does."""
    return sum(event.data != DONE for event in events)
