"""The response that streams a turn to one client: from a cursor on, until the turn ends or something interrupts it.

A stream that is interrupted never looks like one that has ended. Where the dialect has no event for the end, an
interrupted body lacks its last chunk, which the client's HTTP library reports.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.dependencies import ApiRequest
from tailrace.gateway.streaming import sse
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.fanout import RenderedFrame, TurnFeed
from tailrace.gateway.streaming.pacing import Pace
from tailrace.gateway.streaming.response import Interruptions, StreamedResponse, body
from tailrace.proto.entries import End, Event, Failure
from tailrace.proto.errors import CODES, CursorUnknown, LogError, LogUnavailable, Refused, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.subjects import TurnKey

# Frames and bytes that are written at once: a late reader receives the past in large pieces, and a client that does
# not read has no more than a few of them in memory here.
FRAMES_MAX = 256
PIECE_BYTES_MAX = 64 * 1024
# An EventSource waits three seconds by default, which users notice. The delay is random: otherwise all readers of a
# gateway that stops would reconnect to the next one at the same moment.
RETRY_MS = (500, 2000)
# A stream that was closed for its age is resumed; a client that does not return within this time has left.
BACK_WITHIN_S = 15.0
# A browser drops what it has received but not yet dispatched when a body is cut short: 2 in 100 streams in Chromium.
DISPATCH_S = 0.25
# How often the log is tried while readers wait for it: well below the second after which clients reconnect.
TRY_LOG_EVERY_S = 0.5
# How long one wait for a first word lasts; the response's race ends it earlier.
FIRST_WORD_LOOK_S = 60.0

# The events that show a turn as it is at once, instead of so many events one by one.
Snapshot = Callable[[TurnKey, Turn, int], sse.Events]


class Start(NamedTuple):
    """Where a stream starts: the turn, and how many of its events the client has (None: the cursor says it)."""

    key: TurnKey
    seen: int | None = None
    headers: Mapping[str, str] = {}


class Terms(NamedTuple):
    """Conditions of a credential that is good for one stream."""

    id_prefix: bytes = b""
    """Precedes each SSE id."""
    accept: Callable[[], Awaitable[None]] | None = None
    """Is called right before a 200 and may raise Refused."""


class EventStream(StreamedResponse):
    """Streams a turn. Errors that are known before the first byte have an HTTP status."""

    def __init__(
        self,
        request: ApiRequest,
        start: TurnKey | Start | Callable[[], Awaitable[Start]],
        dialect: Dialect,
        cursor: Seq = BEFORE_FIRST,
        headers: Mapping[str, str] | None = None,
        *,
        snapshot: Snapshot | None = None,
        is_first_word_awaited: bool = False,
        waits_for_log: bool = False,
        pace: Pace | None = None,
        terms: Terms | None = None,
    ) -> None:
        """Streams what follows the entry `cursor`, or, where a protocol counts its events, the events that were seen.

        `start` may be a function that looks it up; it raises Refused or LogUnavailable.
        `snapshot`: the answer so far is sent at once, and the stream continues from there.
        `is_first_word_awaited`: a turn that fails before its first word raises Refused, with an HTTP status.
        `waits_for_log`: while the log is unavailable the client receives heartbeats instead of a 503: to an EventSource
        every status but 200 is final (ADR 13). A draining gateway sends it to another one, with a clean end.
        `pace`: stored entries are sent no sooner than it says.
        """
        super().__init__(
            {"content-type": dialect.media_type, **sse.HEADERS, **dialect.headers, **(headers or {})},
        )
        self._gateway = request.gateway
        self._principal = request.principal
        self._permit = request.stream_permit()
        self._find = start if callable(start) else None
        self._start = None if callable(start) else start if isinstance(start, Start) else Start(start)
        if self._start is not None:
            self._name(self._start)
        self._dialect = dialect
        self._cursor = cursor
        self._snapshot = snapshot
        self._is_first_word_awaited = is_first_word_awaited
        self._waits_for_log = waits_for_log
        self._pace = pace
        self._terms = terms or Terms()
        self._is_within_frame = False
        """Whether the last write was not all of a frame."""
        self._needs_retry = dialect.sends_retry

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["method"] == "HEAD"
        try:
            self._permit.enter()
            with self._gateway.authenticator.watch(self._principal) as expired:
                async with Interruptions(receive, self._gateway.draining, expired) as interruptions:
                    if self._waits_for_log:
                        await self._stream_when_available(interruptions, send)
                    else:
                        await self._stream(interruptions, send, is_head=is_head)
        finally:
            await self._permit.release()

    async def begin(self, send: Send, status: int) -> None:
        if status == 200 and self._terms.accept is not None and not self.is_begun:
            await self._terms.accept()
        await super().begin(send, status)

    async def _stream_when_available(self, interruptions: Interruptions, send: Send) -> None:
        """Streams as soon as the log answers, and sends heartbeats until then.

        What is wrong with the request is raised while nothing was sent. After that the response ends, and the next
        request of the client is refused.
        """
        while not interruptions.is_over:
            try:
                await self._stream(interruptions, send)
            except (LogError, Refused) as error:
                if not CODES[error.code].is_retryable:
                    if not self.is_begun:
                        raise
                    break
            else:
                return
            await self.begin(send, 200)
            with metrics.HELD.track_inprogress():
                if (await interruptions.run(self._until_available(send))).cause == "disconnected":
                    return
        await self.begin(send, 200)
        await send(body(self._dialect.heartbeat, more=not self._dialect.is_self_delimited))

    async def _until_available(self, send: Send) -> None:
        """Sends heartbeats until the log can serve this stream, or says that it cannot."""
        available = asyncio.create_task(self._available())
        try:
            while not available.done():
                await send(body(self._dialect.heartbeat, more=True))
                await asyncio.wait((available,), timeout=self._gateway.settings.heartbeat_s)
        finally:
            available.cancel()

    async def _available(self) -> None:
        """Returns when it is worth a try: the log has the turn, or says that it has not."""
        while True:
            await asyncio.sleep(TRY_LOG_EVERY_S)
            if not self._gateway.connection.is_up:
                continue
            try:
                async with self._subscribe(await self._located()):
                    return
            except LogUnavailable:
                continue
            except (LogError, Refused):
                return

    async def _stream(self, interruptions: Interruptions, send: Send, *, is_head: bool = False) -> None:
        start = await self._located()
        try:
            async with self._subscribe(start) as feed:
                if feed.is_ended and self._first(feed, start) == len(feed.entries):
                    await self._send_empty(send, 204)
                    return
                if is_head:
                    await self._send_empty(send, 200)
                    return
                back_within_s = await self._serve(feed, start, interruptions, send)
        except (TurnUnknown, CursorUnknown):
            await self._send_record(start, send)
            return
        if back_within_s is not None:
            self._gateway.disconnects.left(start.key, back_within_s)

    async def _serve(self, feed: TurnFeed, start: Start, interruptions: Interruptions, send: Send) -> float | None:
        """Writes until the turn ends or an interruption comes.

        Returns the reconnect window in seconds, after which the on_disconnect policy applies, or None.
        """
        if self._is_first_word_awaited:
            timeout_s = self._gateway.settings.heartbeat_s
            match (await interruptions.run(_first_word(feed), timeout_s)).cause:
                case "disconnected":
                    return 0.0
                case "expired":
                    raise credential_invalid()
        await self._permit.acquire()
        if self._cursor:
            metrics.RESUMED.inc()
        with metrics.STREAMS.track_inprogress():
            await self.begin(send, 200)
            life_s = self._gateway.settings.stream_life_s * random.uniform(0.9, 1.1)  # noqa: S311  # no secret
            cause, is_complete = await interruptions.run(self._write(feed, start, send), life_s)
        if cause == "disconnected":
            return 0.0
        if is_complete or (self._dialect.is_self_delimited and not self._is_within_frame):
            await send(body(b"", more=False))
        if not is_complete:
            # Without the last chunk the server closes the connection, and the client sees a truncated body.
            metrics.BROKEN_OFF.inc()
        if cause == "timeout":
            metrics.AGED.inc()
            return BACK_WITHIN_S
        # A client whose credential has expired does not return with the same one.
        return 0.0 if cause == "expired" else None

    async def _located(self) -> Start:
        if self._find is None:
            assert self._start is not None  # noqa: S101
            return self._start
        start = await self._find()
        self._name(start)
        return start

    def _name(self, start: Start) -> None:
        self.add_headers({"tailrace-turn": start.key.turn, **start.headers}, are_for_errors=False)

    def _subscribe(self, start: Start) -> AbstractAsyncContextManager[TurnFeed]:
        return self._gateway.fan_out.subscribe(start.key, self._cursor, from_start=self._dialect.is_stateful)

    def _first(self, feed: TurnFeed, start: Start) -> int:
        """The index of the first entry that may hold an event for this client."""
        return 0 if start.seen else feed.start(self._cursor, self._dialect)

    async def _write(self, feed: TurnFeed, start: Start, send: Send) -> bool:
        """Writes frames until no more will come. Returns whether the turn's end was among them."""
        position, to_skip = self._first(feed, start), start.seen or 0
        heartbeat_s = self._gateway.settings.heartbeat_s
        if self._snapshot is not None:
            turn, count, position = await self._fold(feed)
            await self._send(send, sse.encode(self._snapshot(feed.key, turn, count), self._terms.id_prefix))
        elif position:
            await self._render(feed, position)
        while True:
            frames = feed.frames(self._dialect, position, self._frames_due(feed, position), PIECE_BYTES_MAX)
            position += len(frames)
            if to_skip:
                frames, to_skip = skip_events(frames, to_skip)
            is_break = await self._send_frames(send, frames)
            if is_break:
                await asyncio.sleep(DISPATCH_S)
                return False
            if position < len(feed.entries):
                if not await self._is_next_due(feed, position, heartbeat_s):
                    await self._beat(send)
            elif feed.is_broken:
                return False
            elif feed.is_ended:
                return True
            elif not await feed.changed(position, heartbeat_s):
                await self._beat(send)

    async def _send_frames(self, send: Send, frames: list[RenderedFrame]) -> bool:
        """Writes frames up to the first break. Returns whether there was one."""
        prefix, pieces, is_break = self._terms.id_prefix, [], False
        for frame in frames:
            pieces.append(sse.encode(frame.events, prefix) if prefix and frame.events else frame.data)
            if frame.is_break:
                is_break = True
                break
        if data := b"".join(pieces):
            metrics.SENT_BYTES.inc(len(data))
            await self._send(send, data)
        return is_break

    async def _beat(self, send: Send) -> None:
        if self._dialect.heartbeat:
            await send(body(self._dialect.heartbeat, more=True))

    def _frames_due(self, feed: TurnFeed, position: int) -> int:
        if self._pace is None:
            return FRAMES_MAX
        return self._pace.due(feed.entries, position, FRAMES_MAX, asyncio.get_running_loop().time())

    async def _is_next_due(self, feed: TurnFeed, position: int, heartbeat_s: float) -> bool:
        """Waits until the entry at `position` is due; False after `heartbeat_s` seconds."""
        if self._pace is None:
            # A reader with much to catch up lets the others go in between.
            await asyncio.sleep(0)
            return True
        wait_s = self._pace.due_in_s(feed.entries[position], asyncio.get_running_loop().time())
        await asyncio.sleep(min(max(wait_s, 0), heartbeat_s))
        return wait_s <= heartbeat_s

    async def _render(self, feed: TurnFeed, end: int) -> None:
        """Renders the entries before the index `end`, which make up a dialect's state, in steps."""
        for position in range(0, end, FRAMES_MAX):
            feed.frames(self._dialect, position, min(FRAMES_MAX, end - position))
            await asyncio.sleep(0)

    async def _fold(self, feed: TurnFeed) -> tuple[Turn, int, int]:
        """The turn so far, the number of its events and of its entries; computed in steps."""
        turn, count, position = EMPTY_TURN, 0, 0
        while position < len(feed.entries):
            frames = feed.frames(self._dialect, position, FRAMES_MAX)
            turn = fold(feed.entries[position : position + len(frames)], turn)
            count += sum(len(frame.events) for frame in frames)
            position += len(frames)
            await asyncio.sleep(0)
        return turn, count, position

    async def _send_record(self, start: Start, send: Send) -> None:
        """Answers for a turn or a cursor that the log does not know: the turn may have moved to the database."""
        try:
            await self._gateway.log.turn(start.key)
        except TurnUnknown:
            record = await self._gateway.history.past(start.key)
        else:
            raise CursorUnknown("the cursor is not an `id:` of this turn: send back the last one that you received")
        if self._cursor > record.cursor:
            raise CursorUnknown("the cursor is beyond the end of this turn")
        if self._cursor == record.cursor:
            await self._send_empty(send, 204)
            return
        if self._cursor and not self._dialect.can_reset:
            # The client would receive again what it has, and the dialect has no event that resets it.
            raise CursorUnknown("this turn has left the log: ask without a cursor, for all of it")
        await self.begin(send, 200)
        frame = self._dialect.render_record(record, start.seen or 0)
        if await self._send_frames(send, [RenderedFrame(frame.data, frame.events, frame.is_break)]):
            await asyncio.sleep(DISPATCH_S)
        else:
            await send(body(b"", more=False))

    async def _send(self, send: Send, data: bytes) -> None:
        """Writes whole frames, in pieces, at the speed of the client."""
        self._is_within_frame = True
        if self._needs_retry:
            data = sse.retry(random.randint(*RETRY_MS)) + data  # noqa: S311  # no secret
            self._needs_retry = False
        for start in range(0, len(data), PIECE_BYTES_MAX):
            await send(body(data[start : start + PIECE_BYTES_MAX], more=True))
        self._is_within_frame = False

    async def _send_empty(self, send: Send, status: int) -> None:
        # 204: an EventSource reconnects after every end until it receives one.
        await self.begin(send, status)
        await send(body(b"", more=False))


def skip_events(frames: list[RenderedFrame], count: int) -> tuple[list[RenderedFrame], int]:
    """Returns `frames` without their first `count` events, and how many events are still to be skipped.

    A client that has all events of a break was disconnected after it and wants what follows, so the break is skipped.
    """
    for index, frame in enumerate(frames):
        if len(frame.events) > count:
            rest = frame.events[count:]
            return [RenderedFrame(sse.encode(rest), rest, frame.is_break), *frames[index + 1 :]], 0
        count -= len(frame.events)
    return [], count


async def _first_word(feed: TurnFeed) -> None:
    """Returns when the model has begun to answer, or the feed is broken. Raises Refused when the turn fails before.

    Once the status is sent, a failure can only be an event of the stream, which many clients do not look for.
    """
    position = 0
    while not feed.is_broken:
        for stored in feed.entries[position:]:
            match stored.entry:
                case End(error=Failure() as failure):
                    raise Refused(failure.code, failure.message, retry_after_s=failure.retry_after_s)
                case Event(is_hidden=False) | End():
                    return
        position = len(feed.entries)
        await feed.changed(position, FIRST_WORD_LOOK_S)
