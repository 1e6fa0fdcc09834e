"""A client of a streamed response, with a log in memory and without a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
from starlette.types import Message

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.gateway.streaming.feed import FanOut
from tailrace.gateway.streaming.reader import Reader
from tailrace.gateway.streaming.reader_counts import ReaderCounts, ReaderLimits
from tailrace.gateway.streaming.reader_report import GatewayReaders, ReaderReport
from tailrace.gateway.streaming.response import EventStream
from tailrace.gateway.streaming.stream_record import StreamRecords
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.flag import Flag
from tailrace.testing import MemoryLog
from tests.harness.turn_builder import KEY

TAILRACE = DIALECTS["tailrace"]


class Client:
    """The client of a response: its messages to the response, and those that the response has sent."""

    def __init__(self, log: MemoryLog, group: asyncio.TaskGroup, settings: Settings) -> None:
        self.draining, self.expired, self.disconnects = Flag(), Flag(), list[float]()
        self.disconnected = asyncio.Event()
        self.sent: list[Message] = []
        self.counts = ReaderCounts(ReaderLimits(1, 1, 1))
        self.fan_out = FanOut(log, group, linger_s=0, heartbeat_s=settings.heartbeat_s)
        self.streams: Any = SimpleNamespace(
            settings=settings,
            authenticator=SimpleNamespace(watch=lambda _: (self.expired, None), unwatch=lambda *_: None),
            draining=self.draining,
            connection=SimpleNamespace(is_up=True),
            fan_out=self.fan_out,
            on_disconnect=lambda _, reconnect_window_s: self.disconnects.append(reconnect_window_s),
            log=log,
            counts=self.counts,
            admissions=Admissions(),
            records=StreamRecords(),
            successions=[],
        )
        address = SimpleNamespace(host="127.0.0.1")
        self.request: Any = SimpleNamespace(principal=LOCAL, client=address, headers={}, scope={"query_string": b""})

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
        return msgspec.json.decode(self.streams.records.encode_readers(KEY), type=GatewayReaders).readers

    async def run(
        self, dialect: Dialect = TAILRACE, method: str = "GET", make: type[EventStream] = EventStream, **given: Any
    ) -> None:
        stream = make(Reader(self.streams, self.request), ScopedKey.whole(given.pop("key", KEY)), dialect, **given)
        scope = {"type": "http", "method": method, "path": "/", "headers": [], "query_string": b""}
        async with asyncio.timeout(5):
            await send_deferred(stream)(scope, self.receive, self.send)


@asynccontextmanager
async def client(log: MemoryLog, *, beats_every_s: float = 0.05, **given: Any) -> AsyncIterator[Client]:
    settings = msgspec.structs.replace(Settings(), heartbeat_s=beats_every_s, **given)
    async with asyncio.TaskGroup() as group:
        made = Client(log, group, settings)
        yield made
        # The reader is not counted any more, so that the only one may enter again.
        made.counts.add(LOCAL.access.tenant, "127.0.0.1")
        made.fan_out.close()
