"""ReaderHistory: the last streams of this gateway, and a log line when one opens, resumes, is cut or ends."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

import msgspec
import structlog

from tailrace.gateway.streaming.endings import StreamEnding
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.reader_report import Ending, GatewayReaders, ReaderReport

logger = structlog.get_logger()

# About 5 MB. With 5,000 streams that are closed for their age every 30 minutes, it reaches back about an hour.
STREAMS_KEPT = 10_000
READERS_MAX = 1000


class Reader:
    """One stream of a turn."""

    def __init__(self, key: TurnKey, dialect: str, cursor: Seq) -> None:
        self.key = key
        self.dialect = dialect
        self.cursor = cursor
        self.written = cursor
        self.opened_at = datetime.now(UTC)
        self.closed_at: datetime | None = None
        self.ending: Ending = "open"

    def note_write(self, entries: Sequence[StoredEntry], start: int, end: int) -> None:
        """Notes a write of the entries from index `start` to `end`, the end not included."""
        if start < end:
            self.written = entries[end - 1].seq

    def close(self, ending: StreamEnding) -> None:
        """Notes why the stream is closed."""
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


class ReaderHistory:
    """The last `STREAMS_KEPT` streams. It is in memory only: a gateway that restarts has forgotten them."""

    def __init__(self, level: Literal["debug", "info"] = "debug") -> None:
        """`level` is the level of the log lines."""
        self._log = logger.info if level == "info" else logger.debug
        self._readers: deque[Reader] = deque(maxlen=STREAMS_KEPT)
        self._started_at = datetime.now(UTC)

    @contextmanager
    def record_stream(self, feed: TurnFeed, dialect: str, cursor: Seq) -> Iterator[Reader]:
        """Adds a stream, which is open until the block is left. Writes a log line when it opens, and when it ends."""
        reader, began_at = Reader(feed.key, dialect, cursor), time.monotonic()
        self._readers.append(reader)
        request = feed.request
        of_request = {} if request is None else {"session": request.session, "model": request.model}
        names = {"turn": feed.key.turn, "tenant": feed.key.tenant, **of_request, "dialect": dialect}
        has_resumed = cursor != BEFORE_FIRST
        self._log("stream resumed" if has_resumed else "stream opened", **names, cursor=cursor if has_resumed else None)
        try:
            yield reader
        finally:
            reader.closed_at = datetime.now(UTC)
            if reader.ending == "open":
                reader.ending = "failed"
            is_ended = reader.ending == "ended"
            self._log(
                "stream ended" if is_ended else "stream cut",
                **names,
                cause=None if is_ended else reader.ending,
                cursor=reader.written,
                duration_s=round(time.monotonic() - began_at, 3),
            )

    def encode_readers(self, key: TurnKey) -> bytes:
        """Returns the last `READERS_MAX` streams of a turn, as the JSON of GatewayReaders."""
        is_full = len(self._readers) == STREAMS_KEPT
        since = self._readers[0].opened_at if is_full else self._started_at
        readers = [reader.report() for reader in self._readers if reader.key == key]
        return msgspec.json.encode(GatewayReaders(since, readers[-READERS_MAX:]))
