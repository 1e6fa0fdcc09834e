"""`GET /v1/sessions/{session}/events`: one stream for all turns of a session, in the dialect `tailrace`.

Each event names its turn in `turn`. The stream follows the running turns and those that begin later, and stays open
when they end. Entries of different turns are not sent in the order of their sequences, so the cursor contains one
position for each turn:

    SINCE.REQUEST-LAST.REQUEST-LAST…

Each REQUEST-LAST is one turn: the sequence of its request, and of the last entry that was sent. The turn's end may be
before SINCE. A turn that is not listed needs no more events if its last entry is at SINCE or earlier. A position in a
turn of another session is ignored, like that of a deleted turn. Each number is a cursor of a turn's entry (PROTOCOL
R150). After a restore of the log, turns that are not listed begin with a reset.
"""

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from tailrace.features.session_stream.new_turns import NewTurns
from tailrace.gateway import metrics
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.clients.native.event_types import ResetEvent, TurnEvent
from tailrace.gateway.clients.native.stream import OF_SESSION, encode_event
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http import sse
from tailrace.gateway.http.deferred_response import StreamedResponse, body
from tailrace.gateway.http.last_event_id import AFTER, last_event_id
from tailrace.gateway.http.parameters import LAST_EVENT_ID_IN_QUERY, LAST_RECEIVED, SAME_AS_LAST_RECEIVED
from tailrace.gateway.http.query_parameters import is_true
from tailrace.gateway.http.route import SESSIONS, SSE, Route, header, query
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.dialect import Frame
from tailrace.gateway.streaming.endings import BROKEN, LEFT, StreamEnding
from tailrace.gateway.streaming.feed import TurnFeed
from tailrace.gateway.streaming.reader import Reader, StreamContext, random_life_s
from tailrace.gateway.streaming.response import serve
from tailrace.gateway.streaming.stream_record import StreamRecord
from tailrace.gateway.streaming.writer import FRAMES_MAX, PIECE_BYTES_MAX, RETRY_MS
from tailrace.gateway.turns.request_body import check_session
from tailrace.proto.entries import Request
from tailrace.proto.errors import CursorUnknown, LogError, Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetSession, ListTurnsSince
from tailrace.proto.runtime.race import run_until
from tailrace.proto.runtime.settings import NoSettings

FOLLOWED_MAX = 64
# The maximum length of the cursor, in turns. No further turn is followed until some of them have ended.
LISTED_MAX = 128
# 18 digits: a sequence must fit into SQLite's integers of 8 bytes.
CURSOR_TEXT = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18}-[0-9]{1,18}){0,256}")
HEADERS = {"content-type": sse.MEDIA_TYPE, **sse.HEADERS}


class TurnPosition(msgspec.Struct):
    """The position in one turn: its request, and the last entry that was sent."""

    request: Seq
    last: Seq
    is_ended: bool = False


class SessionEvent(msgspec.Struct, frozen=True, tag_field="type", tag="session"):
    """The first event: the session, and its running turns, whose events follow from their start or the cursor on."""

    session: SessionId
    """The session."""
    running: list[TurnId]
    """Its running turns."""
    exists: bool
    """Whether the session has begun; `false` only with `wait=true`."""


SessionStreamEvent = SessionEvent | TurnEvent


async def get_events(request: ApiRequest, streams: StreamContext, new_turns: NewTurns) -> ASGIApp:
    """`GET /v1/sessions/{session}/events`: streams all running and new turns of a session, from the cursor on.

    The stream stays open between turns. Its `id:` is a position in the session, and `Last-Event-ID` continues
    there. With `wait=true`, the session may begin later.
    """
    text = last_event_id(request, AFTER)
    if text and CURSOR_TEXT.fullmatch(text) is None:
        raise Refused(
            "cursor_invalid", f"{text[:40]!r} is not an `id:` of this stream: send the last `id:` that you received"
        )
    name, exists, waits = request.path_params["session"], True, is_true(request, "wait")
    try:
        await streams.history.query(request.access, GetSession(name))
    except Refused as refused:
        if refused.code != "session_not_found" or not waits:
            raise
        check_session("session", name)
        exists = False
    # All turns of a session that does not exist yet are new.
    cursor = text or (None if exists else str(BEFORE_FIRST))
    return SessionStream(Reader(streams, request), new_turns, SessionId(name), cursor, exists=exists)


class SessionStream(StreamedResponse):
    """Streams the turns of one session to one client, until it disconnects."""

    def __init__(
        self, reader: Reader, new_turns: NewTurns, session: SessionId, cursor: str | None, *, exists: bool
    ) -> None:
        super().__init__(HEADERS)
        self._reader = reader
        self._streams = reader.streams
        self._scope = reader.principal.access
        self._new_turns = new_turns
        self._session = session
        self._cursor = cursor
        self._exists = exists
        """Whether the session existed when the stream was requested."""
        self._since = BEFORE_FIRST
        self._is_replaced = False
        """Whether the client may have events of a log that was thrown away (see Restores)."""
        self._positions: dict[TurnId, TurnPosition] = {}
        self._following: dict[TurnId, asyncio.Task[None]] = {}
        self._finished: set[TurnId] = set()
        self._records: set[StreamRecord] = set()
        self._writing = asyncio.Lock()
        self._is_silent = True
        self._heartbeat_at: float | None = None
        """The loop's time of the next heartbeat; None until the first event was sent."""

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events of all running and new turns.

        Ends when the client disconnects, the gateway drains, the credential expires or the stream is too old.
        """
        async with (
            self._reader.open(receive, self._streams.draining),
            self._new_turns.listen(self._scope.tenant, self._session) as news,
        ):
            await self._reader.acquire()
            await self._read_cursor()
            await self.begin(send, 200)
            if scope["method"] == "HEAD":
                await send(body(b"", more=False))
                return
            try:
                ending = await serve(
                    self._reader,
                    partial(self._step, send, news),
                    partial(self._send_heartbeat, send),
                    life_s=random_life_s(self._streams.settings),
                )
                for record in self._records:
                    record.close(ending)
            finally:
                running = list(self._following)
                await self._stop()
            if ending is not LEFT:
                # Events are self-delimited, and an EventSource resumes after every end.
                await send(body(b"", more=False))
            if ending.reconnect_window_s is not None:
                for turn in running:
                    self._streams.on_disconnect(TurnKey(self._scope.tenant, turn), ending.reconnect_window_s)

    async def _read_cursor(self) -> None:
        """Finds the turns that the cursor lists. Without a cursor, the stream begins with the turns that run now."""
        if self._cursor is None:
            self._since = await self._streams.log.newest_seq()
            return
        log = self._streams.log
        since, *listed = self._cursor.split(".")
        self._since = log.restores.find_last(int(since))
        self._is_replaced = log.restores.find(int(since)) is None
        for pair in dict(pair.split("-") for pair in listed).items():
            request, last = (log.restores.find(int(number)) for number in pair)
            if request is None or last is None:
                # `_follow_new` finds the turn if the log still has it.
                self._is_replaced = True
                continue
            turn = await log.find_turn_at(self._scope, request, self._match, is_request=True)
            # None: the turn is of another session. Or it was deleted and has no more events, or has left the log and
            # `_follow_new` finds it.
            if turn is not None:
                self._positions[turn] = TurnPosition(request, last)

    async def _match(self, key: ScopedKey, request: Request) -> TurnId | None:
        """Returns the turn if it is of this session (PROTOCOL R147). A refusal would end an EventSource for good."""
        return key.turn if request.session == self._session else None

    async def _step(self, send: Send, news: asyncio.Event) -> StreamEnding | bool:
        """Looks for turns to follow if there is news, then waits for more, at most until the next heartbeat.

        Returns False when the heartbeat is due. A turn that cannot be followed any further breaks the stream, and the
        client resumes.
        """
        loop, heartbeat_s = asyncio.get_running_loop(), self._streams.settings.heartbeat_s
        if self._heartbeat_at is None:
            await self._send_opening(send)
            self._heartbeat_at = loop.time() + heartbeat_s
        elif news.is_set():
            news.clear()
            await self._follow_new(send)
        await run_until(news.wait(), *self._following.values(), timeout_s=max(0, self._heartbeat_at - loop.time()))
        was_full = len(self._following) >= FOLLOWED_MAX
        for turn, task in [(turn, task) for turn, task in self._following.items() if task.done()]:
            match task.exception():
                case None:
                    del self._following[turn]
                case LogError() | Refused():
                    return BROKEN
                case error:
                    raise error
        is_due = loop.time() >= self._heartbeat_at
        if is_due:
            self._heartbeat_at = loop.time() + heartbeat_s
        if is_due or was_full:
            news.set()
        return not is_due

    async def _send_opening(self, send: Send) -> None:
        """Begins to follow the running turns, and sends the first event, which lists them."""
        running = await self._follow_new(send)
        begin = SessionEvent(session=self._session, running=running, exists=self._exists)
        retry = sse.retry(random.randint(*RETRY_MS))  # noqa: S311  # no secret
        async with self._writing:
            await self._send(send, retry + self._encode(msgspec.json.encode(begin), with_id=True))

    async def _send_heartbeat(self, send: Send) -> None:
        """Sends a heartbeat unless something was sent since the last one."""
        if self._is_silent:
            async with self._writing:
                await send(body(sse.HEARTBEAT, more=True))
        self._is_silent = True

    async def _follow_new(self, send: Send) -> list[TurnId]:
        """Begins to follow the turns of the cursor, the running turns, and turns that have ended but were not sent.

        Returns the running turns, or an empty list if persistence does not answer.
        """
        with suppress(LogError, Refused):
            # If persistence does not answer, the followed turns go on, and the next call finds the others.
            query = ListTurnsSince(self._session, self._since)
            found = (await self._streams.history.query(self._scope, query)).turns
            # Turns with the oldest last entry come first, so that SINCE can move past them and the cursor stays short.
            for turn in (*self._positions, *(one.turn for one in found)):
                if turn in self._following or turn in self._finished:
                    continue
                if len(self._following) >= FOLLOWED_MAX:
                    break
                if self._following and len(self._positions.keys() | self._following.keys()) >= LISTED_MAX:
                    break
                self._following[turn] = asyncio.create_task(self._follow(send, turn))
            newest = max([self._since, *(one.cursor for one in found)])
            # The cursor lists a turn after its first event. Until then, SINCE must be before the turn's last entry.
            known = self._finished | self._positions.keys()
            unseen = [one.cursor - 1 for one in found if one.turn not in known]
            self._since = Seq(max(self._since, min([newest, *unseen])))
            ended = [turn for turn, at in self._positions.items() if at.is_ended and at.last <= self._since]
            for turn in ended:
                del self._positions[turn]
            return [one.turn for one in found if one.is_running]
        return []

    async def _follow(self, send: Send, turn: TurnId) -> None:
        """Writes the events of one turn until it ends. Raises LogError, Refused if it cannot be followed further."""
        key, start = ScopedKey(self._scope, turn), self._positions.get(turn)
        try:
            if start is None and self._is_replaced:
                await self._reset(send, turn)
            await self._write_turn(send, key, BEFORE_FIRST if start is None else start.last)
        except CursorUnknown:
            await self._reset(send, turn)
            await self._write_turn(send, key, BEFORE_FIRST)
        except TurnUnknown:
            try:
                record = await self._streams.history.read_past_turn(key)
            except Refused as refused:
                # A deleted turn has no more events. If persistence does not answer, the client resumes before the turn.
                if refused.code != "turn_not_found":
                    raise
            else:
                position = TurnPosition(BEFORE_FIRST, record.cursor, is_ended=True)
                await self._write(send, key.plain, [(OF_SESSION.render_record(record, 0), position)])
        self._finished.add(turn)
        if turn in self._positions:
            self._positions[turn].is_ended = True

    async def _reset(self, send: Send, turn: TurnId) -> None:
        async with self._writing:
            await self._send(send, self._encode_all(sse.frame(encode_event(ResetEvent(), turn))))

    async def _write_turn(self, send: Send, key: ScopedKey, cursor: Seq) -> None:
        async with self._streams.fan_out.subscribe(key, cursor) as feed:
            index = feed.start_index(cursor, OF_SESSION)
            known = self._positions.get(key.turn)
            request = known.request if known is not None else feed.seqs[0]
            with self._record_stream(feed, cursor) as record:
                while True:
                    frames = feed.frames(OF_SESSION, index, FRAMES_MAX, PIECE_BYTES_MAX)
                    begin, index = index, index + len(frames)
                    seqs = feed.seqs[begin:index]
                    positions = [TurnPosition(request, seq) for seq in seqs]
                    await self._write(send, key.plain, list(zip(frames, positions, strict=True)))
                    record.note_write(feed.entries, begin, index)
                    if index == len(feed.entries) and feed.is_ended:
                        record.close(feed.ending or BROKEN)
                        return
                    if index < len(feed.entries):
                        # Lets other tasks run between the pieces of a long replay.
                        await asyncio.sleep(0)
                    elif feed.is_broken:
                        await feed.wait_until_caught_up()
                    else:
                        await feed.wait_for_change(index)

    @contextmanager
    def _record_stream(self, feed: TurnFeed, cursor: Seq) -> Iterator[StreamRecord]:
        """Records the stream of one turn. `respond` notes why it is closed, unless its turn ends first."""
        record = self._streams.records.open(feed, OF_SESSION.name, cursor)
        self._records.add(record)
        try:
            yield record
        finally:
            self._records.discard(record)
            self._streams.records.end(record, feed)

    async def _write(self, send: Send, key: TurnKey, frames: Sequence[tuple[Frame, TurnPosition]]) -> None:
        async with self._writing:
            data = b""
            for frame, position in frames:
                # Set before the events are encoded, because their id contains this position.
                self._positions[key.turn] = position
                data += self._encode_all(frame.events)
            if data:
                await self._send(send, data)

    async def _send(self, send: Send, data: bytes) -> None:
        self._is_silent = False
        metrics.SENT_BYTES.value += len(data)
        await send(body(data, more=True))

    def _encode_all(self, events: Sequence[sse.Event]) -> bytes:
        return b"".join(self._encode(one.data, with_id=one.seq is not None) for one in events)

    def _encode(self, data: bytes, *, with_id: bool) -> bytes:
        if not with_id:
            return b"data: %b\n\n" % data
        offset = self._streams.log.restores.offset
        listed = (f".{offset + at.request}-{offset + at.last}" for at in self._positions.values() if at.request)
        return b"data: %b\nid: %b\n\n" % (data, f"{offset + self._since}{''.join(listed)}".encode())

    async def _stop(self) -> None:
        for task in self._following.values():
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)


POSITION = {"type": "string", "pattern": f"^({CURSOR_TEXT.pattern})$"}
RESUMING_POSITION = (
    header("Last-Event-ID", LAST_RECEIVED, **POSITION),
    query("after", SAME_AS_LAST_RECEIVED, **POSITION),
    *LAST_EVENT_ID_IN_QUERY,
)

WAIT = query("wait", "`true`: a session that does not exist yet is followed from its first turn on, instead of a 404.")

ROUTES = [
    Route(
        "GET",
        "/v1/sessions/{session}/events",
        get_events,
        "read",
        SESSIONS,
        streams=SSE,
        events=SessionStreamEvent,
        parameters=(WAIT, *RESUMING_POSITION),
    ),
]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the service that notices new turns."""
    return Parts(services=(NewTurns(gateway.log),))


FEATURE = Feature(NoSettings, start, routes=ROUTES)
