"""The HTTP connection of a client that may become a WebSocket (RFC 6455, 4.2)."""

import re

from tailrace.features.responses_socket.socket_protocol import (
    FRAME_BYTES_MAX,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
    ClientSocket,
)
from tailrace.gateway.http.http_protocol import HEADERS_BYTES_MAX, TOO_LARGE, ClientConnection

PATH = b"/v1/responses"
# `websockets` limits a line of a handshake, and would break the connection off without a response.
LINE_BYTES_MAX = 8190
LINE_TOO_LONG = ("headers_too_large", f"a line of a WebSocket's handshake has more than {LINE_BYTES_MAX} bytes")
# 16 random bytes in base64 (RFC 6455, 4.1).
KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")


class UpgradableConnection(ClientConnection):
    """Opens a WebSocket at PATH. At other paths, `Upgrade: websocket` is ignored."""

    __slots__ = ()
    # Compression would take 64 kB and more of each connection.
    SETTINGS = {  # noqa: RUF012  # read only
        "ws": ClientSocket,
        "ws_max_size": FRAME_BYTES_MAX,
        "ws_ping_interval": PING_INTERVAL_S,
        "ws_ping_timeout": PING_TIMEOUT_S,
        "ws_per_message_deflate": False,
    }

    def handle_websocket_upgrade(self) -> None:
        if not self._is_for_socket():
            super().handle_websocket_upgrade()
            return
        lengths = (len(name) + len(value) for name, value in (*self.headers, (b"GET HTTP/1.1", self.url)))
        if max(lengths) + 2 > LINE_BYTES_MAX:
            self._refuse(*LINE_TOO_LONG)
        elif self._bytes > HEADERS_BYTES_MAX:
            self._refuse(*TOO_LARGE)
        else:
            self._open_socket()

    def _is_for_socket(self) -> bool:
        """Returns whether the request may open a WebSocket: alone, valid, at PATH, without a body."""
        is_alone = not self.pipeline and (self.cycle is None or self.cycle.response_complete)
        # `_unread` watches the response before it, and would end the WebSocket.
        is_alone &= not self.flow.write_paused
        keys = [value for name, value in self.headers if name == b"sec-websocket-key"]
        versions = [value for name, value in self.headers if name == b"sec-websocket-version"]
        return (
            is_alone
            and self.url.partition(b"?")[0] == PATH
            and self._get_upgrade() == b"websocket"
            and (self.parser.get_method(), self.parser.get_http_version()) == (b"GET", "1.1")
            and not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
            # The library would refuse them with text, not with an error body.
            and (len(keys) == 1 and KEY.fullmatch(keys[0]) is not None)
            and versions == [b"13"]
            # A connection above the limit is refused over HTTP.
            and self.app is not self._overflow
        )
