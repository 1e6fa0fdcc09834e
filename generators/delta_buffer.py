"""Queue of events between the model and the log. Deltas of one block that wait are joined into one entry.

So the log keeps up with any model. The queue needs no limit: what waits is a few blocks, however many deltas they have.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable

import msgspec

from tailrace.generators import metrics
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.proto import events

# Joined deltas beyond this become another entry: an entry must fit in a NATS message and in a slow reader's buffer.
JOINED_BYTES_MAX = 16_384
# The `raw` of joined deltas, whose JSON is encoded when they are taken out.
JOINED = msgspec.Raw(b"")


class DeltaBuffer:
    """One producer, one consumer, one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[ModelEvent] = deque()
        self._put_at: deque[float] = deque()
        self.put_at = 0.0
        """When the event that `next` has returned was put (`time.monotonic()`); of joined deltas, the first one."""
        self._last_bytes = 0
        self._changed = asyncio.Event()
        self._is_closed = False
        self._is_idle = asyncio.Event()
        """Set while the consumer waits for an event: it is done with all events before."""

    def put(self, event: ModelEvent) -> None:
        """Adds an event. Joins it to the last waiting one if both are deltas of one block, up to JOINED_BYTES_MAX."""
        size = len(event.raw)
        if self._waiting and self._last_bytes + size <= JOINED_BYTES_MAX:
            last = self._waiting[-1]
            joined = events.join_deltas(last.event, event.event)
            if joined is not None and _has_no_more_fields(last) and _has_no_more_fields(event):
                left_out = last.left_out + event.left_out
                self._waiting[-1] = msgspec.structs.replace(last, event=joined, raw=JOINED, left_out=left_out)
                self._last_bytes += size
                metrics.JOINED.inc()
                return
        self._is_idle.clear()
        self._waiting.append(event)
        self._put_at.append(time.monotonic())
        self._last_bytes = size
        self._changed.set()

    def close(self) -> None:
        """Marks the end: nothing more will be put."""
        self._is_closed = True
        self._changed.set()

    async def next(self, join_until: float = 0.0) -> ModelEvent | None:
        """Returns the next event, waiting for it; None after the last one.

        A delta waits until `join_until`, in the loop's time, and further deltas are joined to it; 0: it does not wait.
        The wait ends early when an event that cannot be joined follows, or at `close`.
        """
        if not self._waiting:
            self._is_idle.set()
        while not self._waiting and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        if join_until:
            await self._wait_for_more(join_until)
        if not self._waiting:
            return None
        event = self._waiting.popleft()
        self.put_at = self._put_at.popleft()
        if event.raw is not JOINED:
            return event
        assert isinstance(event.event, events.BlockDelta)  # noqa: S101  # only deltas are joined
        return msgspec.structs.replace(event, raw=events.encode(event.event))

    async def drained(self) -> None:
        """Returns when the consumer is done with all events."""
        await self._is_idle.wait()

    async def _wait_for_more(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until and not self._is_closed and len(self._waiting) == 1:
            if not isinstance(self._waiting[0].event, events.BlockDelta):
                return
            self._changed.clear()
            timer = loop.call_at(until, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()


def _has_no_more_fields(event: ModelEvent) -> bool:
    """Returns whether a delta has no field that is lost when it is joined."""
    return event.raw is JOINED or (not event.original and events.is_plain_delta(event.raw))


def buffer_of(all_events: Iterable[ModelEvent]) -> DeltaBuffer:
    """Returns a closed buffer that holds these events."""
    buffer = DeltaBuffer()
    for event in all_events:
        buffer.put(event)
    buffer.close()
    return buffer
