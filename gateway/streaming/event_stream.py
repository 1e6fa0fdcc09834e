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
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.http import sse
from tailrace.gateway.limits.stream_slots import StreamPermit
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.gateway.streaming.pacing import Pace
from tailrace.gateway.streaming.response import Interruptions, StreamedResponse, body
from tailrace.gateway.streaming.stream_context import StreamContext
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import End, Event, Failure
from tailrace.proto.errors import CODES, CursorUnknown, LogError, LogUnavailable, Refused, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.subjects import TurnKey

# Limits of one write, in frames and bytes: a late reader receives the past in large pieces, and a client that does not
# read has only a few pieces in memory here.
FRAMES_MAX = 256
PIECE_BYTES_MAX = 64 * 1024
# An EventSource waits three seconds by default, which users notice. The delay is random: otherwise all readers of a
# gateway that stops would reconnect to the next one at the same moment.
RETRY_MS = (500, 2000)
# The reconnect window after a stream was closed for its age: a client that does not resume within it has left.
BACK_WITHIN_S = 15.0
# The pause before a body is cut short. A browser then drops the events that it has received but not yet dispatched:
# without the pause this happened to 2 in 100 streams in Chromium.
DISPATCH_S = 0.25
# The pause between two tries of an unavailable log: well below the second after which clients reconnect.
TRY_LOG_EVERY_S = 0.5

# Renders the turn so far as a few events. The arguments: key, fold, and the number of events that these replace.
Snapshot = Callable[[TurnKey, Turn, int], sse.Events]


class Start(NamedTuple):
    """Where a stream starts: the turn, and how many of its events the client has received (None: see the cursor)."""

    key: TurnKey
    seen: int | None = None
    headers: Mapping[str, str] = {}


class Terms(NamedTuple):
    """What a credential that is valid for a single stream adds to the response."""

    id_prefix: bytes = b""
    """The prefix of each SSE id."""
    accept: Callable[[], Awaitable[None]] | None = None
    """Called right before status 200 is sent; may raise Refused."""


class EventStream(StreamedResponse):
    """Streams a turn. Errors that are known before the first byte have an HTTP status."""

    def __init__(
        self,
        streams: StreamContext,
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
        permit: StreamPermit | None = None,
    ) -> None:
        """Streams the entries after `cursor`; or, if `start.seen` is set, the events after the first `seen` ones.

        `start` may be a function that finds the Start; it raises Refused or LogUnavailable.
        `snapshot`: renders the answer so far, which is sent at once; the stream continues after it.
        `is_first_word_awaited`: the status waits for the first token, at most one heartbeat interval: a turn that fails
        before it is answered with an HTTP error.
        `waits_for_log`: while the log is unavailable, the client receives heartbeats instead of a 503, because an
        EventSource does not reconnect after any status but 200 (ADR 13). When the gateway drains, the body ends cleanly
        and the client reconnects to another gateway.
        `pace`: stored entries are sent at this pace instead of at once.
        `permit`: the stream's own, if it was reserved before its turn was submitted.
        """
        super().__init__(
            {"content-type": dialect.media_type, **sse.HEADERS, **dialect.headers, **(headers or {})},
        )
        self._gateway = streams
        self._principal = request.principal
        self._permit = permit or streams.permit(request, request.principal)
        self._look_up = start if callable(start) else None
        self._start = None if callable(start) else start if isinstance(start, Start) else Start(start)
        if self._start is not None:
            self._add_turn_headers(self._start)
        self._dialect = dialect
        self._cursor = cursor
        self._snapshot = snapshot
        self._is_first_word_awaited = is_first_word_awaited
        self._waits_for_log = waits_for_log
        self._pace = pace
        self._terms = terms or Terms()
        self._is_within_frame = False
        """Whether a write of whole frames has begun and is not complete."""
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

        An error that a retry does not mend is raised as long as nothing was sent. Later it only ends the response: the
        client repeats its request and receives the error then.
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
        """Sends heartbeats until `_wait_for_log` returns."""
        available = asyncio.create_task(self._wait_for_log())
        try:
            while not available.done():
                await send(body(self._dialect.heartbeat, more=True))
                await asyncio.wait((available,), timeout=self._gateway.settings.heartbeat_s)
        finally:
            available.cancel()

    async def _wait_for_log(self) -> None:
        """Returns when another try is worth it: the log serves the turn, or has answered with a final error."""
        while True:
            await asyncio.sleep(TRY_LOG_EVERY_S)
            if not self._gateway.connection.is_up:
                continue
            try:
                async with self._subscribe(await self._find_start()):
                    return
            except LogUnavailable:
                continue
            except (LogError, Refused):
                return

    async def _stream(self, interruptions: Interruptions, send: Send, *, is_head: bool = False) -> None:
        start = await self._find_start()
        try:
            async with self._subscribe(start) as feed:
                if feed.is_ended and self._start_index(feed, start) == len(feed.entries):
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
            self._gateway.on_left(start.key, back_within_s)

    async def _serve(self, feed: TurnFeed, start: Start, interruptions: Interruptions, send: Send) -> float | None:
        """Writes until the turn ends or an interruption comes.

        Returns how many seconds the client has to reconnect before it counts as disconnected for the on_disconnect
        policy; None if it does not count as disconnected.
        """
        if self._is_first_word_awaited:
            timeout_s = self._gateway.settings.heartbeat_s
            match (await interruptions.run(_wait_for_answer(feed), timeout_s)).cause:
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
        # A client whose credential has expired cannot reconnect with it.
        return 0.0 if cause == "expired" else None

    async def _find_start(self) -> Start:
        if self._look_up is None:
            assert self._start is not None  # noqa: S101
            return self._start
        start = await self._look_up()
        self._add_turn_headers(start)
        return start

    def _add_turn_headers(self, start: Start) -> None:
        self.add_headers({"tailrace-turn": start.key.turn, **start.headers}, are_for_errors=False)

    def _subscribe(self, start: Start) -> AbstractAsyncContextManager[TurnFeed]:
        return self._gateway.fan_out.subscribe(start.key, self._cursor, from_start=self._dialect.is_stateful)

    def _start_index(self, feed: TurnFeed, start: Start) -> int:
        """Returns the index of the first entry that may hold an event for this client."""
        return 0 if start.seen else feed.start(self._cursor, self._dialect)

    async def _write(self, feed: TurnFeed, start: Start, send: Send) -> bool:
        """Writes frames until the turn ends, the feed breaks or a frame is a break. Returns whether the turn ended."""
        position, to_skip = self._start_index(feed, start), start.seen or 0
        if self._snapshot is not None:
            turn, count, position = await self._fold(feed)
            await self._send(send, [Frame(self._snapshot(feed.key, turn, count))])
        elif position:
            await self._render(feed, position)
        most, now = FRAMES_MAX, asyncio.get_running_loop().time
        while True:
            if self._pace is not None:
                most = self._pace.due(feed.entries, position, FRAMES_MAX, now())
            frames = feed.frames(self._dialect, position, most, PIECE_BYTES_MAX)
            position += len(frames)
            if to_skip:
                frames, to_skip = skip_events(frames, to_skip)
            if await self._send(send, frames):
                await asyncio.sleep(DISPATCH_S)
                return False
            if position < len(feed.entries):
                is_news = await self._is_next_due(feed, position)
            elif feed.is_broken or feed.is_ended:
                return feed.is_ended
            else:
                is_news = await feed.changed(position)
            if not is_news and self._dialect.heartbeat:
                await send(body(self._dialect.heartbeat, more=True))

    async def _send(self, send: Send, frames: list[Frame]) -> bool:
        """Writes `frames` up to the first break; returns whether there was one.

        Waits after each piece until the client has read enough of the earlier ones.
        """
        prefix, pieces, is_break = self._terms.id_prefix, list[bytes](), False
        for frame in frames:
            pieces.append(sse.encode(frame.events, prefix) if prefix and frame.events else frame.data)
            if frame.is_break:
                is_break = True
                break
        if data := b"".join(pieces):
            metrics.SENT_BYTES.inc(len(data))
            if self._needs_retry:
                data = sse.retry(random.randint(*RETRY_MS)) + data  # noqa: S311  # no secret
                self._needs_retry = False
            self._is_within_frame = True
            for start in range(0, len(data), PIECE_BYTES_MAX):
                await send(body(data[start : start + PIECE_BYTES_MAX], more=True))
            self._is_within_frame = False
        return is_break

    async def _is_next_due(self, feed: TurnFeed, position: int) -> bool:
        """Waits until the entry at `position` is due, at most one heartbeat interval; returns whether it is."""
        if self._pace is None:
            # Lets other tasks run between the pieces of a long replay.
            await asyncio.sleep(0)
            return True
        heartbeat_s = self._gateway.settings.heartbeat_s
        wait_s = self._pace.due_in_s(feed.entries[position], asyncio.get_running_loop().time())
        await asyncio.sleep(min(max(wait_s, 0), heartbeat_s))
        return wait_s <= heartbeat_s

    async def _render(self, feed: TurnFeed, end: int) -> None:
        """Renders the entries before the index `end`, in steps, to bring the dialect's state up to there."""
        for position in range(0, end, FRAMES_MAX):
            feed.frames(self._dialect, position, min(FRAMES_MAX, end - position))
            await asyncio.sleep(0)

    async def _fold(self, feed: TurnFeed) -> tuple[Turn, int, int]:
        """Returns the turn so far, the number of its events and of its entries; computes them in steps."""
        turn, count, position = EMPTY_TURN, 0, 0
        while position < len(feed.entries):
            frames = feed.frames(self._dialect, position, FRAMES_MAX)
            turn = fold(feed.entries[position : position + len(frames)], turn)
            count += sum(len(frame.events) for frame in frames)
            position += len(frames)
            await asyncio.sleep(0)
        return turn, count, position

    async def _send_record(self, start: Start, send: Send) -> None:
        """Sends the turn from the database after TurnUnknown or CursorUnknown. Raises CursorUnknown, Refused."""
        try:
            await self._gateway.log.turn(start.key)
        except TurnUnknown:
            record = await self._gateway.history.past(start.key)
        else:
            raise CursorUnknown("the cursor is not an `id:` of this turn: send back the last one that you received")
        # The database may have less of a turn than its readers if the log lost it. They must learn that it has failed.
        if self._cursor > record.cursor and record.error != LOST_FAILURE:
            raise CursorUnknown("the cursor is beyond the end of this turn")
        if self._cursor == record.cursor:
            await self._send_empty(send, 204)
            return
        if self._cursor and not self._dialect.can_reset:
            # The client would receive again what it has, and the dialect has no event that resets it.
            raise CursorUnknown("this turn has left the log: repeat the request without a cursor to receive all of it")
        await self.begin(send, 200)
        frame = self._dialect.render_record(record, start.seen or 0)
        if await self._send(send, [frame]):
            await asyncio.sleep(DISPATCH_S)
        else:
            await send(body(b"", more=False))

    async def _send_empty(self, send: Send, status: int) -> None:
        # 204 tells an EventSource to stop: it reconnects after every other end.
        await self.begin(send, status)
        await send(body(b"", more=False))


def skip_events(frames: list[Frame], count: int) -> tuple[list[Frame], int]:
    """Returns `frames` without their first `count` events, and how many events are still to be skipped.

    A frame that is skipped whole loses its break, too: the client was disconnected there and has reconnected since.
    """
    for index, frame in enumerate(frames):
        if len(frame.events) > count:
            rest = frame.events[count:]
            return [Frame(rest, frame.is_break), *frames[index + 1 :]], 0
        count -= len(frame.events)
    return [], count


async def _wait_for_answer(feed: TurnFeed) -> None:
    """Waits until the model has begun to answer, or the feed is broken. Raises Refused if the turn fails before that.

    After the status a failure can only be sent as an event of the stream, and many clients do not look for it.
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
        await feed.changed(position)
