"""The responses that stream a turn to one client, and the loop in which every streamed response ends.

A stream that is interrupted never looks like one that has ended. Where the dialect has no event for the end, an
interrupted body lacks its last chunk, which the client's HTTP library reports.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import chain, repeat
from typing import NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.http import sse
from tailrace.gateway.http.deferred_response import OpenResponse, StreamedResponse, TurnFailed, body
from tailrace.gateway.streaming.dialect import SOME_EVENTS, Dialect, Frame
from tailrace.gateway.streaming.endings import AGED, BROKEN, DRAINED, EXPIRED, LEFT, WHOLE, StreamEnding
from tailrace.gateway.streaming.feed import TurnFeed
from tailrace.gateway.streaming.reader import Reader, random_life_s
from tailrace.gateway.streaming.stream_record import StreamRecord
from tailrace.gateway.streaming.writer import FrameWriter, Snapshot, TurnWriter
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import End, Event, Failure
from tailrace.proto.errors import CODES, CursorUnknown, LogError, LogUnavailable, Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.restores import EPOCHS_AT
from tailrace.proto.runtime import tracing

# The event id of the failure of a turn that the log has lost: after every entry.
AFTER_LOST = Seq(EPOCHS_AT - 1)
RESTORED = "the log was restored from a backup since this id was sent: repeat the request without a cursor"
# The pause between two tries of an unavailable log: well below the second after which clients reconnect.
TRY_LOG_EVERY_S = 0.5


GoOn = Callable[["EventStream", ScopedKey, Seq, End | None], Awaitable[bool]]
"""Joins the turn in which the reader of a turn goes on, and returns whether there is one. Raises LogError.

The cursor is not within the turn, or at its end. The `end` is that of the turn, if the stream has sent it."""

Step = Callable[[], Awaitable[StreamEnding | bool | asyncio.Future[None]]]
"""Sends what there is and waits for more. Returns how the response ends, or whether there was news.

False means a silence. A future: the response is idle until the future is done, and the next step follows then."""


async def serve(
    reader: Reader,
    step: Step,
    heartbeat: Callable[[], Awaitable[None]] | None = None,
    *,
    life_s: float | None = None,
) -> StreamEnding:
    """Takes steps until the response ends, and returns how it ended. Raises what the steps raise."""
    while not isinstance(found := await serve_until_idle(reader, step, heartbeat, life_s=life_s), StreamEnding):
        await found
    return found


async def serve_until_idle(
    reader: Reader,
    step: Step,
    heartbeat: Callable[[], Awaitable[None]] | None = None,
    *,
    life_s: float | None = None,
) -> StreamEnding | asyncio.Future[None]:
    """Takes steps until the response ends or is idle, with a heartbeat after each silence. Each way to end is one arm.

    Returns how the response ended, or what to wait for before the next call. Raises what the steps raise.
    """
    if not reader.was_interrupted_idle:
        async with reader.until_interrupted(life_s):
            while True:
                match await step():
                    case StreamEnding() as ending:
                        # WHOLE, FAILED: all was sent. BROKEN: it cannot be continued.
                        return ending
                    case asyncio.Future() as change:
                        if reader.is_interrupted:
                            break
                        reader.wait_idle(change)
                        return change
                    case False if heartbeat is not None:
                        await heartbeat()
    # A disconnect comes first: nothing can be sent to the client, whatever else has happened. The server also
    # disconnects a client that has not read for too long.
    if reader.has_left:
        return LEFT
    if reader.is_drained:
        return DRAINED
    if reader.is_expired:
        return EXPIRED
    return AGED


class Start(NamedTuple):
    """The start of a stream: after the first `seen` events of the turn, or, if `seen` is None, after the cursor.

    `headers` are added to the response. `dialect` is a variant of the stream's dialect that depends on the turn.
    `is_replaced`: see EventStream.
    """

    key: ScopedKey
    seen: int | None = None
    headers: Mapping[str, str] = {}
    dialect: Dialect | None = None
    is_replaced: bool = False


class EventStream(StreamedResponse):
    """Streams a turn. Errors that are known before the first byte have an HTTP status."""

    # They are set late. As other attributes, they would cost each stream 1.6 kB: a dictionary of its own.
    __slots__ = ("_send", "_writer", "feed")

    def __init__(
        self,
        reader: Reader,
        start: ScopedKey | Start | Callable[[], Awaitable[Start]],
        dialect: Dialect,
        cursor: Seq = BEFORE_FIRST,
        headers: Mapping[str, str] | None = None,
        *,
        snapshot: Snapshot | None = None,
        waits_for_answer: bool = False,
        fails_again: bool = False,
    ) -> None:
        """Streams the entries after `cursor`; or, if `start.seen` is set, the events after the first `seen` ones.

        `start` may be a function that finds the Start; it raises Refused or LogUnavailable.
        `snapshot`: renders the answer so far, which is sent at once; the stream continues after it.
        `waits_for_answer`: the status is sent when the model begins to answer, or after one heartbeat interval. If the
        turn fails earlier, the response is an HTTP error. `fails_again`: a repeated request would get this error, too.
        """
        super().__init__({"content-type": dialect.media_type, **sse.HEADERS, **dialect.headers, **(headers or {})})
        self.accept = reader.accept
        self.reader = reader
        self._streams = reader.streams
        self.heartbeat_s = reader.streams.settings.heartbeat_s
        self._start = Start(start) if isinstance(start, ScopedKey) else start
        self.dialect = dialect
        restores = reader.streams.log.restores
        found = restores.find(cursor) if restores.offset else cursor
        self._cursor = found or BEFORE_FIRST
        self._is_replaced = found is None
        """Whether the stream replaces what the client has, as it may be of a log that was thrown away: see Restores."""
        self._snapshot = snapshot
        self._waits_for_answer = waits_for_answer
        self._fails_again = fails_again
        self._record: StreamRecord | None = None
        self._span: AbstractAsyncContextManager[None] | None = None
        self._ending: StreamEnding | None = None
        self._is_open = False
        """Whether the stream is counted as an open one."""
        self.feed: TurnFeed
        self._key: ScopedKey
        """The turn of `feed`, in the scope of the reader."""
        self._is_joined = False
        """Whether the response reads `feed`."""
        self._part = 0
        """How many events of the entry at `position` the client has received."""
        self.position = 0
        """The index of the first entry that may hold an event for this client."""

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> OpenResponse | None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.reader.open(receive, self._streams.draining))
            if not await self._begin_stream(send, scope["method"]):
                return None
            # `close` leaves the context.
            stack.pop_all()
        return self

    async def step(self) -> asyncio.Future[None] | None:
        """See OpenResponse."""
        while True:
            found = await serve_until_idle(self.reader, self._writer.step, self._beat)
            if not isinstance(found, StreamEnding):
                return found
            ending = await self._begin_next() if found is WHOLE else found
            if ending is not None:
                await self._end(ending)
                return None

    async def close(self) -> None:
        """See OpenResponse."""
        self._writer.stop()
        try:
            await self._leave_turn()
        finally:
            await self.reader.__aexit__()
        await self.note_delivery()

    async def _begin_stream(self, send: Send, method: str) -> bool:
        """Sends the beginning of the stream, or the whole response.

        Returns whether the stream goes on; `step` follows then. Raises Refused, LogError.
        """
        start = await self._find_start()
        try:
            await self.join(start.key, self._cursor)
            if start.seen or self._is_replaced:
                self.position = int(self._is_replaced)
        except (TurnUnknown, CursorUnknown):
            if not await self._go_on(start.key, self._cursor):
                await self._send_record(start, send)
                return False
        goes_on = False
        try:
            goes_on = await self._begin_turn(start, send, method)
        finally:
            if not goes_on:
                await self._leave_turn()
        if not self.is_begun and self.reader.is_expired:
            raise credential_invalid()
        return goes_on

    async def _begin_turn(self, start: Start, send: Send, method: str) -> bool:
        """Like `_begin_stream`, for a turn that can be followed."""
        reader = self.reader
        while (feed := self.feed).is_ended and self.position == len(feed.entries):
            if self._key != start.key or not await self._go_on(start.key, self._cursor):
                # fetch-event-source, which repeats a POST, treats 204 as an error and retries forever.
                await self._send_empty(send, 200 if method == "POST" else 204)
                return False
        if method == "HEAD":
            await self._send_empty(send, 200)
            return False
        if tracing.is_on():
            self._span = stream_span(self._streams.log, feed, self.dialect.name, self._cursor)
            await self._span.__aenter__()
        self._record = self._streams.records.open(feed, self.dialect.name, self._cursor)
        if self._waits_for_answer:
            async with reader.until_interrupted(self.heartbeat_s):
                await _wait_for_answer(feed, may_repeat=not self._fails_again)
            if reader.has_left or reader.is_expired:
                self._ending = LEFT if reader.has_left else EXPIRED
                return False
        await reader.acquire()
        if self._cursor:
            metrics.RESUMED.inc()
        self._record.measure(feed, reader.requested_at)
        metrics.STREAMS.labels(self.dialect.name).inc()
        self._is_open = True
        await self.begin(send, 200)
        self._send = send
        self._writer = TurnWriter(
            send,
            self.dialect,
            feed,
            self.position,
            id_prefix=reader.id_prefix,
            to_skip=start.seen or 0,
            part=self._part,
            snapshot=self._snapshot,
            observe=self._record.note_write,
        )
        reader.interrupt_after(random_life_s(self._streams.settings))
        if self._is_replaced:
            await self._writer.write([self.feed.render_reset(self.dialect)])
        return True

    async def join(self, key: ScopedKey, cursor: Seq) -> None:
        """Joins the feed of a turn after the cursor, in place of the one before. Raises TurnUnknown, CursorUnknown,
        LogUnavailable."""
        feed = await self._streams.fan_out.join(key, cursor, from_start=self.dialect.is_stateful)
        if self._is_joined:
            self._streams.fan_out.leave(self.feed)
        self._is_joined = True
        self.feed, self._key, self.position = feed, key, feed.start_index(cursor, self.dialect)
        self._part = self.reader.part if cursor == self._cursor and self.position else 0
        self.position -= bool(self._part)
        self._headers["tailrace-turn"] = key.turn

    async def write(self, frame: Frame) -> None:
        """Writes a frame behind those of the turn."""
        await self._writer.write([frame])

    async def _go_on(self, key: ScopedKey, cursor: Seq, end: End | None = None) -> bool:
        """Returns whether a feature has joined the turn in which the reader goes on; see GoOn. Raises LogError."""
        for go_on in self._streams.successions:
            if await go_on(self, key, cursor, end):
                return True
        return False

    async def _begin_next(self) -> StreamEnding | None:
        """Begins the turn in which the reader goes on. Returns how the stream ends if there is none."""
        before, record = self.feed, self._record
        last = before.entries[-1] if before.entries else None
        if record is None or last is None or not isinstance(last.entry, End):
            return WHOLE
        try:
            if not await self._go_on(self._key, last.seq, last.entry):
                return WHOLE
        except LogError:
            return BROKEN
        record.close(WHOLE)
        self._streams.records.end(record, before)
        self._record = record = self._streams.records.open(self.feed, self.dialect.name, BEFORE_FIRST)
        record.measure(self.feed, time.monotonic())
        self._writer.go_on(self.feed, self.position, record.note_write)
        return None

    async def _end(self, ending: StreamEnding) -> None:
        """Sends the last chunk, unless the client must not take the stream for a whole one."""
        self._ending = ending
        self._count_end()
        metrics.STREAM_ENDS.labels(ending.metric).inc()
        if ending is LEFT:
            return
        if ending.is_whole or (self.dialect.is_self_delimited and not self._writer.is_within_frame):
            await self._send(body(b"", more=False))
        self.is_delivered = ending.is_whole
        if not ending.is_whole:
            # Without the last chunk the server closes the connection, and the client sees a truncated body.
            metrics.BROKEN_OFF.inc()
        if ending is AGED:
            metrics.AGED.inc()

    async def _leave_turn(self) -> None:
        """Releases what the stream of the turn holds, and applies the turn's on_disconnect policy."""
        try:
            self._count_end()
            if self._record is not None:
                if self._ending is not None:
                    self._record.close(self._ending)
                self._streams.records.end(self._record, self.feed)
            if self._span is not None:
                await self._span.__aexit__(None, None, None)
        finally:
            self._is_joined = False
            self._streams.fan_out.leave(self.feed)
        if self._ending is not None and self._ending.reconnect_window_s is not None:
            self._streams.on_disconnect(self.feed.key, self._ending.reconnect_window_s)

    def _count_end(self) -> None:
        if self._is_open:
            self._is_open = False
            metrics.STREAMS.labels(self.dialect.name).dec()

    async def _find_start(self) -> Start:
        start = self._start if isinstance(self._start, Start) else await self._start()
        self.dialect = start.dialect or self.dialect
        self._is_replaced |= start.is_replaced
        if self._is_replaced and not self.dialect.can_reset:
            raise CursorUnknown(RESTORED)
        self._headers |= {"tailrace-turn": start.key.turn, **start.headers}
        return start

    async def _beat(self) -> None:
        """Sends a heartbeat, if the dialect has one."""
        if self.dialect.heartbeat:
            await self._send(body(self.dialect.heartbeat, more=True))

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
        if self._cursor == record.cursor and not self.reader.part:
            await self._send_empty(send, 204)
            return
        dialect, seen = self.dialect, start.seen or 0
        if self._cursor or self._is_replaced:
            if not dialect.can_reset:
                # The client would receive again what it has, and the dialect has no event that resets it.
                raise CursorUnknown("this turn has left the log: repeat the request without a cursor to receive it")
            seen = max(SOME_EVENTS, self.reader.part)
            if dialect.with_history is not None:
                dialect = await dialect.with_history(self._streams.history, start.key, record)
        await self.begin(send, 200)
        marked = msgspec.structs.replace(record, cursor=Seq(self._streams.log.restores.offset + record.cursor))
        frame = dialect.render_record(marked, seen)
        if await FrameWriter(send, self.dialect, self.reader.id_prefix).write([frame]):
            await send(body(b"", more=False))
            self.is_delivered = True

    async def _send_empty(self, send: Send, status: int) -> None:
        # 204 tells an EventSource to stop: it reconnects after every other end.
        await self.begin(send, status)
        await send(body(b"", more=False))


class HeldStream(EventStream):
    """While the log is unavailable, the client receives heartbeats instead of a 503.

    An EventSource does not reconnect after any status but 200. When the gateway drains, the body ends cleanly and the
    client reconnects to another gateway.
    """

    async def _begin_stream(self, send: Send, method: str) -> bool:
        """Begins the stream as soon as the log answers, and sends heartbeats until then.

        An error that is not retryable is raised if nothing was sent yet. Later it only ends the response: the
        client repeats its request and receives the error as the answer.
        """
        self._send = send
        while not self.reader.is_over:
            try:
                return await super()._begin_stream(send, method)
            except (LogError, Refused) as error:
                if not CODES[error.code].is_retryable:
                    if not self.is_begun:
                        raise
                    break
            await self.begin(send, 200)
            with metrics.HELD.track_inprogress():
                if await self._wait_until_available() is LEFT:
                    return False
        await self.begin(send, 200)
        await send(body(self.dialect.heartbeat, more=not self.dialect.is_self_delimited))
        return False

    async def _wait_until_available(self) -> StreamEnding:
        """Sends heartbeats until `_wait_for_log` returns or an interruption comes."""
        available = asyncio.create_task(self._wait_for_log())
        # The first heartbeat is sent at once.
        timeouts = chain((0,), repeat(self.heartbeat_s))

        async def wait() -> StreamEnding | bool:
            await asyncio.wait((available,), timeout=next(timeouts))
            return BROKEN if available.done() else False

        try:
            return await serve(self.reader, wait, self._beat)
        finally:
            available.cancel()

    async def _wait_for_log(self) -> None:
        """Returns when another try is worth it: the log serves the turn, or has answered with a final error."""
        while True:
            await asyncio.sleep(TRY_LOG_EVERY_S)
            if not self._streams.log.connection.is_up:
                continue
            try:
                start = await self._find_start()
                async with self._streams.fan_out.subscribe(
                    start.key, self._cursor, from_start=self.dialect.is_stateful
                ):
                    return
            except LogUnavailable:
                continue
            except (LogError, Refused):
                return


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


@asynccontextmanager
async def stream_span(log: TurnLog, feed: TurnFeed, dialect: str, cursor: Seq) -> AsyncIterator[None]:
    """Runs the block, which sends the stream, in a span of the turn's trace, linked to the span of its HTTP request."""
    with tracing.span(
        "resume stream" if cursor else "stream",
        traceparent=await _turn_traceparent(log, feed),
        linked=tracing.traceparent(),
        attributes={"tailrace.turn": feed.key.turn, "tailrace.dialect": dialect, "tailrace.cursor": cursor},
    ):
        yield


async def _turn_traceparent(log: TurnLog, feed: TurnFeed) -> str | None:
    """Returns the `traceparent` of the turn's request; None if the request has none, or if the log does not answer.

    A feed that begins at a cursor does not hold the request, which is then read from the log.
    """
    if feed.request is not None:
        return feed.request.traceparent
    try:
        request = (await log.read_turn(ScopedKey.whole(feed.key))).request
    except LogError:
        return None
    return request.traceparent if request is not None else None
