"""StreamTimings: measures the waiting times of one stream's reader: first token, time between tokens, resuming."""

import time
from bisect import bisect_right
from collections.abc import Sequence

from tailrace.gateway import metrics
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.gateway.streaming.reader_history import Reader
from tailrace.proto import events
from tailrace.proto.entries import Event, Stored
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.clock import age_s


class StreamTimings:
    """One stream of `feed` to `reader`. Entries that were stored before it began are not measured."""

    def __init__(self, reader: Reader, feed: TurnFeed, requested_at: float) -> None:
        """`requested_at` is when the stream's request came, in `time.monotonic()`."""
        self._reader = reader
        self._live_from = len(feed.entries)
        self._resumed_at: float | None = None
        self._last_at: float | None = None
        self._first_token = None
        if reader.cursor != BEFORE_FIRST:
            metrics.REPLAYED.observe(len(feed.seqs) - bisect_right(feed.seqs, reader.cursor))
            self._resumed_at = requested_at
        elif not any(map(is_delta, feed.entries)):
            self._first_token = metrics.FIRST_TOKEN_S.labels(reader.dialect)

    def note_write(self, entries: Sequence[Stored], start: int, end: int) -> None:
        """Notes a write, as `Reader.note_write` does, and measures it."""
        self._reader.note_write(entries, start, end)
        if start == end:
            return
        now = time.monotonic()
        if self._resumed_at is not None:
            metrics.RESUME_S.observe(now - self._resumed_at, tracing.exemplar())
            self._resumed_at = None
        last = entries[end - 1]
        if end <= self._live_from or not isinstance(last.entry, Event):
            return
        metrics.DELTA_DELAY_S.observe(age_s(last.at))
        if self._last_at is not None:
            metrics.DELTA_GAP_S.observe(now - self._last_at)
        self._last_at = now
        if self._first_token is not None and any(map(is_delta, entries[start:end])):
            self._first_token.observe(age_s(entries[0].at), tracing.exemplar())
            self._first_token = None


def is_delta(stored: Stored) -> bool:
    """Returns whether an entry is a delta of the answer."""
    return isinstance(stored.entry, Event) and isinstance(events.decode(stored.entry.event), events.BlockDelta)
