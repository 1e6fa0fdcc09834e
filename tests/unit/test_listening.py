"""What a server of ours asks the kernel of its connections: it listens and accepts, and nothing is served."""

import socket
from collections.abc import Callable

import pytest

from tailrace.deploy.simulated_claude.server import Server
from tailrace.gateway.http.server import listen

LISTENING = {
    "gateway": lambda: listen("127.0.0.1", 0, 0),
    "simulated Claude": lambda: Server("127.0.0.1", 0).socket,
}


@pytest.mark.parametrize("made", LISTENING.values(), ids=LISTENING)
def test_what_is_written_leaves_at_once(made: Callable[[], socket.socket]) -> None:
    """On any event loop: a small write that waits for an acknowledgement of the one before waits 40 ms."""
    with made() as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
