"""The WebSocket protocol of a client connection: uvicorn's, on the library `websockets`, with further limits.

As over HTTP, a client that reads nothing for UNREAD_TIMEOUT_S is disconnected, and at once while the gateway drains.
uvicorn has no hook for these limits.
"""

import asyncio
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tailrace.gateway import metrics
from tailrace.gateway.http import http_protocol

# A larger frame closes the connection with 1009 (RFC 6455, 7.4.1). Reading pauses while one message waits.
FRAME_BYTES_MAX = 16 * 1024 * 1024
# Proxies close a connection after a minute of silence, and a client that has vanished is noticed after both times.
PING_INTERVAL_S = 15.0
PING_TIMEOUT_S = 30.0
# For the client's reply to a close frame: less than the time in which a draining gateway stops.
CLOSE_TIMEOUT_S = 1.0
# The settings of uvicorn. Compression would take 64 kB and more of each connection.
SETTINGS: dict[str, Any] = {
    "ws_max_size": FRAME_BYTES_MAX,
    "ws_ping_interval": PING_INTERVAL_S,
    "ws_ping_timeout": PING_TIMEOUT_S,
    "ws_per_message_deflate": False,
}


class ClientSocket(WebSocketsSansIOProtocol):
    """Disconnects a client that does not read. When the gateway drains, the application closes the connection."""

    cycle = None
    """No HTTP request is in progress (server.py)."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.close_timeout = CLOSE_TIMEOUT_S
        self._unread: asyncio.TimerHandle | None = None
        """Runs while the write buffer is full."""

    def data_received(self, data: bytes) -> None:
        # Before the response to the handshake, a client sends nothing (RFC 6455, 4.1), and nothing limits it.
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()
            return
        super().data_received(data)

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is None:
            # The handshake cannot be parsed, so there is no frame that says so.
            self.transport.abort()
            return
        super().handle_parser_exception()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(http_protocol.UNREAD_TIMEOUT_S, self._leave_unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if not self.writable.is_set():
            self.transport.abort()

    def _leave_unread(self) -> None:
        metrics.UNREAD.inc()
        self.transport.abort()

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def accept_sockets(app: ASGIApp) -> ASGIApp:
    """Returns an application that passes the handshake of a WebSocket to `app` as a GET request.

    So the same middleware, authentication and routes answer both. `app` accepts the WebSocket with the status 101, and
    then receives and sends messages of ASGI's type `websocket`; any other response refuses the handshake.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            scheme = {"ws": "http", "wss": "https"}[scope["scheme"]]
            scope = {**scope, "type": "http", "method": "GET", "scheme": scheme}
            send = partial(_send_of_socket, send)
        await app(scope, receive, send)

    return serve


def is_handshake(scope: Scope) -> bool:
    """Returns whether the request is the handshake of a WebSocket that the server can accept."""
    return "websocket.http.response" in scope.get("extensions", {})


async def _send_of_socket(send: Send, message: Message) -> None:
    match message:
        case {"type": "http.response.start", "status": 101, "headers": headers}:
            # The header `Connection` of a 101 is the library's.
            named = [(name, value) for name, value in headers if name != b"connection"]
            await send({"type": "websocket.accept", "headers": named})
        case {"type": "http.response.start" | "http.response.body" as kind}:
            await send({**message, "type": f"websocket.{kind}"})
        case _:
            await send(message)
