"""The base class of streamed responses, and the interruptions that end one early."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Generic, NamedTuple, Self, TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tailrace.gateway.http.deferred_response import DEFERRED
from tailrace.gateway.http.error_responses import NO_RETRY, render_error, render_unexpected_error
from tailrace.gateway.http.media_type import JSON
from tailrace.gateway.http.retry_later import is_resuming_reader
from tailrace.gateway.streaming.endings import AGED, DRAINED, EXPIRED, LEFT, StreamEnding
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.runtime.flag import Flag

T = TypeVar("T")
# The comment ends a partial line. The blank line ends the event, under a name to which no page listens.
DISCARD = b":\nevent: discard\nid: %s\n\n"


class WorkEnd(NamedTuple, Generic[T]):
    """The result of some work, or the interruption that has ended it."""

    interruption: StreamEnding | None = None
    result: T | None = None


class Interruptions:
    """Ends a response early when the client disconnects, the gateway drains, or the credential expires.

    A context manager: it watches for these interruptions until the block is left.
    """

    def __init__(self, receive: Receive, draining: Flag | None, expired: Flag) -> None:
        """`draining` is None for a response that a draining gateway completes."""
        self.expired = expired
        self._receive = receive
        self._limit: asyncio.Timeout | None = None
        """The time limit of the work that runs. An interruption sets it to now."""
        self._flags = [(EXPIRED, expired)]
        if draining is not None:
            self._flags.insert(0, (DRAINED, draining))

    async def __aenter__(self) -> Self:
        self._disconnecting = asyncio.create_task(_wait_for_disconnect(self._receive))
        self._disconnecting.add_done_callback(self._interrupt)
        for _, flag in self._flags:
            flag.add_callback(self._interrupt)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for _, flag in self._flags:
            flag.remove_callback(self._interrupt)
        self._disconnecting.cancel()
        await asyncio.wait((self._disconnecting,))

    @property
    def is_over(self) -> bool:
        """Whether the gateway drains or the credential has expired, so that nothing new should begin."""
        return any(flag.is_set() for _, flag in self._flags)

    async def run(self, work: Awaitable[T], timeout_s: float | None = None) -> WorkEnd[T]:
        """Runs `work` until it is done, an interruption comes, or `timeout_s` is over. Raises what `work` raises.

        Work that begins after an interruption runs to its first wait.
        """
        try:
            async with asyncio.timeout(timeout_s) as limit:
                self._limit = limit
                if self._disconnecting.done() or self.is_over:
                    self._interrupt()
                return WorkEnd(result=await work)
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            self._limit = None
        # A disconnect comes first: nothing can be sent to the client, whatever else has happened.
        if self._disconnecting.done():
            return WorkEnd(LEFT)
        return WorkEnd(next((ending for ending, flag in self._flags if flag.is_set()), AGED))

    def _interrupt(self, _: object = None) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())


class TurnFailed(Refused):
    """The turn has failed. Its error says whether the client may repeat the request."""


class StreamedResponse:
    """An ASGI response whose body is written in `respond`. Errors before its first byte have an HTTP status."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.is_repeatable = True
        """Whether a repeated request gets the same turn. If not, it starts another one while this one runs."""
        self.is_begun = False
        self.is_delivered = False
        """Whether the whole answer was sent."""
        self.when_delivered: Callable[[], Awaitable[None]] | None = None
        """Called after the whole answer was sent. Must not raise."""
        self._headers = dict(headers)
        self._error_headers: dict[str, str] = {}
        self._first_bytes = b""
        self._send_through_layers: Send | None = None
        """Sends through the middleware, which sees status, headers and errors. None after the beginning, so that the
        open stream does not hold the middleware's functions."""

    def add_headers(self, headers: Mapping[str, str], *, are_for_errors: bool = True) -> None:
        """Adds headers; `are_for_errors`: an error that replaces this response has them, too."""
        self._headers.update(headers)
        if are_for_errors:
            self._error_headers.update(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send_through_layers = send
        self._first_bytes = _discard_partial_event(scope)
        await send({"type": DEFERRED, "respond": partial(self._respond_or_refuse, scope, receive)})

    async def _respond_or_refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.respond(scope, receive, send)
        except Exception as error:
            if self._send_through_layers is None:
                raise
            await self._render_error(error, scope)(scope, receive, self._send_through_layers)
        if self.when_delivered is not None and self.is_delivered:
            await self.when_delivered()

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response: first `begin`, then its body with `send`, which goes directly to the server."""
        raise NotImplementedError

    def _render_error(self, error: Exception, scope: Scope) -> Response:
        """Returns the response for an error before the first byte."""
        # Also after a lack of memory: the SDKs repeat a POST after a 503.
        if not (self.is_repeatable or isinstance(error, TurnFailed)):
            self._error_headers.update(NO_RETRY)
        if isinstance(error, Refused | LogError):
            return render_error(error, scope, self._error_headers)
        return render_unexpected_error(error, self._error_headers)

    async def begin(self, send: Send, status: int) -> None:
        """Sends status and headers, once."""
        if self._send_through_layers is not None:
            raw = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            await self._send_through_layers({"type": "http.response.start", "status": status, "headers": raw})
            self._send_through_layers = None
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

    At the end of a connection, an EventSource discards an event that is not complete (WHATWG HTML, section 9.2.6). That
    of WebKit does so only at a clean end (`EventSource::didFail` in its EventSource.cpp). After a cut, it joins the
    part with the first event of the next connection. The page cannot parse the data of both, and loses this event.

    The cursor stays the same. Some clients dispatch an empty event at a blank line, such as fetch-event-source, which
    sends no Cache-Control.
    """
    headers = Headers(scope=scope)
    agent = headers.get("user-agent", "")
    is_webkit = "AppleWebKit" in agent and "Chrome" not in agent and headers.get("cache-control") == "no-cache"
    # An EventSource sends the header. A polyfill that sends the id in the query reads by itself.
    last = headers.get("last-event-id", "")
    return DISCARD % last.encode("latin-1") if last and is_webkit and is_resuming_reader(scope) else b""


async def _wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
