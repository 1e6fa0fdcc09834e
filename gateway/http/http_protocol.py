"""A client's connection: uvicorn's, with the guards that it lacks. It knows nothing of what is asked.

Headers have an end, in bytes, in number and in time; bodies have theirs in body.py, where the route says how large one
may be, and in arrival.py. What comes after the answer is still read, so that the client gets to reading the answer, but
not for long. Who reads slowly is waited for: it holds no more than a buffer here. Who takes nothing of that buffer for
`UNREAD_TIMEOUT_S` is closed, and so is at once who does not read while the gateway goes away. Who has silently gone is
the kernel's to find (server.py).
"""

import asyncio
import sys
from collections.abc import Sized

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tailrace.gateway import error_responses, metrics
from tailrace.gateway.http.admission_queue import EXCESS

# nginx takes 32 kB and a minute. No client of ours sends more than a key, a cursor and a few cookies.
HEADERS_BYTES_MAX = 64 * 1024
# As Apache and gunicorn have it. Each is looked through whenever one is looked for.
HEADERS_MAX = 100
HEADERS_TIMEOUT_S = 10.0
# From an answer to the next request. uvicorn has the same, but forgets it at any byte: of a body that drips, for one.
ANSWERED_TIMEOUT_S = 5.0
# For 48 kB, which is what has to leave a full buffer before it is written to again: less than 2 kB a second.
UNREAD_TIMEOUT_S = 30.0
# So much is parsed at once. A quarter of a megabyte, which is read at once, may be 14,000 requests, of a kilobyte each.
PIECE_BYTES = 4096
# Connections above the most that there may be whose request is still read, to be refused with an answer.
TOLD_MAX = 64
NOT_HTTP = ("http_invalid", "this is not HTTP as RFC 9112 has it")
NO_HOST = ("http_invalid", "a request has one Host header, which only HTTP/1.0 may be without (RFC 9112, 3.2)")
CODED = ("http_invalid", "a body comes as it is or chunked: no other transfer coding is known here (RFC 9112, 6.1)")
TOO_LARGE = ("headers_too_large", f"more than {HEADERS_MAX} headers, or {HEADERS_BYTES_MAX // 1024} kB of them")
TOO_SLOW = ("headers_timeout", f"the headers did not arrive within {HEADERS_TIMEOUT_S:.0f} s")


class ClientConnection(HttpToolsProtocol):
    """Closes itself on who says nothing, does not come to the point, or does not read."""

    _closing: asyncio.TimerHandle | None = None
    """Runs while headers are waited for."""
    _unread: asyncio.TimerHandle | None = None
    """Runs while the client has more to take than is written ahead."""
    _answered: RequestResponseCycle | None = None
    """The request whose answer is under way, or was last."""
    _bytes = 0
    """Received since the request began, or since the last of its body: headers, trailers, extensions of chunks."""
    _again: tuple[bytes, int] | None = None
    """Headers to be read once more, and where in the piece that was received they ended."""
    _unparsed = b""
    """Received behind requests that wait for the answer before them, and not looked at yet."""
    _is_within_headers = False
    """Whether that begins in the middle of headers."""
    _wrong = NOT_HTTP
    """What is wrong with what the parser refuses."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = _OneAfterAnother(transport, self.pipeline)
        # uvicorn says so, too, as bare text and without a word of when to come again.
        most, self.limit_concurrency = self.limit_concurrency, None
        more = len(self.connections) - (most or len(self.connections))
        if more > TOLD_MAX:
            transport.abort()
        elif more > 0:
            self.app_state = {**self.app_state, EXCESS: True}
        self._closing = self.loop.call_later(HEADERS_TIMEOUT_S, transport.abort)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes = 0
        self._stop_waiting()
        self._closing = self.loop.call_later(HEADERS_TIMEOUT_S, self._refuse, *TOO_SLOW)

    def on_header(self, name: bytes, value: bytes) -> None:
        if "method" in self.scope:
            return  # of a trailer, which comes when the headers have been judged (RFC 9110, 6.5.1)
        if len(self.headers) == HEADERS_MAX:
            self._wrong = TOO_LARGE
            raise ValueError
        super().on_header(name, value)
        # The parser takes the body for chunked as long as that is the last of its codings.
        if self.headers[-1][0] == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self._wrong = CODED
            raise ValueError

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                return
            if self.pipeline:
                self._unparsed += data[start:]
                # Headers that are here already are not late.
                self._is_within_headers |= self._closing is not None
                self._stop_waiting()
                return
            self._parse(data[start : start + PIECE_BYTES])

    def _parse(self, data: bytes) -> None:
        self._bytes += len(data)
        super().data_received(data)
        while self._again is not None:
            (head, ended_at), self._again = self._again, None
            data = head + data[ended_at:]
            super().data_received(data)
        # Asked afterwards: a body may have come in the same piece as the end of its headers.
        if self._bytes > HEADERS_BYTES_MAX and not self.transport.is_closing():
            self._refuse(*TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says of what the parser refuses."""
        del msg
        self._refuse(*self._wrong)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        is_old = self.parser.get_http_version() == "1.0"
        if sum(name == b"host" for name, _ in self.headers) not in ((0, 1) if is_old else (1,)):
            self._wrong = NO_HOST
            raise ValueError
        # Whoever speaks HTTP/1.0 would take a 100 for the answer (RFC 9110, 10.1.1).
        self.expect_100_continue &= not is_old
        super().on_headers_complete()
        if not self.pipeline:
            self._answered = self.cycle

    def on_body(self, body: bytes) -> None:
        self._bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answered, _ = self.pipeline[-1]
        super().on_response_complete()
        if self._unparsed and not self.pipeline and not self.transport.is_closing():
            unparsed, self._unparsed = self._unparsed, b""
            is_within_headers, self._is_within_headers = self._is_within_headers, False
            if is_within_headers:
                self._closing = self.loop.call_later(HEADERS_TIMEOUT_S, self._refuse, *TOO_SLOW)
            self.data_received(unparsed)
        # Neither where the next headers have begun, which have their own time, nor where a request is in the queue.
        if self._closing is None and self.cycle.response_complete:
            # Not aborted: who reads slowly has not read all of the answer yet.
            self._closing = self.loop.call_later(ANSWERED_TIMEOUT_S, self.transport.close)

    def _should_upgrade(self) -> bool:
        return any(name == b"upgrade" for name, _ in self.headers)

    def handle_websocket_upgrade(self) -> None:
        """The request once more, without its wish for another protocol, which a server may ignore (RFC 9110, 7.8).

        Java's HttpClient wishes for HTTP/2 with every first request; and the parser stops where the body begins.
        """
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)  # noqa: S101
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self._again = b"\r\n".join([*lines, b"", b""]), stopped.args[0]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

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
        # uvicorn tells only the request that came last.
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def shutdown(self) -> None:
        super().shutdown()
        if self.flow.write_paused:
            # Its stream could not even be closed before it reads. It comes back elsewhere, with its cursor.
            self.transport.abort()

    def _refuse(self, code: str, message: str) -> None:
        """Says what is wrong, and closes. An answer that is under way is broken off, so that this is no part of it."""
        self._stop_waiting()
        # Nor of one that is asked for already, and whose first byte this would be taken for.
        cycle = self.cycle
        is_asked = cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)
        if is_asked or self.pipeline:
            self.transport.abort()
            return
        refusal = error_responses.response(code, message, headers={"connection": "close"})
        headers = [*self.server_state.default_headers, *refusal.raw_headers]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[refusal.status_code], *lines, b"\r\n", refusal.body]))
        self.transport.close()

    def _leave_unread(self) -> None:
        # Not closed: that would wait until all was read.
        metrics.UNREAD.inc()
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _OneAfterAnother(FlowControl):
    """Reads nothing while a request waits for the answer before it: a stream could be behind an endless queue of them.

    uvicorn pauses there, too, and goes on as soon as the answer under way listens whether its client is still there.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()
