"""TCP options by name, so that a system that lacks some of them sets the others."""

import socket
from collections.abc import Mapping


def keep_alive(sock: socket.socket, options: Mapping[str, int]) -> None:
    """Enables keep-alive probes, and sets the options of `IPPROTO_TCP` that this system has (their names are keys)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
