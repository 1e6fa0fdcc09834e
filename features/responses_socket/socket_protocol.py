"""The WebSocket protocol of a client connection: uvicorn's, on the library `websockets`, with further limits.

As over HTTP, a client that reads nothing for UNREAD_TIMEOUT_S is disconnected, and at once while the gateway drains.
The memory of messages and pongs is limited. uvicorn has no hook for these limits. upgrade.py opens the WebSockets.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tailrace.gateway import metrics
from tailrace.gateway.http import error_responses, http_protocol, security_headers

# A larger frame closes the connection with 1009 (RFC 6455, 7.4.1). Reading pauses while one message waits.
FRAME_BYTES_MAX = 16 * 1024 * 1024
# Proxies close a connection after a minute of silence, and a client that has vanished is noticed after both times.
PING_INTERVAL_S = 15.0
PING_TIMEOUT_S = 30.0
# "Try again later", in the registry of RFC 6455.
TRY_AGAIN_LATER = 1013
# For one message to arrive: it holds memory, as the body of an HTTP request does (TAILRACE_BODY_TIMEOUT_S).
MESSAGE_TIMEOUT_S = 120.0
POLICY = 1008
TOO_SLOW = "a message took too long to arrive"
# The scheme of a WebSocket's handshake as a GET request.
SCHEMES = {b"ws": b"http", b"wss": b"https"}
# For the client's reply to a close frame: less than the time in which a draining gateway stops.
CLOSE_TIMEOUT_S = 1.0
# Messages of uvicorn and `websockets` that the gateway does not log.
EXPECTED = (
    # Each WebSocket, with its query string.
    '"WebSocket ',
    # As an error with a traceback, for a client's message.
    "Invalid UTF-8 sequence received from client",
    # As an error, for each handshake that was refused, or whose client has left, also without a key.
    "ASGI callable returned without completing handshake.",
)


class ClientSocket(WebSocketsSansIOProtocol):
    """Disconnects a client that does not read. When the gateway drains, the application closes the connection."""

    cycle = None
    """No HTTP request is in progress (server.py)."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.app: Any = accept_sockets(self.app)
        self.logger.addFilter(_is_news)
        self.close_timeout = CLOSE_TIMEOUT_S
        self._unread: asyncio.TimerHandle | None = None
        """Runs while the write buffer is full."""
        self._has_received = False
        """Whether data has arrived since the last ping."""
        self.hold: Callable[[int], bool] = lambda _: True
        """Holds so many bytes, or returns False without room for them."""
        self._unanswered: deque[int] = deque()
        """The bytes of each complete message that the application has not answered."""
        self._unanswered_bytes = 0
        """Their sum: one read of the connection may have 40,000 messages."""
        self._is_answering = False
        self._arriving: asyncio.TimerHandle | None = None
        """Runs while a part of a message or frame has arrived."""

    async def receive(self) -> Any:
        if self._is_answering:
            # The application asks for the next message when it has answered the one before.
            self._is_answering = False
            self._unanswered_bytes -= self._unanswered.popleft()
            self._hold_memory()
        message = await super().receive()
        self._is_answering = message["type"] == "websocket.receive"
        return message

    async def send(self, message: Any) -> None:
        """Raises ClientDisconnected also when the protocol has closed the connection: a wrong frame, or no pong.

        uvicorn raises the RuntimeError of an application that sends after its own close.
        """
        await self.writable.wait()
        if self.close_sent or self.transport.is_closing():
            raise ClientDisconnected
        await super().send(message)

    def data_received(self, data: bytes) -> None:
        # Before the response to the handshake, a client sends nothing (RFC 6455, 4.1), and nothing limits it.
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()
            return
        self._has_received = True
        super().data_received(data)
        if not (self.frames or self.conn.reader.buffer):
            self._end_arriving()
        elif self._arriving is None:
            self._arriving = self.loop.call_later(MESSAGE_TIMEOUT_S, self._fail, POLICY, TOO_SLOW)
        if not self._hold_memory():
            self._fail(TRY_AGAIN_LATER, error_responses.NO_MEMORY)

    def _fail(self, code: int, reason: str) -> None:
        """Closes the connection unless it is being closed."""
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def send_receive_event_to_app(self) -> None:
        self._end_arriving()
        if not self.close_sent:
            self._unanswered.append(sum(map(len, self.frames)))
            self._unanswered_bytes += self._unanswered[-1]
        super().send_receive_event_to_app()

    def _hold_memory(self) -> bool:
        """Returns whether there is room for the bytes that have arrived, and were not answered."""
        return self.hold(len(self.conn.reader.buffer) + sum(map(len, self.frames)) + self._unanswered_bytes)

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is None:
            # The handshake cannot be parsed, so there is no frame that says so.
            self.transport.abort()
            return
        super().handle_parser_exception()

    def handle_cont(self, event: Any) -> None:
        # One buffer: in uvicorn's list, fragments of a byte take many times their size, and empty ones have no limit.
        whole: Any = self.frames[0]
        if not isinstance(whole, bytearray):
            whole = bytearray(whole)
        whole += event.data
        self.frames = [whole]
        if event.fin:
            self.send_receive_event_to_app()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            # The client does not read: its pongs would fill the memory.
            self.conn.data_to_send()

    def send_keepalive_ping(self) -> None:
        self._has_received = False
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self._has_received and not self.close_sent:
            # A pong comes after the frame that the client sends: 8 MiB take a minute with a megabit a second.
            self._has_received = False
            self.pong_timer = self.loop.call_later(PING_TIMEOUT_S, self.keepalive_timeout)
            return
        super().keepalive_timeout()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(http_protocol.UNREAD_TIMEOUT_S, self._leave_unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._end_arriving()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if not self.writable.is_set():
            self.transport.abort()

    def _leave_unread(self) -> None:
        metrics.UNREAD.inc()
        self.transport.abort()

    def _end_arriving(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def limit_memory(receive: Receive, hold: Callable[[int], bool]) -> None:
    """Makes the WebSocket of `receive` call `hold` with the bytes of its messages that are not answered yet.

    Where it returns False, the connection is closed with 1013. A `receive` that is not uvicorn's own has no such limit.
    """
    socket = getattr(receive, "__self__", None)
    if isinstance(socket, ClientSocket):
        socket.hold = hold


def accept_sockets(app: ASGIApp) -> ASGIApp:
    """Returns an application that passes the handshake of a WebSocket to `app` as a GET request.

    So the same middleware, authentication and routes answer both. `app` accepts the WebSocket with the status 101, and
    then receives and sends messages of ASGI's type `websocket`; any other response refuses the handshake.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # Some proxies forward a handshake with `X-Forwarded-Proto: wss`, and uvicorn makes it the scheme.
        headers = [
            (name, SCHEMES.get(value, value) if name == b"x-forwarded-proto" else value)
            for name, value in scope["headers"]
        ]
        scheme = SCHEMES[scope["scheme"].encode()].decode()
        handshake = {**scope, "type": "http", "method": "GET", "scheme": scheme, "headers": headers}
        await app(handshake, receive, partial(_send_of_socket, send))

    return serve


def is_handshake(scope: Scope) -> bool:
    """Returns whether the request is the handshake of a WebSocket that the server can accept."""
    return "websocket.http.response" in scope.get("extensions", {})


async def _send_of_socket(send: Send, message: Message) -> None:
    if not message["type"].startswith("http."):
        await send(message)
        return
    # As over HTTP, a response to a client that has disconnected is no error; `receive` returns the disconnect.
    with suppress(ClientDisconnected):
        await send(_message_of_handshake(message))


def _message_of_handshake(message: Message) -> Message:
    """Returns the message of ASGI's type `websocket` that is sent for a part of the response to a handshake."""
    headers = message.get("headers", ())
    match message:
        case {"type": "http.response.start", "status": 101}:
            # The header `Connection` of a 101 is the library's.
            named = [(name, value) for name, value in headers if name != b"connection"]
            return {"type": "websocket.accept", "headers": named}
        case {"type": "http.response.start"}:
            # uvicorn adds them to other responses.
            security = [(name.encode(), value.encode()) for name, value in security_headers.HEADERS]
            return {**message, "type": "websocket.http.response.start", "headers": [*security, *headers]}
    return {**message, "type": f"websocket.{message['type']}"}


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(known in text for known in EXPECTED)
