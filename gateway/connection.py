"""A client's connection: uvicorn's, with the guards that it lacks (FACTS). It knows nothing of what is asked.

Headers have an end, in bytes and in time; bodies have theirs in body.py, where the route says how large one may be.
What comes after the answer is still read, so that the client gets to reading the answer, but not for long. Who reads
slowly is waited for, but not by a gateway that goes away.
"""

import asyncio
import sys

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# nginx takes 32 kB and a minute. No client of ours sends more than a key, a cursor and a few cookies.
HEADERS_BYTES_MAX = 64 * 1024
HEADERS_TIMEOUT_S = 20.0
# From an answer to the next request. uvicorn has the same, but forgets it at any byte: of a body that drips, for one.
ANSWERED_TIMEOUT_S = 5.0


class ClientConnection(HttpToolsProtocol):
    """Closes itself on who says nothing, or does not come to the point; and at a drain on who does not read."""

    _closing: asyncio.TimerHandle | None = None
    """Runs while headers are waited for."""
    _bytes = 0
    """Received since the request began, or since the last of its body: headers, trailers, extensions of chunks."""
    _again: tuple[bytes, int] | None = None
    """Headers to be read once more, and where in the piece that was received they ended."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes = 0
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        super().data_received(data)
        while self._again is not None:
            (head, ended_at), self._again = self._again, None
            data = head + data[ended_at:]
            super().data_received(data)
        # Asked afterwards: a body may have come in the same piece as the end of its headers.
        if self._bytes > HEADERS_BYTES_MAX:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
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

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if self.flow.write_paused:
            # Its stream could not even be closed before it reads. It comes back elsewhere, with its cursor.
            self.transport.abort()

    def _wait(self) -> None:
        self._stop_waiting()
        self._closing = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
