"""The response that streams a turn to one client: from a cursor on, until the turn ends or something interrupts it.

A stream that is interrupted never looks like one that has ended. Where the dialect has no event for the end, an
interrupted body lacks its last chunk, which the client's HTTP library reports.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.endings import AGED, BROKEN, EXPIRED, FAILED, LEFT, WHOLE, StreamEnding
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.gateway.streaming.frame_writer import FrameWriter, Snapshot, WriteObserver
from tailrace.gateway.streaming.pacing import Pace
from tailrace.gateway.streaming.reader_history import Reader
from tailrace.gateway.streaming.response import Interruptions, StreamedResponse, TurnFailed, body
from tailrace.gateway.streaming.stream_access import StreamAccess
from tailrace.gateway.streaming.stream_context import random_life_s
from tailrace.gateway.streaming.stream_measurement import StreamTimings, stream_span
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import End, Event, Failure, StoredEntry
from tailrace.proto.errors import CODES, CursorUnknown, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId, TurnKey
from tailrace.proto.runtime import tracing

# The event id of the failure of a turn that the log has lost: after every entry, and exact as a JavaScript number.
AFTER_LOST = Seq(2**53 - 1)


class Start(NamedTuple):
    """The start of a stream: after the first `seen` events of the turn, or, if `seen` is None, after the cursor.

    `headers` are added to the response. `dialect` is a variant of the stream's dialect that depends on the turn.
    """

    key: TurnKey
    seen: int | None = None
    headers: Mapping[str, str] = {}
    dialect: Dialect | None = None


class EventStream(StreamedResponse):
    """Streams a turn. Errors that are known before the first byte have an HTTP status."""

    def __init__(
        self,
        access: StreamAccess,
        start: TurnKey | Start | Callable[[], Awaitable[Start]],
        dialect: Dialect,
        cursor: Seq = BEFORE_FIRST,
        headers: Mapping[str, str] | None = None,
        *,
        snapshot: Snapshot | None = None,
        waits_for_answer: bool = False,
        fails_again: bool = False,
        pace: Pace | None = None,
    ) -> None:
        """Streams the entries after `cursor`; or, if `start.seen` is set, the events after the first `seen` ones.

        `start` may be a function that finds the Start; it raises Refused or LogUnavailable.
        `snapshot`: renders the answer so far, which is sent at once; the stream continues after it.
        `waits_for_answer`: the status is sent when the model begins to answer, or after one heartbeat interval. If the
        turn fails earlier, the response is an HTTP error. `fails_again`: a repeated request would get that error, too.
        `pace`: stored entries are sent at this pace instead of at once.
        """
        super().__init__({"content-type": dialect.media_type, **sse.HEADERS, **dialect.headers, **(headers or {})})
        self._access = access
        self._streams = access.streams
        self._start = Start(start) if isinstance(start, TurnKey) else start
        self._dialect = dialect
        self._cursor = cursor
        self._snapshot = snapshot
        self._waits_for_answer = waits_for_answer
        self._fails_again = fails_again
        self._pace = pace

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with (
            self._access.open() as expired,
            Interruptions(receive, self._streams.draining, expired) as interruptions,
        ):
            await self._stream(interruptions, send, scope["method"])

    async def begin(self, send: Send, status: int) -> None:
        if status == 200 and self._access.accept is not None and not self.is_begun:
            await self._access.accept()
        await super().begin(send, status)

    async def _stream(self, interruptions: Interruptions, send: Send, method: str) -> None:
        """Sends the response to its end. Raises Refused, LogError."""
        start = await self._find_start()
        try:
            async with self._subscribe(start) as feed:
                if feed.is_ended and self._start_index(feed, start) == len(feed.entries):
                    # fetch-event-source, which repeats a POST, treats 204 as an error and retries forever.
                    await self._send_empty(send, 200 if method == "POST" else 204)
                    return
                if method == "HEAD":
                    await self._send_empty(send, 200)
                    return
                traced = stream_span(self._streams.log, feed, self._dialect.name, self._cursor)
                async with traced if tracing.is_on() else nullcontext():
                    with self._streams.readers.record_stream(feed, self._dialect.name, self._cursor) as reader:
                        ending = await self._serve(feed, start, reader, interruptions, send)
        except (TurnUnknown, CursorUnknown):
            await self._send_record(start, send)
            return
        if ending.reconnect_window_s is not None:
            self._streams.on_disconnect(start.key, ending.reconnect_window_s)
        if interruptions.expired.is_set() and not self.is_begun:
            raise credential_invalid()

    async def _serve(
        self, feed: TurnFeed, start: Start, reader: Reader, interruptions: Interruptions, send: Send
    ) -> StreamEnding:
        """Writes until the turn ends or an interruption comes. Returns how the stream ended."""
        if self._waits_for_answer:
            timeout_s = self._streams.settings.heartbeat_s
            answering = _wait_for_answer(feed, may_repeat=not self._fails_again)
            interruption = (await interruptions.run(answering, timeout_s)).interruption
            if interruption is not None and interruption in (LEFT, EXPIRED):
                reader.close(interruption)
                return interruption
        await self._access.permit.acquire()
        if self._cursor:
            metrics.RESUMED.inc()
        # A paced stream has no waiting times of its own.
        timings = StreamTimings(reader, feed, self._access.requested_at) if self._pace is None else None
        writer = self._writer(send, (timings or reader).note_write)
        with metrics.STREAMS.labels(self._dialect.name).track_inprogress():
            await self.begin(send, 200)
            position = self._start_index(feed, start)
            writing = writer.write_turn(feed, position, to_skip=start.seen or 0, snapshot=self._snapshot)
            interruption, is_complete = await interruptions.run(writing, random_life_s(self._streams.settings))
        ending = interruption or (ending_of(feed) if is_complete else BROKEN)
        metrics.STREAM_ENDS.labels(ending.metric).inc()
        reader.close(ending)
        if ending is LEFT:
            return ending
        self.is_delivered = ending.is_whole
        if ending.is_whole or (self._dialect.is_self_delimited and not writer.is_within_frame):
            await send(body(b"", more=False))
        if not ending.is_whole:
            # Without the last chunk the server closes the connection, and the client sees a truncated body.
            metrics.BROKEN_OFF.inc()
        if ending is AGED:
            metrics.AGED.inc()
        return ending

    async def _find_start(self) -> Start:
        start = self._start if isinstance(self._start, Start) else await self._start()
        self._dialect = start.dialect or self._dialect
        self.add_headers({"tailrace-turn": start.key.turn, **start.headers}, are_for_errors=False)
        return start

    def _subscribe(self, start: Start) -> AbstractAsyncContextManager[TurnFeed]:
        return self._streams.fan_out.subscribe(start.key, self._cursor, from_start=self._dialect.is_stateful)

    def _start_index(self, feed: TurnFeed, start: Start) -> int:
        """Returns the index of the first entry that may hold an event for this client."""
        return 0 if start.seen else feed.start_index(self._cursor, self._dialect)

    def _writer(self, send: Send, observe: WriteObserver = lambda _entries, _start, _end: None) -> FrameWriter:
        return FrameWriter(
            send,
            self._dialect,
            heartbeat_s=self._streams.settings.heartbeat_s,
            id_prefix=self._access.id_prefix,
            pace=self._pace,
            observe=observe,
        )

    async def _send_record(self, start: Start, send: Send) -> None:
        """Sends the turn from the database after TurnUnknown or CursorUnknown. Raises CursorUnknown, Refused."""
        try:
            await self._streams.log.read_turn(start.key)
        except TurnUnknown:
            record = await self._streams.history.read_past_turn(start.key)
        else:
            raise CursorUnknown("the cursor is not an `id:` of this turn: send back the last one that you received")
        if record.error == LOST_FAILURE:
            # The row may not hold the last entry that readers have received. A cursor therefore does not show whether
            # its reader has received the failure.
            record = msgspec.structs.replace(record, cursor=AFTER_LOST)
        if self._cursor > record.cursor:
            raise CursorUnknown("the cursor is beyond the end of this turn")
        if self._cursor == record.cursor:
            await self._send_empty(send, 204)
            return
        if self._cursor and not self._dialect.can_reset:
            # The client would receive again what it has, and the dialect has no event that resets it.
            raise CursorUnknown("this turn has left the log: repeat the request without a cursor to receive all of it")
        await self.begin(send, 200)
        frame = self._dialect.render_record(record, start.seen or 0)
        if await self._writer(send).write([frame]):
            await send(body(b"", more=False))
            self.is_delivered = True

    async def _send_empty(self, send: Send, status: int) -> None:
        # 204 tells an EventSource to stop: it reconnects after every other end.
        await self.begin(send, status)
        await send(body(b"", more=False))


def ending_of(feed: TurnFeed) -> StreamEnding:
    """Returns how a stream ended that was sent the whole turn."""
    match feed.entries[-1:]:
        case [StoredEntry(entry=End(error=Failure()))]:
            return FAILED
        case _:
            # Also the feed of a cursor at the end of the turn, which has no entry.
            return WHOLE


async def _wait_for_answer(feed: TurnFeed, *, may_repeat: bool) -> None:
    """Waits until the model has begun to answer, or the feed is broken. Raises TurnFailed if the turn fails.

    Once the status is sent, a failure can only be an event of the stream, which many clients do not look for.
    """
    position = 0
    while not feed.is_broken:
        for stored in feed.entries[position:]:
            match stored.entry:
                case End(error=Failure() as failure):
                    raise refusal_of(failure, feed.key.turn, may_repeat=may_repeat)
                case Event(is_hidden=False) | End():
                    return
        position = len(feed.entries)
        await feed.wait_for_change(position)


def refusal_of(failure: Failure | None, turn: TurnId, *, may_repeat: bool) -> TurnFailed:
    """Returns the error of a turn that has failed; `internal` for a code that a newer version has stored."""
    if failure is not None and failure.code in CODES:
        return TurnFailed(
            failure.code,
            failure.message,
            retry_after_s=failure.retry_after_s,
            may_repeat=may_repeat,
            details=failure.details,
        )
    return TurnFailed("internal", f"turn {turn} has an incomplete answer: GET /v1/turns/{turn} has its text")
