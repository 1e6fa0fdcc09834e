"""DeltaBuffer: the events that wait for their append. Deltas of one block that wait are joined into one entry. Pure.

So the log keeps up with any model. The queue needs no limit: only a few blocks wait, however many deltas they have. The
first delta of a block is an entry of its own: so a short answer that the model sends at once has a cursor between its
beginning and its end.
"""

import msgspec

from tailrace.generators import metrics
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.proto import events

# Joined deltas beyond this become another entry: an entry must fit in a NATS message and in a slow reader's buffer.
JOINED_BYTES_MAX = 16_384
# The `raw` of joined deltas: their JSON is encoded when they are taken out.
JOINED = msgspec.Raw(b"")


class DeltaBuffer:
    """A queue of events, each with the time at which it was put; joined deltas have the time of the first."""

    def __init__(self) -> None:
        # Not a deque, which takes 0.6 kB while it is empty.
        self.waiting: list[tuple[ModelEvent, float]] = []
        self._last_bytes = 0
        self._begins_block = False
        self._is_first = False

    @property
    def is_one_delta(self) -> bool:
        """Whether the only waiting event is a delta, to which the next event may be joined."""
        return len(self.waiting) == 1 and not self._is_first and isinstance(self.waiting[0][0].event, events.BlockDelta)

    def put(self, event: ModelEvent, now: float) -> None:
        """Adds an event. Joins it to the last waiting event if both are deltas of the same block, up to
        JOINED_BYTES_MAX."""
        size = len(event.raw)
        if self.waiting and not self._is_first and self._last_bytes + size <= JOINED_BYTES_MAX:
            last, put_at = self.waiting[-1]
            joined = events.join_deltas(last.event, event.event)
            if joined is not None and _has_no_more_fields(last) and _has_no_more_fields(event):
                left_out = last.left_out + event.left_out
                last = msgspec.structs.replace(last, event=joined, raw=JOINED, left_out=left_out)
                self.waiting[-1] = last, put_at
                self._last_bytes += size
                metrics.JOINED.inc()
                return
        self.waiting.append((event, now))
        self._last_bytes = size
        self._is_first = self._begins_block
        self._begins_block = isinstance(event.event, events.BlockStart)

    def take(self) -> tuple[ModelEvent, float]:
        """Removes and returns the next event, and when it was put. Raises IndexError without one."""
        event, put_at = self.waiting.pop(0)
        if event.raw is JOINED:
            assert isinstance(event.event, events.BlockDelta)  # noqa: S101  # only deltas are joined
            event = msgspec.structs.replace(event, raw=events.encode(event.event))
        return event, put_at


def _has_no_more_fields(event: ModelEvent) -> bool:
    """Returns whether a delta has no field that is lost when it is joined."""
    return event.raw is JOINED or (not event.original and events.is_plain_delta(event.raw))
