"""StreamRecord: what one stream has written, and when. It is measured, logged, and kept for the turn's timeline."""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
import structlog

from tailrace.gateway import metrics
from tailrace.gateway.auth.signed_tokens import ENCRYPTED_TOKENS
from tailrace.gateway.streaming.endings import StreamEnding
from tailrace.gateway.streaming.feed import TurnFeed, is_delta
from tailrace.gateway.streaming.reader_report import Ending, GatewayReaders, ReaderReport
from tailrace.proto.entries import Event, StoredEntry
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.ownership import KNOWN_SETTINGS
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.clock import age_s

logger = structlog.get_logger()

# About 5 MB. With 5,000 streams that are closed for their age every 30 minutes, the records reach back about an hour.
STREAMS_KEPT = 10_000
READERS_MAX = 1000
KNOWN = (*KNOWN_SETTINGS, ENCRYPTED_TOKENS)


class StreamRecord:
    """The record of one stream of a turn."""

    __slots__ = (
        "_first_token",
        "_is_measured",
        "_last_at",
        "_live_from",
        "_resumed_at",
        "began_at",
        "closed_at",
        "cursor",
        "dialect",
        "ending",
        "key",
        "opened_at",
        "written",
    )

    def __init__(self, key: TurnKey, dialect: str, cursor: Seq) -> None:
        self.key = key
        self.dialect = dialect
        self.cursor = cursor
        self.written = cursor
        self.opened_at = datetime.now(UTC)
        self.began_at = time.monotonic()
        self.closed_at: datetime | None = None
        self.ending: Ending = "open"
        self._is_measured = False

    def measure(self, feed: TurnFeed, requested_at: float) -> None:
        """Begins to measure the reader's waiting times: for the first token, between tokens, and when it resumes.

        Entries that are stored already are not measured. `requested_at` is when the stream's request came, in
        `time.monotonic()`.
        """
        self._is_measured = True
        self._live_from = len(feed.entries)
        self._resumed_at: float | None = None
        self._last_at: float | None = None
        self._first_token = None
        if self.cursor != BEFORE_FIRST:
            metrics.REPLAYED.observe(len(feed.seqs) - bisect_right(feed.seqs, self.cursor))
            self._resumed_at = requested_at
        elif not any(map(is_delta, feed.entries)):
            self._first_token = metrics.FIRST_TOKEN_S.labels(self.dialect)

    def note_write(self, entries: Sequence[StoredEntry], start: int, end: int) -> None:
        """Notes a write of the entries from index `start` to `end`, the end not included, and measures it."""
        if start == end:
            return
        last = entries[end - 1]
        self.written = last.seq
        if not self._is_measured:
            return
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

    def close(self, ending: StreamEnding) -> None:
        """Stores the reason why the stream is closed."""
        self.ending = ending.report

    def report(self) -> ReaderReport:
        return ReaderReport(
            dialect=self.dialect,
            opened_at=self.opened_at,
            cursor=self.cursor,
            written=self.written,
            closed_at=self.closed_at,
            ending=self.ending,
        )


class StreamRecords:
    """The last `STREAMS_KEPT` streams. The records are in memory only: a gateway that restarts has forgotten them."""

    def __init__(self, level: Literal["debug", "info"] = "debug") -> None:
        """`level` is the level of the log lines: one when a stream opens or resumes, and one when it ends."""
        self._log = logger.info if level == "info" else logger.debug
        self._records: deque[StreamRecord] = deque(maxlen=STREAMS_KEPT)
        self._started_at = datetime.now(UTC)

    def open(self, feed: TurnFeed, dialect: str, cursor: Seq) -> StreamRecord:
        """Adds a stream, and writes a log line. Call `end` with the result."""
        record = StreamRecord(feed.key, dialect, cursor)
        self._records.append(record)
        has_resumed = cursor != BEFORE_FIRST
        self._log(
            "stream resumed" if has_resumed else "stream opened",
            **_names(record, feed),
            cursor=cursor if has_resumed else None,
        )
        return record

    def end(self, record: StreamRecord, feed: TurnFeed) -> None:
        """Notes when a stream has ended, and writes a log line. A stream that was not closed has failed."""
        record.closed_at = datetime.now(UTC)
        if record.ending == "open":
            record.ending = "failed"
        is_ended = record.ending == "ended"
        self._log(
            "stream ended" if is_ended else "stream cut",
            **_names(record, feed),
            cause=None if is_ended else record.ending,
            cursor=record.written,
            duration_s=round(time.monotonic() - record.began_at, 3),
        )

    def encode_readers(self, key: TurnKey) -> bytes:
        """Returns the last `READERS_MAX` streams of a turn, as the JSON of GatewayReaders."""
        is_full = len(self._records) == STREAMS_KEPT
        since = self._records[0].opened_at if is_full else self._started_at
        reports = [record.report() for record in self._records if record.key == key]
        return msgspec.json.encode(GatewayReaders(since, reports[-READERS_MAX:], KNOWN))


def _names(record: StreamRecord, feed: TurnFeed) -> dict[str, str | None]:
    """Returns what the log lines of a stream have in common."""
    request = feed.request
    of_request = {} if request is None else {"session": request.session, "model": request.model}
    return {"turn": feed.key.turn, "tenant": feed.key.tenant, **of_request, "dialect": record.dialect}
