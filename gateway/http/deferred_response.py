"""Deferred responses: a stream is sent when the middleware, the router and the endpoint around it have returned.

An open stream would otherwise hold their frames, and each of its writes would pass their wrappers of `send`. The layers
see the start message of a success, and every message of an error. The body of a success goes directly to the server
(StreamedResponse).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http.error_responses import NO_RETRY, render_error, render_unexpected_error
from tailrace.gateway.http.media_type import JSON
from tailrace.gateway.http.retry_later import is_resuming_reader
from tailrace.proto.errors import LogError, Refused

# The type of a message that no server knows. Its `respond` sends the response. The layers pass it on: they only look
# at the types of ASGI.
DEFERRED = "tailrace.response.deferred"
# The comment ends a partial line. The blank line ends the event, under a name to which no page listens.
DISCARD = b":\nevent: discard\nid: %s\n\n"
INTERRUPTED = "this gateway is shutting down, and the request may have had an effect: check it, or repeat the request"


def send_deferred(app: ASGIApp, on_start: Callable[[Message], None] = lambda _: None) -> ASGIApp:
    """Returns an application that calls `app`, and sends its deferred response after `app` has returned.

    `on_start` may change the message with the status and the headers of each response. A request that is cancelled
    before its response has begun is refused with `draining`.
    """

    async def begin(scope: Scope, receive: Receive, send: Send) -> OpenResponse | None:
        deferred: Callable[[Send], Awaitable[OpenResponse | None]] | None = None
        is_begun = False

        async def send_or_keep(message: Message) -> None:
            nonlocal deferred, is_begun
            if message["type"] == DEFERRED:
                deferred = message["respond"]
                return
            if message["type"] == "http.response.start":
                is_begun = True
                on_start(message)
            await send(message)

        try:
            await app(scope, receive, send_or_keep)
        except asyncio.CancelledError:
            # uvicorn cancels the requests that outlast its stop, and would answer 500.
            if is_begun:
                raise
            # A client must not repeat a POST by itself, unless the POST has a key.
            may_repeat = scope["method"] != "POST" or b"idempotency-key" in dict(scope["headers"])
            refusal = Refused("draining", INTERRUPTED, retry_after_s=1, may_repeat=may_repeat)
            await render_error(refusal, scope)(scope, receive, send_or_keep)
        return None if deferred is None else await deferred(send)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        opened = await begin(scope, receive, send)
        if opened is not None:
            # While the response is idle, only this frame is left between it and the server.
            try:
                while (change := await opened.step()) is not None:
                    await change
            finally:
                await opened.close()

    return respond


class OpenResponse(Protocol):
    """A response that has begun, and goes on when something changes."""

    async def step(self) -> asyncio.Future[None] | None:
        """Sends the available data. Returns what to wait for before the next step; None: the response has ended."""

    async def close(self) -> None:
        """Releases what the response holds."""


class TurnFailed(Refused):
    """The turn has failed. Its error says whether the client may repeat the request."""


class StreamedResponse:
    """An ASGI response whose body is written in `respond`. Errors before its first byte have an HTTP status."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.is_repeatable = True
        """Whether a repeated request gets the same turn. If not, it starts another turn while this one runs."""
        self.is_begun = False
        self.is_delivered = False
        """Whether the whole answer was sent."""
        self.accept: Callable[[], Awaitable[None]] | None = None
        """Called right before status 200 is sent. May raise Refused."""
        self.when_delivered: Callable[[], Awaitable[None]] | None = None
        """Called after the whole answer was sent. Must not raise."""
        self._headers = dict(headers)
        self._error_headers: dict[str, str] = {}
        self._first_bytes = b""
        self._send_through_layers: Send | None = None
        """Sends through the middleware, which sees status, headers and errors. None after the beginning, so that the
        open stream does not hold the middleware's functions."""

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Adds headers to this response, or to the error that replaces it."""
        self._headers.update(headers)
        self._error_headers.update(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send_through_layers = send
        self._first_bytes = _discard_partial_event(scope)
        await send({"type": DEFERRED, "respond": partial(self._respond_or_refuse, scope, receive)})

    async def _respond_or_refuse(self, scope: Scope, receive: Receive, send: Send) -> OpenResponse | None:
        try:
            if (opened := await self.respond(scope, receive, send)) is not None:
                return opened
        except Exception as error:
            if self._send_through_layers is None:
                raise
            await self._render_error(error, scope)(scope, receive, self._send_through_layers)
        await self.note_delivery()
        return None

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> OpenResponse | None:
        """Sends the response: first `begin`, then its body with `send`, which goes directly to the server.

        Returns what is left to be done after the beginning; None: the response has ended.
        """
        raise NotImplementedError

    async def note_delivery(self) -> None:
        """Calls `when_delivered` if the whole answer was sent. Call it at the end of the response."""
        if self.when_delivered is not None and self.is_delivered:
            await self.when_delivered()

    def _render_error(self, error: Exception, scope: Scope) -> Response:
        """Returns the response for an error before the first byte."""
        # This includes a lack of memory: the SDKs repeat a POST after a 503.
        if not (self.is_repeatable or isinstance(error, TurnFailed)):
            self._error_headers.update(NO_RETRY)
        if isinstance(error, Refused | LogError):
            return render_error(error, scope, self._error_headers)
        return render_unexpected_error(error, self._error_headers)

    async def begin(self, send: Send, status: int) -> None:
        """Sends status and headers, once."""
        if self._send_through_layers is not None:
            if status == 200 and self.accept is not None:
                await self.accept()
            raw = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            await self._send_through_layers({"type": "http.response.start", "status": status, "headers": raw})
            self._send_through_layers = None
            # An open response needs no headers: free them.
            self._headers = self._error_headers = {}
            self.is_begun = True
            if status == 200 and self._first_bytes:
                await send(body(self._first_bytes, more=True))

    async def send_json(self, send: Send, content: bytes) -> None:
        """Sends the whole response with status 200, whose body is the JSON `content`."""
        self._headers |= {"content-length": str(len(content)), "content-type": JSON}
        await self.begin(send, 200)
        await send(body(content, more=False))
        self.is_delivered = True


def body(data: bytes, *, more: bool) -> Message:
    """Returns a part of a response's body; the last one unless there is `more`."""
    return {"type": "http.response.body", "body": data, "more_body": more}


def _discard_partial_event(scope: Scope) -> bytes:
    """Returns what makes WebKit's EventSource (Safari) discard a part of an event; nothing for another client.

    At the end of a connection, an EventSource discards an event that is not complete (WHATWG HTML, section 9.2.6).
    WebKit's does so only at a clean end (`EventSource::didFail` in its EventSource.cpp). After a cut, it joins the part
    with the first event of the next connection. The page cannot parse the data of both, and loses this event.

    The cursor stays the same. Clients like fetch-event-source, which sends no Cache-Control, dispatch an empty event at
    a blank line.
    """
    headers = Headers(scope=scope)
    agent = headers.get("user-agent", "")
    is_webkit = "AppleWebKit" in agent and "Chrome" not in agent and headers.get("cache-control") == "no-cache"
    # An EventSource sends the header. A polyfill that sends the id in the query parses the stream itself.
    last = headers.get("last-event-id", "")
    return DISCARD % last.encode("latin-1") if last and is_webkit and is_resuming_reader(scope) else b""
