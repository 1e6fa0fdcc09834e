"""The response that streams a turn, with a log in memory and without a server: how each stream ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from starlette.types import Message

from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.limits.reader_counts import ReaderCounts, ReaderLimits
from tailrace.gateway.limits.stream_slots import StreamSlots
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.event_stream import EventStream, Start
from tailrace.gateway.streaming.fanout import FanOut
from tailrace.gateway.streaming.reader_history import ReaderHistory
from tailrace.gateway.streaming.stream_access import StreamAccess
from tailrace.proto.entries import Attempt, Failure, Stored
from tailrace.proto.errors import LogError, LogUnavailable, Refused
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import TurnLog
from tailrace.proto.reader_report import GatewayReaders, ReaderReport
from tailrace.proto.runtime.flag import Flag
from tests.harness.sse_parser import parse
from tests.harness.turn_builder import Handwritten, completed_turn
from tests.harness.until import until
from tests.unit.test_fanout import KEY

TAILRACE = DIALECTS["tailrace"]
HEARTBEAT = b": hb\n"


class MemoryLog:
    """Follows `stored`; then waits, or ends when the turn has ended. `error` is raised instead while it is set."""

    def __init__(self, stored: list[Stored]) -> None:
        self.stored = stored
        self.error: LogError | None = None

    async def follow_into(
        self, _: object, after: Seq, receive: Callable[[list[Stored]], None], __: object = None
    ) -> None:
        if self.error is not None:
            raise self.error
        receive([one for one in self.stored if one.seq > after])
        if type(self.stored[-1].entry).__name__ != "End":
            await asyncio.Event().wait()

    async def has_end(self, _: object) -> bool:
        return True


class Client:
    """The client of a response: its messages to the response, and those that the response has sent."""

    def __init__(self, log: MemoryLog, group: asyncio.TaskGroup, settings: Settings) -> None:
        self.draining, self.expired, self.disconnects = Flag(), Flag(), list[float]()
        self.disconnected = asyncio.Event()
        self.sent: list[Message] = []
        self.slots = StreamSlots(
            cast("Any", SimpleNamespace(has_limits=lambda _: False)), ReaderCounts(ReaderLimits(1, 1, 1))
        )
        self.fan_out = FanOut(cast("TurnLog", log), group, linger_s=0, heartbeat_s=settings.heartbeat_s)
        self.streams: Any = SimpleNamespace(
            settings=settings,
            authenticator=SimpleNamespace(watch=lambda _: _Watch(self.expired)),
            draining=self.draining,
            connection=SimpleNamespace(is_up=True),
            fan_out=self.fan_out,
            on_disconnect=lambda _, reconnect_window_s: self.disconnects.append(reconnect_window_s),
            log=log,
            slots=self.slots,
            readers=ReaderHistory(),
        )
        self.request: Any = SimpleNamespace(principal=LOCAL, client=SimpleNamespace(host="127.0.0.1"))

    async def receive(self) -> Message:
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def is_complete(self) -> bool:
        """Whether the body has its last chunk."""
        return not self.sent[-1].get("more_body", False)

    @property
    def readers(self) -> list[ReaderReport]:
        found: GatewayReaders = self.streams.readers.readers(KEY)
        return found.readers

    async def run(
        self,
        dialect: Dialect = TAILRACE,
        start: object = KEY,
        method: str = "GET",
        ticket: tuple[bytes, Callable[[], Awaitable[None]] | None] = (b"", None),
        **given: Any,
    ) -> None:
        """`ticket`: the terms that a ticket adds to the stream."""
        access = StreamAccess(self.streams, self.request, *ticket)
        stream = EventStream(access, cast("Start", start), dialect, **given)
        scope = {"type": "http", "method": method, "path": "/", "headers": []}
        async with asyncio.timeout(5):
            await send_deferred(stream)(scope, self.receive, self.send)


class _Watch:
    def __init__(self, expired: Flag) -> None:
        self._expired = expired

    def __enter__(self) -> Flag:
        return self._expired

    def __exit__(self, *_: object) -> None: ...


@asynccontextmanager
async def client(log: MemoryLog, **given: Any) -> AsyncIterator[Client]:
    settings = msgspec.structs.replace(Settings(), heartbeat_s=0.05, **given)
    async with asyncio.TaskGroup() as group:
        made = Client(log, group, settings)
        yield made
        # The permit is released, so that the only reader may enter again.
        made.slots.permit(Principal(LOCAL.tenant), "127.0.0.1").enter()
        made.fan_out.close()


def running_turn() -> list[Stored]:
    return completed_turn("a", "b").stored[:-3]


async def test_a_stream_of_an_ended_turn_is_complete() -> None:
    """Every event once, in order, and the last chunk of the body."""
    stored = completed_turn("a", "b").stored
    async with client(MemoryLog(stored)) as one:
        await one.run()
    assert (one.status, one.is_complete, one.disconnects) == (200, True, [])
    (reader,) = one.readers
    assert (reader.ending, reader.cursor, reader.written) == ("ended", BEFORE_FIRST, stored[-1].seq)
    ids = [event.id for event in parse(one.body) if event.id is not None]
    assert ids == sorted(set(ids))
    assert b'"done"' in one.body


async def test_a_cursor_at_the_end_is_answered_with_204() -> None:
    """An EventSource reconnects until it receives one."""
    stored = completed_turn("a").stored
    async with client(MemoryLog(stored)) as one:
        await one.run(cursor=stored[-1].seq)
    assert (one.status, one.body, one.is_complete) == (204, b"", True)


@pytest.mark.parametrize(
    ("cause", "disconnects", "is_complete"),
    [("disconnected", [0.0], False), ("draining", [], True), ("expired", [0.0], True)],
)
@pytest.mark.parametrize("is_first_word_awaited", [False, True])
async def test_each_interruption_ends_the_stream_of_a_running_turn(
    cause: str, disconnects: list[float], *, is_complete: bool, is_first_word_awaited: bool
) -> None:
    """A client that disconnects, or whose credential expires, leaves the turn; one of a draining gateway returns."""
    async with client(MemoryLog(running_turn())) as one:
        streaming = asyncio.create_task(one.run(is_first_word_awaited=is_first_word_awaited))
        await until(lambda: b'"b"' in one.body)
        getattr(one, cause).set()
        await streaming
    assert (one.status, one.disconnects, one.is_complete) == (200, disconnects, is_complete)
    assert [reader.ending for reader in one.readers] == [cause]


async def test_an_old_stream_is_closed_and_its_reader_may_return() -> None:
    """The on_disconnect policy waits for the client to reconnect."""
    async with client(MemoryLog(running_turn()), stream_life_s=0.1) as one:
        await one.run()
    assert (one.disconnects, one.is_complete) == ([15.0], True)
    assert [reader.ending for reader in one.readers] == ["aged"]


class RestartedLog(MemoryLog):
    """A running turn, whose answer begins anew while it is followed."""

    async def follow_into(
        self, _: object, after: Seq, receive: Callable[[list[Stored]], None], __: object = None
    ) -> None:
        assert after == BEFORE_FIRST
        receive(self.stored)
        await asyncio.sleep(0.05)
        last = self.stored[-1]
        again = Attempt(prev=last.seq, attempt=2, generator="g", backend="claude", mode="restart")
        receive([Stored(Seq(last.seq + 1), last.at, again)])
        await asyncio.Event().wait()


async def test_a_reader_whose_stream_is_broken_off_has_time_to_resume() -> None:
    """OpenAI's SDK does not resume: without a reader, the on_disconnect policy may cancel the turn."""
    async with client(RestartedLog(running_turn())) as one:
        await one.run(DIALECTS["openai-chat"])
    assert (one.disconnects, one.is_complete) == ([15.0], False)
    assert [reader.ending for reader in one.readers] == ["broken"]


async def test_an_interrupted_body_is_truncated_where_the_dialect_has_no_end() -> None:
    """Bare text that stops must not look like a short answer."""
    async with client(MemoryLog(running_turn())) as one:
        streaming = asyncio.create_task(one.run(DIALECTS["text"]))
        await until(lambda: b"ab" in one.body)
        one.draining.set()
        await streaming
    assert not one.is_complete


@pytest.mark.parametrize(("code", "status"), [("backend_overloaded", 529), ("a_newer_code", 500)])
async def test_a_turn_that_fails_before_its_first_word_has_an_http_status(code: str, status: int) -> None:
    """Many clients do not look for an error inside of a stream. A newer generator may store a code of its own."""
    log = Handwritten()
    log.store_request()
    log.end("failed", Failure(code, "Claude is overloaded"))
    async with client(MemoryLog(log.stored)) as one:
        await one.run(is_first_word_awaited=True)
    assert one.status == status
    assert not one.disconnects


async def test_a_ticket_prefixes_each_id_and_is_used_before_the_200() -> None:
    """A used ticket is refused, with nothing of the stream."""
    used: list[int] = []

    async def accept() -> None:
        used.append(1)
        if len(used) > 1:
            raise Refused("credential_invalid", "used")

    async with client(MemoryLog(completed_turn("a").stored)) as one:
        await one.run(ticket=(b"proof.", accept))
    assert one.body.count(b"\nid: ") == one.body.count(b"\nid: proof.") > 0
    async with client(MemoryLog(completed_turn("a").stored)) as two:
        await two.run(ticket=(b"proof.", accept))
    assert (two.status, b"id: " in two.body) == (401, False)


async def test_a_resuming_reader_waits_while_the_log_is_unavailable() -> None:
    """It receives heartbeats with a 200, and then the rest of the turn; a new reader receives a 503."""
    stored = completed_turn("a", "b").stored
    log = MemoryLog(stored)
    log.error = LogUnavailable("away")
    async with client(log) as new:
        await new.run()
    async with client(log) as one:
        streaming = asyncio.create_task(one.run(cursor=stored[3].seq, waits_for_log=True))
        await until(lambda: one.body.count(HEARTBEAT) > 2)
        log.error = None
        await streaming
    assert new.status == 503
    assert (one.status, one.is_complete, b'"done"' in one.body) == (200, True, True)
    assert min(event.id for event in parse(one.body) if event.id is not None) > stored[3].seq


@pytest.mark.parametrize("cause", ["disconnected", "draining", "expired"])
async def test_each_interruption_ends_the_wait_for_the_log(cause: str) -> None:
    """A clean end after a heartbeat, so that the client reconnects and receives the error."""
    log = MemoryLog(running_turn())
    log.error = LogUnavailable("away")
    async with client(log) as one:
        streaming = asyncio.create_task(one.run(cursor=log.stored[0].seq, waits_for_log=True))
        await until(lambda: HEARTBEAT in one.body)
        getattr(one, cause).set()
        await streaming
    assert (one.status, one.is_complete) == (200, cause != "disconnected")


async def test_a_position_that_is_looked_up_names_its_turn_and_skips_what_was_seen() -> None:
    """Where a client counts events, the stream continues after as many."""

    async def find() -> Start:
        return Start(KEY, 2, {"x-found": "yes"})

    looked_up: Callable[[], Awaitable[Start]] = find
    async with client(MemoryLog(completed_turn("a", "b").stored)) as whole:
        await whole.run(DIALECTS["openai-responses"])
    async with client(MemoryLog(completed_turn("a", "b").stored)) as rest:
        await rest.run(DIALECTS["openai-responses"], looked_up)
    assert (b"x-found", b"yes") in rest.sent[0]["headers"]
    assert rest.body == b"".join(event.raw for event in parse(whole.body)[2:])


async def test_a_head_request_has_headers_alone() -> None:
    """Whether the turn runs or has ended."""
    for stored in (running_turn(), completed_turn("a").stored):
        async with client(MemoryLog(stored)) as one:
            await one.run(method="HEAD")
        assert (one.status, one.body, one.is_complete) == (200, b"", True)
