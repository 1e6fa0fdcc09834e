"""ReaderHistory: the last streams of this gateway, and a log line when one opens, resumes, is cut or ends."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, Self

import msgspec
import structlog

from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.gateway.streaming.response import Cause
from tailrace.proto.entries import Stored
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.reader_report import Ending, GatewayReaders, ReaderReport
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# About 5 MB. With 5,000 streams that are closed for their age every 30 minutes, it reaches back about an hour.
STREAMS_KEPT = 10_000
READERS_MAX = 1000


class Reader:
    """One stream of a turn: a context manager, which logs when the stream opens and when it ends."""

    def __init__(self, feed: TurnFeed, dialect: str, cursor: Seq, log: Callable[..., None]) -> None:
        """`log` writes a log line, such as `logger.info`."""
        self._log = log
        self.key = feed.key
        self.dialect = dialect
        self.cursor = cursor
        self.written = cursor
        self.opened_at = datetime.now(UTC)
        self.closed_at: datetime | None = None
        self.ending: Ending = "open"
        self.started = time.monotonic()
        request = feed.request
        self.request = {} if request is None else {"session": request.session, "model": request.model}

    def __enter__(self) -> Self:
        resumed = self.cursor != BEFORE_FIRST
        self._write_line("stream resumed" if resumed else "stream opened", cursor=self.cursor if resumed else None)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.closed_at = datetime.now(UTC)
        if self.ending == "open":
            self.ending = "failed"
        is_ended = self.ending == "ended"
        self._write_line(
            "stream ended" if is_ended else "stream cut",
            cause=None if is_ended else self.ending,
            cursor=self.written,
            duration_s=round(time.monotonic() - self.started, 3),
        )

    def _write_line(self, event: str, **fields: object) -> None:
        names = {"turn": self.key.turn, "tenant": self.key.tenant, **self.request, "dialect": self.dialect}
        self._log(event, **names, **fields)

    def note_write(self, entries: Sequence[Stored], start: int, end: int) -> None:
        """Notes a write of the entries from index `start` to `end`, the end not included."""
        if start < end:
            self.written = entries[end - 1].seq

    def close(self, cause: Cause, *, is_complete: bool = False) -> None:
        """Notes why the stream is closed."""
        if cause == "done":
            self.ending = "ended" if is_complete else "broken"
        else:
            self.ending = "aged" if cause == "timeout" else cause

    def report(self) -> ReaderReport:
        return ReaderReport(
            dialect=self.dialect,
            opened_at=self.opened_at,
            cursor=self.cursor,
            written=self.written,
            closed_at=self.closed_at,
            ending=self.ending,
        )


class ReaderHistory:
    """The last `STREAMS_KEPT` streams. It is in memory only: a gateway that restarts has forgotten them."""

    def __init__(self, level: Literal["debug", "info"] = "debug") -> None:
        """`level` is the level of the log lines."""
        self._log = logger.info if level == "info" else logger.debug
        self._readers: deque[Reader] = deque(maxlen=STREAMS_KEPT)
        self._started_at = datetime.now(UTC)

    def record_stream(self, feed: TurnFeed, dialect: str, cursor: Seq) -> Reader:
        """Adds a stream, and returns it. It is open until its context is left."""
        reader = Reader(feed, dialect, cursor, self._log)
        self._readers.append(reader)
        return reader

    def encode_readers(self, key: TurnKey) -> bytes:
        """Returns the last `READERS_MAX` streams of a turn, as the JSON of GatewayReaders."""
        is_full = len(self._readers) == STREAMS_KEPT
        since = self._readers[0].opened_at if is_full else self._started_at
        readers = [reader.report() for reader in self._readers if reader.key == key]
        return msgspec.json.encode(GatewayReaders(since, readers[-READERS_MAX:]))
