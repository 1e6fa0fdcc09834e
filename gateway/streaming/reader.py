"""Reader: the client of one streamed response, from its admission until its credential ends or it disconnects."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

from starlette.types import Receive

from tailrace.gateway.auth.admission import Admissions, Slots
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.http_protocol import watch_disconnect
from tailrace.gateway.http.last_event_id import AFTER, last_event_id, split_part
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.feed import FanOut
from tailrace.gateway.streaming.reader_counts import Groups, ReaderCounts
from tailrace.gateway.streaming.stream_record import StreamRecords
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime.flag import Flag

if TYPE_CHECKING:
    from tailrace.gateway.streaming.response import GoOn

OnDisconnect = Callable[[TurnKey, float], None]


class StreamContext(NamedTuple):
    """The services that all streamed responses of a gateway use. Made once at startup."""

    settings: Settings
    log: TurnLog
    history: HistoryClient
    fan_out: FanOut
    authenticator: Authenticator
    counts: ReaderCounts
    admissions: Admissions
    records: StreamRecords
    draining: Flag
    departures: list[OnDisconnect]
    """The functions of features that are called when a client has disconnected."""
    successions: list["GoOn"]
    """Those that are called when a reader has no more events of its turn."""

    def on_disconnect(self, key: TurnKey, reconnect_window_s: float) -> None:
        """Calls `departures`: the client of a running turn has disconnected, with so many seconds to reconnect."""
        for call in self.departures:
            call(key, reconnect_window_s)


class Reader:
    """The client of one streamed response: its count, its slots, and the events that end its response early.

    Each step of the admission is done once: a POST can take the steps before its turn is submitted, and its stream
    repeats none of them.
    """

    def __init__(
        self,
        streams: StreamContext,
        request: ApiRequest,
        id_prefix: bytes = b"",
        accept: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`id_prefix` precedes each SSE id. `accept` is called right before status 200 is sent; it may raise Refused.

        Raises Refused on a public route, where no credential was checked.
        """
        self.streams = streams
        self.id_prefix = id_prefix
        self.accept = accept
        self.requested_at = time.monotonic()
        self.part = split_part(last_event_id(request, AFTER).removeprefix(id_prefix.decode()))[1]
        """How many events of the entry at its cursor the client has received; 0: all."""
        self.principal = request.principal
        # A proxy has one address for all its users. A credential names the tenant, which is counted instead.
        self._address = None if self.principal.key is not None else request.client.host if request.client else ""
        self._counted: Groups | None = None
        self._slots: Slots | None = None
        self._is_acquired = False
        self.has_left = False
        """Whether the client has disconnected."""
        self.is_interrupted = False
        """Whether the client has disconnected, the response is too old, the credential has expired, or the gateway
        drains."""
        self.was_interrupted_idle = False
        """Whether the interruption found the response idle."""
        self._limit: asyncio.Timeout | None = None
        """The time limit of the block in `until_interrupted`. An interruption sets it to now."""
        self._idle: asyncio.Future[None] | None = None
        """The future that an idle response awaits. An interruption completes it."""
        self._age: asyncio.TimerHandle | None = None

    async def acquire(self) -> None:
        """Acquires the reader's slots over all gateways, which are renewed until `release`. Raises Refused."""
        if self._is_acquired:
            return
        self._slots = self.streams.admissions.limiter.slots_of(self.principal)
        if self._slots is not None:
            await self._slots.acquire()
        self._is_acquired = True

    async def release(self) -> None:
        """Stops counting the reader and releases its slots. May be called twice."""
        counted, self._counted = self._counted, None
        if counted is not None:
            self.streams.counts.remove(counted)
        slots, self._slots, self._is_acquired = self._slots, None, False
        if slots is not None:
            await slots.release()

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator[None]:
        """Admits the reader before its turn is submitted; releases it if that fails. Raises Refused."""
        try:
            self._counted = self.streams.counts.add(self.principal.access.tenant, self._address)
            await self.acquire()
            yield
        except BaseException:
            await self.release()
            raise

    def open(self, receive: Receive, draining: Flag | None, *, is_counted: bool = True) -> Self:
        """Returns a context in which the reader is counted, and which watches for events that end its response early.

        `draining` is None for a response that a draining gateway completes. Entering it raises Refused above a limit.
        """
        self._receive, self._draining, self._is_counted = receive, draining, is_counted
        return self

    async def __aenter__(self) -> None:
        try:
            if self._is_counted and self._counted is None:
                self._counted = self.streams.counts.add(self.principal.access.tenant, self._address)
            expired, self._expiry = self.streams.authenticator.watch(self.principal)
        except BaseException:
            await self.release()
            raise
        self._flags = (expired,) if self._draining is None else (expired, self._draining)
        self._end_watch = watch_disconnect(self._receive, self._leave)
        for flag in self._flags:
            flag.add_callback(self._interrupt)

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._age is not None:
                self._age.cancel()
            for flag in self._flags:
                flag.remove_callback(self._interrupt)
            self.streams.authenticator.unwatch(self.principal, self._flags[0], self._expiry)
            self._end_watch()
        finally:
            await self.release()

    @property
    def is_expired(self) -> bool:
        """Whether the credential has expired or was revoked."""
        return self._flags[0].is_set()

    @property
    def is_drained(self) -> bool:
        """Whether the gateway drains and does not complete the response."""
        return self._flags[-1].is_set() and len(self._flags) > 1

    @property
    def is_over(self) -> bool:
        """Whether the credential has expired or the gateway drains, so that nothing new should begin."""
        return any(flag.is_set() for flag in self._flags)

    def interrupt_after(self, life_s: float) -> None:
        """Interrupts the response after `life_s`."""
        self._age = asyncio.get_running_loop().call_later(life_s, self._interrupt)

    def wait_idle(self, change: asyncio.Future[None]) -> None:
        """Ends `change` at the next interruption. The response waits for it outside of `until_interrupted`."""
        self._idle = change

    @asynccontextmanager
    async def until_interrupted(self, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Ends the block at its next wait when something interrupts the response, or after `timeout_s`.

        The interruptions are a disconnect, the end of the credential, a drain, and the end of `interrupt_after`. A
        block that begins after an interruption runs to its first wait.
        """
        self._idle = None
        try:
            async with asyncio.timeout(timeout_s) as limit:
                self._limit = limit
                if self.is_interrupted:
                    self._end_block(limit)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            self._limit = None

    def _leave(self) -> None:
        self.has_left = True
        self._interrupt()

    def _interrupt(self) -> None:
        self.is_interrupted = True
        if self._limit is not None:
            self._end_block(self._limit)
        if self._idle is not None:
            self.was_interrupted_idle = True
            if not self._idle.done():
                self._idle.set_result(None)

    def _end_block(self, limit: asyncio.Timeout) -> None:
        if not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time())


def random_life_s(settings: Settings) -> float:
    """Returns the maximum age of one stream. Streams that began together do not all end at the same moment."""
    return settings.stream_life_s * random.uniform(0.9, 1.1)  # noqa: S311  # no secret


def refuse_when_draining(draining: Flag) -> None:
    """Raises Refused while this gateway drains. Call it before anything is stored, never after that."""
    if draining.is_set():
        raise Refused("draining", "this gateway is shutting down: repeat the request", retry_after_s=1)
