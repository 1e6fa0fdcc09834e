"""One reader's stream: an ASGI response that writes a turn's frames from a cursor on, until the turn ends.

A stream that breaks never looks like one that ended. Where the dialect has no word for the end, a stream that is closed
early lacks the last chunk of its body, and the client's HTTP library says so.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, suppress

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from tailrace.gateway import metrics
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.clients.dialect import Dialect
from tailrace.gateway.dependencies import Gateway, caller_of
from tailrace.gateway.http.large_bodies import let_go
from tailrace.gateway.streaming import sse
from tailrace.gateway.streaming.fanout import RenderedFrame, TurnFeed
from tailrace.gateway.streaming.pacing import Pace
from tailrace.proto.entries import End, Event, Failure
from tailrace.proto.errors import CursorUnknown, Refused, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import Seq
from tailrace.proto.subjects import TurnKey

# Frames and bytes that are written at once: a late joiner gets its past in large pieces, and who does not read holds no
# more than a few of these here.
FRAMES_MAX = 256
PIECE_BYTES_MAX = 64 * 1024
# An id begins so, and is not cut in two.
ID = b"\nid: "
# EventSource waits three seconds by itself, which a reader sees. Each has a time of its own: all of those whom a
# gateway leaves behind would come to the next at the same moment.
RETRY_MS = (500, 2000)
# A stream that was closed for its age is taken up again; who does not come back within this has gone.
BACK_WITHIN_S = 15.0
# How soon who waits for a first word notices that the gateway is going away.
DRAIN_LOOK_S = 0.2
# A browser forgets what it has not yet given to its page when a body is cut short: 2 in 100 streams in Chromium.
TAKEN_WITHIN_S = 0.25


# The events that tell a turn as it is at once, where so many events had told it one by one.
Snapshot = Callable[[TurnKey, Turn, int], sse.Events]


class EventStream:
    """The response. What is wrong with the request is raised before the first byte is written."""

    def __init__(
        self,
        gateway: Gateway,
        key: TurnKey,
        cursor: Seq,
        dialect: Dialect,
        headers: Mapping[str, str] | None = None,
        *,
        seen: int | None = None,
        snapshot: Snapshot | None = None,
        is_first_word_awaited: bool = False,
        pace: Pace | None = None,
    ) -> None:
        """Goes on after the entry `cursor`, or, where a protocol counts its events, after as many as were `seen`.

        `snapshot`: what was said so far is told at once, and the stream goes on from there.
        `is_first_word_awaited`: a turn that fails before its first word is raised as Refused, with an HTTP status.
        `pace`: entries that are stored already come no sooner than it says.
        """
        self._gateway = gateway
        self._key = key
        self._cursor = cursor
        self._dialect = dialect
        self._seen = seen
        self._snapshot = snapshot
        self._is_first_word_awaited = is_first_word_awaited
        self._pace = pace
        self._is_within = False
        """Whether what was sent last was not all of a frame."""
        self._is_retry_untold = dialect.sends_retry
        self._headers = {
            "content-type": dialect.media_type,
            "tailrace-turn": key.turn,
            **sse.HEADERS,
            **dialect.headers,
            **(headers or {}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._gateway.streams.count_reader(scope):
            await self._tell(scope, receive, send)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        await let_go(scope)
        try:
            async with self._reading() as live:
                if live.is_ended and self._start(live) == len(live.entries):
                    await self._empty(send, 204)
                    return
                if scope["method"] == "HEAD":
                    await self._empty(send, 200)
                    return
                with self._gateway.door.watch(caller_of(Request(scope))) as ended:
                    if self._is_first_word_awaited:
                        await first_word(self._gateway, live, ended)
                    with metrics.STREAMS.track_inprogress():
                        async with self._gateway.streams.hold_slots(scope):
                            back_within_s = await self._serve(live, receive, send, ended)
        except (TurnUnknown, CursorUnknown):
            await self._archived(send)
            return
        finally:
            await self._gateway.streams.release_reserved(scope)
        if back_within_s is not None:
            self._gateway.departures.left(self._key, back_within_s)

    async def look(self) -> None:
        """Returns when the log can give this stream; raises TurnUnknown, CursorUnknown, LogUnavailable."""
        async with self._reading():
            pass

    async def begin(self, send: Send, status: int) -> None:
        await begin(send, status, self._headers)

    async def _serve(self, live: TurnFeed, receive: Receive, send: Send, ended: asyncio.Event) -> float | None:
        """Writes until the end, the drain, the reader's departure, or the end of what it may, or of the stream's life.

        How soon somebody has to come, if nobody is there then who would be missed otherwise.
        """
        if self._cursor:
            metrics.RESUMED.inc()
        await self.begin(send, 200)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write(live, send))
            leaving = group.create_task(disconnected(receive))
            draining = group.create_task(self._gateway.draining.wait())
            ending = group.create_task(ended.wait())
            over = (writing, leaving, draining, ending)
            life_s = self._gateway.settings.stream_life_s * random.uniform(0.9, 1.1)  # noqa: S311  # no secret
            done, _ = await asyncio.wait(over, timeout=life_s, return_when=asyncio.FIRST_COMPLETED)
            metrics.AGED.inc(not done)
            for task in over:
                task.cancel()
        if leaving.done() and not leaving.cancelled() and writing.cancelled():
            return 0.0
        is_whole = not writing.cancelled() and writing.result()
        if is_whole or (self._dialect.is_self_delimited and not self._is_within):
            await send(piece(b"", more=False))
        if not is_whole:
            # Without the last chunk: the server closes the connection, and the client sees a body cut short.
            metrics.BROKEN_OFF.inc()
        if not done:
            return BACK_WITHIN_S
        # Who has no credential any more does not come back with the same.
        return 0.0 if ended.is_set() and not is_whole else None

    def _reading(self) -> AbstractAsyncContextManager[TurnFeed]:
        return self._gateway.lives.reading(self._key, self._cursor, from_start=self._dialect.is_stateful)

    def _start(self, live: TurnFeed) -> int:
        """The index of the first entry that may hold something for this reader."""
        return 0 if self._seen else live.start(self._cursor, self._dialect)

    async def _write(self, live: TurnFeed, send: Send) -> bool:
        """Writes frames until no more will come; whether the turn's end was among them."""
        position, unwanted = self._start(live), self._seen or 0
        heartbeat_s = self._gateway.settings.heartbeat_s
        if self._snapshot is not None:
            turn, told, position = await self._so_far(live)
            await self._send(send, sse.encode(self._snapshot(live.key, turn, told)))
        elif position:
            await self._render(live, position)
        while True:
            frames = within(live.frames(self._dialect, position, self._most(live, position)), PIECE_BYTES_MAX)
            position += len(frames)
            if unwanted:
                frames, unwanted = unseen(frames, unwanted)
            broken_at = next((number for number, frame in enumerate(frames, 1) if frame.is_break), None)
            data = b"".join(frame.data for frame in frames[:broken_at])
            if data:
                metrics.SENT_BYTES.inc(len(data))
                await self._send(send, data)
            if broken_at is not None:
                await asyncio.sleep(TAKEN_WITHIN_S)
                return False
            if live.is_broken and position == len(live.entries):
                return False
            if live.is_ended and position == len(live.entries):
                return True
            if not await self._more(live, position, heartbeat_s) and self._dialect.heartbeat:
                await send(piece(self._dialect.heartbeat, more=True))

    def _most(self, live: TurnFeed, position: int) -> int:
        """How many frames may be written now."""
        if self._pace is None:
            return FRAMES_MAX
        return self._pace.due(live.entries, position, FRAMES_MAX, asyncio.get_running_loop().time())

    async def _more(self, live: TurnFeed, position: int, heartbeat_s: float) -> bool:
        """Waits until there is more to write; False after `heartbeat_s` seconds of nothing."""
        if position == len(live.entries):
            return await live.changed(position, heartbeat_s)
        if self._pace is None:
            # Who has much to catch up with holds up nobody: others are told in between.
            await asyncio.sleep(0)
            return True
        wait_s = self._pace.due_in_s(live.entries[position], asyncio.get_running_loop().time())
        await asyncio.sleep(min(max(wait_s, 0), heartbeat_s))
        return wait_s <= heartbeat_s

    async def _render(self, live: TurnFeed, end: int) -> None:
        """Renders the entries before the index `end`, of which a dialect's state is made; others write meanwhile."""
        for position in range(0, end, FRAMES_MAX):
            live.frames(self._dialect, position, min(FRAMES_MAX, end - position))
            await asyncio.sleep(0)

    async def _so_far(self, live: TurnFeed) -> tuple[Turn, int, int]:
        """The turn as it is now, how many events have told it, and from how many entries; others write meanwhile."""
        turn, told, position = EMPTY_TURN, 0, 0
        while position < len(live.entries):
            frames = live.frames(self._dialect, position, FRAMES_MAX)
            turn = fold(live.entries[position : position + len(frames)], turn)
            told += sum(len(frame.events) for frame in frames)
            position += len(frames)
            await asyncio.sleep(0)
        return turn, told, position

    async def _archived(self, send: Send) -> None:
        """The log does not know this turn, or not this cursor: is it one that has left the log for the database?"""
        try:
            await self._gateway.log.turn(self._key)
        except TurnUnknown:
            record = await self._gateway.history.past(self._key)
        else:
            raise CursorUnknown("the cursor is not an `id:` of this turn: send back the last one that you received")
        if self._cursor > record.cursor:
            raise CursorUnknown("the cursor is beyond the end of this turn")
        if self._cursor == record.cursor:
            await self._empty(send, 204)
            return
        if self._cursor and not self._dialect.can_reset:
            # It would be sent again what it has, and has no word for "forget that".
            raise CursorUnknown("this turn has left the log: ask without a cursor, for all of it")
        await self.begin(send, 200)
        frame = self._dialect.render_record(record, self._seen or 0)
        await self._send(send, frame.data)
        if frame.is_break:
            await asyncio.sleep(TAKEN_WITHIN_S)
        else:
            await send(piece(b"", more=False))

    async def _send(self, send: Send, data: bytes) -> None:
        """Whole frames, as the client takes them."""
        self._is_within = True
        if self._is_retry_untold:
            data = sse.retry(random.randint(*RETRY_MS)) + data  # noqa: S311  # no secret
            self._is_retry_untold = False
        for each in cut(data, PIECE_BYTES_MAX):
            await send(piece(each, more=True))
        self._is_within = False

    async def _empty(self, send: Send, status: int) -> None:
        # 204: an EventSource comes back after every end, until it is told that.
        await self.begin(send, status)
        await send(piece(b"", more=False))


def within(frames: list[RenderedFrame], bytes_max: int) -> list[RenderedFrame]:
    """As many of the first `frames` as fit into `bytes_max`; one, if there is any."""
    size = 0
    for index, frame in enumerate(frames):
        size += len(frame.data)
        if size > bytes_max:
            return frames[: max(index, 1)]
    return frames


def unseen(frames: list[RenderedFrame], count: int) -> tuple[list[RenderedFrame], int]:
    """`frames` without their first `count` events, and how many of those are still to come.

    Who has seen all of a frame has been broken off after it, too, and has come back for what follows.
    """
    for index, frame in enumerate(frames):
        if len(frame.events) > count:
            rest = frame.events[count:]
            return [RenderedFrame(sse.encode(rest), rest, frame.is_break), *frames[index + 1 :]], 0
        count -= len(frame.events)
    return [], count


async def first_word(gateway: Gateway, live: TurnFeed, ended: asyncio.Event) -> None:
    """Returns when the model has begun to answer, or its silence has to be filled; raises Refused when it never will.

    So it is when the caller's credential has ended meanwhile, which is when `ended` is set.

    Once the status is sent a failure can only be told inside the stream, where many a client does not look for it.
    """
    position = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(gateway.settings.heartbeat_s):
            while not (gateway.draining.is_set() or live.is_broken):
                for stored in live.entries[position:]:
                    match stored.entry:
                        case End(error=Failure() as failure):
                            raise Refused(failure.code, failure.message, retry_after_s=failure.retry_after_s)
                        case Event(is_hidden=False) | End():
                            return
                position = len(live.entries)
                await live.changed(position, DRAIN_LOOK_S)
                if ended.is_set():
                    raise credential_invalid()


async def begin(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def cut(data: bytes, bytes_max: int) -> Iterator[bytes]:
    """`data` in pieces; no `id:` is cut in two, for who has a ticket has it written into each (tickets.py)."""
    start = 0
    while start < len(data):
        end = start + bytes_max
        if (mark := data.find(ID, end - len(ID) + 1, end + len(ID) - 1)) > start:
            end = mark
        yield data[start:end]
        start = end


def piece(data: bytes, *, more: bool) -> Message:
    """A part of a response's body, the last one unless there is `more`."""
    return {"type": "http.response.body", "body": data, "more_body": more}
