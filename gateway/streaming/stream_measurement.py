"""Measurements of one stream: its span in the turn's trace, and its reader's waiting times."""

import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tailrace.gateway import metrics
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.gateway.streaming.reader_history import Reader
from tailrace.proto import events
from tailrace.proto.entries import Event, StoredEntry
from tailrace.proto.errors import LogError
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.clock import age_s


class StreamTimings:
    """The waiting times of `reader`: for the first token, between tokens, and when it resumes.

    Entries that were stored before it began are not measured.
    """

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

    def note_write(self, entries: Sequence[StoredEntry], start: int, end: int) -> None:
        """Notes a write, as `Reader.note_write` does, and measures it."""
        if start == end:
            return
        last = entries[end - 1]
        self._reader.written = last.seq
        now = time.monotonic()
        if self._resumed_at is not None:
            metrics.RESUME_S.observe(now - self._resumed_at, tracing.exemplar())
            self._resumed_at = None
        if end <= self._live_from or not isinstance(last.entry, Event):
            return
        metrics.DELTA_DELAY_S.observe(age_s(last.at))
        if self._last_at is not None:
            metrics.DELTA_GAP_S.observe(now - self._last_at)
        self._last_at = now
        if self._first_token is not None and any(map(is_delta, entries[start:end])):
            self._first_token.observe(age_s(entries[0].at), tracing.exemplar())
            self._first_token = None


def is_delta(stored: StoredEntry) -> bool:
    """Returns whether an entry is a delta of the answer."""
    return isinstance(stored.entry, Event) and isinstance(events.decode(stored.entry.event), events.BlockDelta)


@asynccontextmanager
async def stream_span(log: TurnLog, feed: TurnFeed, dialect: str, cursor: Seq) -> AsyncIterator[None]:
    """Runs the block, which sends the stream, in a span of the turn's trace, linked to the span of its own request."""
    with tracing.span(
        "resume stream" if cursor else "stream",
        traceparent=await _turn_traceparent(log, feed),
        linked=tracing.traceparent(),
        attributes={"tailrace.turn": feed.key.turn, "tailrace.dialect": dialect, "tailrace.cursor": cursor},
    ):
        yield


async def _turn_traceparent(log: TurnLog, feed: TurnFeed) -> str | None:
    """Returns the `traceparent` of the turn's request; None if it has none, or if the log does not answer.

    A feed that begins at a cursor does not hold the request, which is then read from the log.
    """
    if feed.request is not None:
        return feed.request.traceparent
    try:
        request = (await log.read_turn(feed.key)).request
    except LogError:
        return None
    return request.traceparent if request is not None else None
