"""The HTTP/1.1 protocol of a client connection: uvicorn's, with further limits.

Headers are limited in bytes, number and time (bodies in read_body.py). Data after a response is still read for a short
time, so that the client can read the response. A slow reader holds one buffer; a client that reads nothing for
UNREAD_TIMEOUT_S is disconnected, and at once while the gateway drains. The kernel detects clients that vanish
(server.py). uvicorn has no hook for these limits with httptools (docs/DEPENDENCIES.md names its issues). Only this
module uses uvicorn's protocol classes for HTTP.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sized
from functools import partial
from typing import Any, ClassVar

import httptools
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tailrace.gateway import metrics
from tailrace.gateway.http import error_responses, security_headers
from tailrace.gateway.http.admission_queue import CONNECTIONS_REACHED
from tailrace.gateway.http.read_body import declared_bytes
from tailrace.gateway.http.retry_later import retry_delay_s
from tailrace.proto.runtime.flag import Flag

# nginx allows 32 kB and a minute. Clients send a key, a cursor and a few cookies.
HEADERS_BYTES_MAX = 64 * 1024
# The limit of Apache and gunicorn. Each lookup of a header scans all headers.
HEADERS_MAX = 100
HEADERS_TIMEOUT_S = 10.0
# From a response to the next request. Longer than clients and proxies keep an idle connection (SDKs: 5 to 90 s, AWS:
# 60 s, browsers: 300 s, Google Cloud: 600 s, Cloudflare: 900 s, Envoy: an hour): a request on a connection that the
# server closes at this moment fails. The kernel detects a client that has vanished (server.py).
IDLE_TIMEOUT_S = 3660.0
# For the rest of a body whose request is answered already. Any byte of a dripping body stops uvicorn's timeout.
ANSWERED_TIMEOUT_S = 20.0
# For the 48 kB that must leave a full buffer before it is written to again: less than 2 kB a second.
UNREAD_TIMEOUT_S = 30.0
# Bytes that are parsed at once. One read of a quarter of a megabyte may hold 14,000 requests of a kilobyte each.
PIECE_BYTES = 4096
# A connection above the limit that sends nothing is refused after this time: others need its file descriptor.
EXCESS_TIMEOUT_S = 2.0
NOT_HTTP = ("http_invalid", "this is not HTTP/1.1 (RFC 9112)")
NO_HOST = ("http_invalid", "a request needs exactly one Host header; only HTTP/1.0 may omit it (RFC 9112, 3.2)")
FRAGMENT = ("http_invalid", "a request target has no fragment: leave out `#` and what follows (RFC 9112, 3.2)")
CODED = ("http_invalid", "the only transfer coding that is supported is chunked (RFC 9112, 6.1)")
TOO_LARGE = ("headers_too_large", f"more than {HEADERS_MAX} headers, or {HEADERS_BYTES_MAX // 1024} kB of them")
TOO_MANY = ("server_busy", CONNECTIONS_REACHED)
NO_MEMORY = ("server_busy", error_responses.NO_MEMORY)
TOO_SLOW = ("headers_timeout", f"the headers did not arrive within {HEADERS_TIMEOUT_S:.0f} s")


class ClientConnection(HttpToolsProtocol):
    """Closes itself when the client is silent, too slow or does not read."""

    # Python keeps up to 30 attributes of an object in a compact form, and uvicorn's class has 28: with more, each
    # connection takes a kilobyte more.
    __slots__ = (
        "_again",
        "_answered",
        "_body_left",
        "_bytes",
        "_closing",
        "_excess_max",
        "_idle",
        "_is_within_headers",
        "_overflow",
        "_unparsed",
        "_unread",
        "_wrong",
    )

    SETTINGS: ClassVar[Mapping[str, Any]] = {"ws": "none"}
    """Settings of uvicorn. A subclass that opens WebSockets names their protocol class."""

    def __init__(
        self,
        *,
        overflow: ASGIApp,
        excess_max: int,
        idle: dict["ClientConnection", None],
        **given: Any,
    ) -> None:
        """`overflow` is the application for `excess_max` connections above the limit.

        Further connections are refused before their request is read, which some clients do not expect.
        `idle` are the idle connections of the server; the one that has been idle for longest comes first.
        """
        super().__init__(**given)
        self._overflow: Any = overflow
        self._excess_max = excess_max
        self._idle = idle
        self._closing: asyncio.TimerHandle | None = None
        """Ends the wait for the next headers, or for the rest of a body whose request is answered; else None."""
        self._unread: asyncio.TimerHandle | None = None
        """Runs while the write buffer is full."""
        self._answered: RequestResponseCycle | None = None
        """The request whose response is in progress, or was the last one."""
        self._bytes = 0
        """Bytes since the request began, or since its last body data: headers, trailers, chunk extensions."""
        self._again: tuple[bytes, int] | None = None
        """Headers to be parsed again, and where in the received data they ended."""
        self._body_left = 0
        """Bytes of the body with a declared length that are still to be parsed."""
        self._unparsed = b""
        """Data behind pipelined requests that wait for an earlier response; not parsed yet."""
        self._is_within_headers = False
        """Whether `_unparsed` begins in the middle of headers."""
        self._wrong = NOT_HTTP
        """The error code and message for what the parser rejects."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = _OneAfterAnother(transport, self.pipeline)
        # uvicorn's own rejection is bare text without Retry-After.
        most, self.limit_concurrency = self.limit_concurrency or sys.maxsize, None
        more = len(self.connections) - most
        if more >= 0 and (longest := next(filter(_closes_at_once, self._idle), None)) is not None:
            # This connection uses the last free slot. Closing an idle one frees a slot for the next connection.
            del self._idle[longest]
            longest.transport.close()
        if more <= 0:
            self._closing = self.loop.call_later(HEADERS_TIMEOUT_S, transport.abort)
            return
        if more > self._excess_max:
            self._refuse(*TOO_MANY, retry_delay_s())
            return
        self.app = self._overflow
        self._closing = self.loop.call_later(EXCESS_TIMEOUT_S, self._refuse, *TOO_MANY, retry_delay_s())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes = self._body_left = 0
        self._stop_waiting()
        self._closing = self.loop.call_later(HEADERS_TIMEOUT_S, self._refuse, *TOO_SLOW)

    def on_header(self, name: bytes, value: bytes) -> None:
        if "method" in self.scope:
            return  # a trailer, which comes after the headers were checked (RFC 9110, 6.5.1)
        if len(self.headers) == HEADERS_MAX:
            self._wrong = TOO_LARGE
            raise ValueError
        super().on_header(name, value)
        # The parser treats the body as chunked if `chunked` is the last of several codings.
        if self.headers[-1][0] == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self._wrong = CODED
            raise ValueError

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            if self.pipeline:
                self._unparsed += data[start:]
                # Headers that have already arrived are not late.
                self._is_within_headers |= self._closing is not None
                self._stop_waiting()
                return
            # A body is parsed at once: no request begins in it, and each piece costs work in uvicorn.
            piece = data[start : start + max(PIECE_BYTES, self._body_left)]
            start += len(piece)
            self._bytes += len(piece)
            super().data_received(piece)
            while self._again is not None:
                (head, ended_at), self._again = self._again, None
                piece = head + piece[ended_at:]
                super().data_received(piece)
            # Checked afterwards: body data may arrive together with the end of the headers.
            if self._bytes > HEADERS_BYTES_MAX and not self.transport.is_closing():
                self._refuse(*TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """Replaces uvicorn's response to requests that the parser rejects."""
        del msg
        rejected = sys.exception()
        # The parser raises an error of its own for each error of a callback.
        is_memory = rejected is not None and isinstance(rejected.__context__, MemoryError)
        self._refuse(*(NO_MEMORY if is_memory else self._wrong))

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        is_old = self.parser.get_http_version() == "1.0"
        if sum(name == b"host" for name, _ in self.headers) not in ((0, 1) if is_old else (1,)):
            self._wrong = NO_HOST
            raise ValueError
        if b"#" in self.url:
            # A proxy that hides `/metrics` may take `/metrics#` for another path (CVE-2023-45539).
            self._wrong = FRAGMENT
            raise ValueError
        # An HTTP/1.0 client would treat a 100 as the final response (RFC 9110, 10.1.1).
        self.expect_100_continue &= not is_old
        super().on_headers_complete()
        if self.cycle is not None and "path" in self.scope:
            self.cycle.default_headers = security_headers.add_page_policy(
                self.scope["path"], self.cycle.default_headers
            )
            # 0.7 kB less than uvicorn's asyncio.Event.
            self.cycle.message_event = Flag()  # type: ignore[assignment]
            # Keep the connection until the body has arrived: an earlier close resets it and may lose the response.
            self.cycle.keep_alive = True
        self._body_left = declared_bytes(Headers(raw=self.headers)) or 0
        if not self.pipeline:
            self._answered = self.cycle

    def on_body(self, body: bytes) -> None:
        self._bytes = 0
        self._body_left = max(0, self._body_left - len(body))
        self.expect_100_continue = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if "path" not in self.scope:
            return  # an upgrade, which is parsed again
        is_last = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        if not self.cycle.response_complete:
            self.cycle.keep_alive &= not is_last
        elif is_last:
            self.transport.close()
        else:
            # The rest of the body of a request that was refused has arrived: the connection is idle from now on.
            self._await_request(is_idle=True)

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answered, _ = self.pipeline[-1]
        super().on_response_complete()
        # uvicorn's timer would hold a reset connection's memory for the whole idle timeout.
        self._unset_keepalive_if_required()
        if self._unparsed and not self.pipeline and not self.transport.is_closing():
            unparsed, self._unparsed = self._unparsed, b""
            is_within_headers, self._is_within_headers = self._is_within_headers, False
            if is_within_headers:
                self._closing = self.loop.call_later(HEADERS_TIMEOUT_S, self._refuse, *TOO_SLOW)
            self.data_received(unparsed)
        # Not if the next headers have begun, which have their own timeout, or a request is queued.
        if self._closing is None and self.cycle.response_complete:
            if self.expect_100_continue and not self.parser.should_keep_alive():
                # After a refusal in place of a 100, neither the body nor another request comes (RFC 9112, 9.6).
                self.transport.close()
                return
            self._await_request(is_idle=not self.cycle.more_body)

    def _should_upgrade(self) -> bool:
        return any(name == b"upgrade" for name, _ in self.headers)

    def handle_websocket_upgrade(self) -> None:
        """Parses the request again without its Upgrade header, which a server may ignore (RFC 9110, 7.8).

        Java's HttpClient sends `Upgrade: h2c` with its first request, and the parser stops where the body begins
        (https://github.com/Kludex/uvicorn/issues/2722).
        """
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)  # noqa: S101
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self._again = b"\r\n".join([*lines, b"", b""]), stopped.args[0]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _open_socket(self) -> None:
        """Makes the connection a WebSocket, of the protocol class in SETTINGS."""
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self._leave_unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)
        # uvicorn notifies only the last request.
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def shutdown(self) -> None:
        super().shutdown()
        if self.flow.write_paused:
            # The stream cannot end before the client reads. The client resumes at another gateway.
            self.transport.abort()

    def _refuse(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        """Sends an error and closes. A response in progress is truncated, so that the error is no part of it."""
        self._stop_waiting()
        # Abort also if a response is expected: the client would take the error for it.
        cycle = self.cycle
        is_expected = (
            cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)
        )
        if is_expected or self.pipeline:
            self.transport.abort()
            return
        refusal = error_responses.response(code, message, retry_after_s=retry_after_s, headers={"connection": "close"})
        headers = [*self.server_state.default_headers, *refusal.raw_headers]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[refusal.status_code], *lines, b"\r\n", refusal.body]))
        self.transport.close()

    def _await_request(self, *, is_idle: bool) -> None:
        """Closes the connection if no request comes in time.

        If `is_idle` is False, the client still sends the body of an answered request. Closing now loses the answer.
        """
        self._stop_waiting()
        if is_idle:
            self._idle[self] = None
        # Not aborted: a slow client has not read all of the response yet.
        timeout_s = IDLE_TIMEOUT_S if is_idle else ANSWERED_TIMEOUT_S
        self._closing = self.loop.call_later(timeout_s, self.transport.close)

    def _leave_unread(self) -> None:
        # Not closed: that would wait until the client has read everything.
        metrics.UNREAD.inc()
        self.transport.abort()

    def _stop_waiting(self) -> None:
        self._idle.pop(self, None)
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def direct_writer(send: Send) -> Callable[[bytes], bool]:
    """Returns a function that writes a part of a body to the connection of `send`, or returns False.

    The function writes only where `send` would write at once: otherwise, the caller awaits `send`. A `send` that
    is not uvicorn's own never writes at once.
    """
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle):
        return lambda _: False
    flow, write = cycle.flow, cycle.transport.write

    def write_part(data: bytes) -> bool:
        if flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
            return False
        write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    return write_part


def watch_disconnect(receive: Receive, call: Callable[[], None]) -> Callable[[], object]:
    """Calls `call` when the client of `receive` has disconnected. Returns a function that ends the watch.

    Makes a task only for a `receive` that is not uvicorn's own, or whose body has not arrived: a task would take 1.5
    kB of each open stream. The rest of the body is dropped.
    """
    cycle = getattr(receive, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle) or cycle.more_body or not isinstance(cycle.message_event, Flag):
        watching = asyncio.create_task(_wait_for_disconnect(receive))
        watching.add_done_callback(lambda ended: None if ended.cancelled() else call())
        return watching.cancel
    changed = cycle.message_event
    changed.clear()
    # uvicorn's `receive` does this before it waits.
    cycle.flow.resume_reading()
    if cycle.disconnected or cycle.response_complete:
        call()
    else:
        changed.add_callback(call)
    return partial(changed.remove_callback, call)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _closes_at_once(connection: ClientConnection) -> bool:
    """Returns whether the connection can be closed at once. Unsent bytes of a slow download would be written first."""
    return not connection.transport.is_closing() and not connection.transport.get_write_buffer_size()


class _OneAfterAnother(FlowControl):
    """Pauses reading while a pipelined request waits, perhaps behind an endless stream.

    uvicorn pauses, too, but resumes as soon as the response in progress waits for a disconnect.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        # See ClientConnection.on_headers_complete.
        self._is_writable_event: Any = Flag()
        self._is_writable_event.set()
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()
