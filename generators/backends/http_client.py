"""The HTTP client of the model's API: aiohttp under the SDK's client, with a time limit for every wait of an exchange.

aiohttp's own timers have gaps (3.14.5). No timer runs while a request is sent. After a malformed chunk, aiohttp closes
the socket and never passes the error to the reader of the body, which then waits forever.
"""

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeVar

import anthropic
import httpx2

T = TypeVar("T")

# A slower connection counts as down: at this rate the largest body (32 MB) takes two minutes.
UPLOAD_BYTES_S_MIN = 250_000


class HttpClient(anthropic.DefaultAioHttpClient):
    """The client for `http_client` of the SDK's clients. Raises httpx2.ReadTimeout where a limit has passed.

    Follows no redirect: a redirect would send the conversation to another server.
    """

    def __init__(self) -> None:
        # Slots of turns and queries limit the calls. aiohttp's 0 is no limit; its default is 100, and the SDK's 1,000.
        super().__init__(follow_redirects=False, limits=httpx2.Limits(max_connections=0))

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """See httpx2.AsyncClient.send."""
        limits = request.extensions["timeout"]
        # aiohttp would set its timer anew for each piece of the body.
        request.extensions = request.extensions | {"timeout": limits | {"read": None}}
        upload_s = int(request.headers.get("content-length", 0)) / UPLOAD_BYTES_S_MIN
        try:
            async with asyncio.timeout(limits["connect"] + upload_s + limits["read"]):
                response = await super().send(request, stream=True, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the response has not begun in time", request=request) from error
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101
        response.stream = TimedBody(response.stream, limits["read"])
        if not response.is_success:
            return await read_error(response)
        if not stream:
            await response.aread()
        return response


async def read_error(response: httpx2.Response) -> httpx2.Response:
    """Returns an error response with its body, or with an empty one if the body breaks off: the status says enough."""
    try:
        await response.aread()
    except httpx2.HTTPError:
        return httpx2.Response(response.status_code, headers=response.headers, request=response.request)
    return response


class TimedBody(httpx2.AsyncByteStream, asyncio.Protocol):
    """The body of a response. One timer closes it if a read waits for longer than `silence_s`.

    The timer is not set anew for each piece, which would cost more than the rest of the read: it looks at the time when
    the waiting read began.

    A piece is received in the callback of its socket, without a future, a task and an iteration of the event loop: as
    the socket's protocol, before that of aiohttp, this object receives the data as soon as aiohttp has parsed it (ADR
    32).
    """

    def __init__(self, body: AsyncIterable[bytes], silence_s: float) -> None:
        self.silence_s = silence_s
        self._body = body
        self._pieces = aiter(body)
        self._response: Any = getattr(getattr(body, "_stream", None), "_aiohttp_response", None)
        """aiohttp's response below the streams of httpx2 and of the SDK; None if there is none."""
        if self._response is not None:
            # It holds the headers of the request, 4 kB. aiohttp reads it only in methods that are not called here.
            self._response._request_info = None  # noqa: SLF001
        self._loop = asyncio.get_running_loop()
        self._receive: Callable[[bytes], Any] = bytes
        self._found: Any = None
        """What `receive` has returned in the callback of the socket."""
        self._errors: list[Exception] = []
        """The error that it has raised. A future would keep the error, whose traceback leads to the future."""
        self._changed: asyncio.Future[None] = self._loop.create_future()
        """What `read_until` waits for."""
        self._protocol: Any = None
        """aiohttp's protocol."""
        self._waits_since = math.inf
        self._closing: asyncio.Task[None] | None = None

    async def read_until(self, receive: Callable[[bytes], T | None]) -> T | None:
        """Calls `receive` with each piece as it arrives, until `receive` returns a result; None: the body has ended.

        `receive` must return at once. Raises what `receive` raises, and httpx2's errors.
        """
        self._receive, self._waits_since = receive, self._loop.time()
        self._look_later()
        try:
            while not self._take():
                if (transport := self._transport) is not None:
                    await self._wait(transport)
                else:
                    # An error of aiohttp becomes one of httpx2 here.
                    piece = await anext(self._pieces, None)
                    if piece is None or (found := receive(piece)) is not None:
                        return None if piece is None else found
            if self._errors:
                raise self._errors.pop()
        except httpx2.TransportError as error:
            if self._closing is None:
                raise
            raise httpx2.ReadTimeout("the response was silent for too long") from error
        finally:
            self._waits_since = math.inf
            self._timer.cancel()
        found, self._found = self._found, None
        return found  # type: ignore[no-any-return]  # `receive` has returned it

    @property
    def _transport(self) -> asyncio.Transport | None:
        """The socket, while more of the body may come; None if aiohttp has its end or an error.

        After a malformed chunk, aiohttp closes the socket without an error for the reader. Raises ReadTimeout then, as
        the timer would do later.
        """
        if self._response is None or self._response.content.exception() or self._response.content.is_eof():
            return None
        connection = self._response.connection
        transport: asyncio.Transport | None = None if connection is None else connection.transport
        if transport is None:
            raise httpx2.ReadTimeout("the response is malformed")
        return transport

    def _take(self) -> bool:
        """Receives what has arrived; returns whether there is a result or an error.

        After a result or an error, receives nothing until `read_until` has returned it: the next piece may bring
        another one. Until then, what arrives stays in aiohttp's buffer.
        """
        while self._found is None and not self._errors and (piece := self._read_buffer()):
            self._waits_since = self._loop.time()
            try:
                self._found = self._receive(piece)
            except Exception as error:  # noqa: BLE001  # `read_until` raises it
                self._errors.append(error)
        return self._found is not None or bool(self._errors)

    def _read_buffer(self) -> bytes:
        """Returns what aiohttp has of the body; empty if it has nothing more.

        aiohttp parses what it has kept back while it is read: another call may return more. After an error, aiohttp
        would raise the error instead of returning what came before it.
        """
        if self._response is None:
            return b""
        content = self._response.content
        if (error := content.exception()) is None:
            return content.read_nowait()  # type: ignore[no-any-return]
        content.set_exception(None)
        try:
            return content.read_nowait()  # type: ignore[no-any-return]
        finally:
            content.set_exception(error)

    async def _wait(self, transport: asyncio.Transport) -> None:
        """Receives what arrives, until there is a result or an error, or the body ends."""
        self._changed, self._protocol = self._loop.create_future(), transport.get_protocol()
        transport.set_protocol(self)
        try:
            await self._changed
        finally:
            transport.set_protocol(self._protocol)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._protocol.data_received(data)
        # The future is done already if its task was cancelled.
        if not self._changed.done() and (self._take() or self._response.content.is_eof()):
            self._changed.set_result(None)

    def eof_received(self) -> bool | None:
        """See asyncio.Protocol."""
        stays_open: bool | None = self._protocol.eof_received()
        return stays_open

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._protocol.connection_lost(error)
        self._wake()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._protocol.resume_writing()

    def _wake(self) -> None:
        if not self._changed.done():
            self._changed.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self.read_until(bytes)) is not None:
            yield piece

    async def aclose(self) -> None:
        if isinstance(self._body, httpx2.AsyncByteStream):
            await self._body.aclose()

    def _look_later(self) -> None:
        left_s = self._waits_since + self.silence_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(min(left_s, self.silence_s), self._look_later)
        else:
            self._closing = self._loop.create_task(self._close_silent())

    async def _close_silent(self) -> None:
        """Closes the body, which wakes the read with an error."""
        await self.aclose()
        self._wake()
