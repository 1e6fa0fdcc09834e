"""Socket options of accepted connections."""

import socket
from collections.abc import Callable

import pytest

from tailrace.deploy.simulated_claude.server import Server
from tailrace.gateway.http.server import listen

LISTENING = {"gateway": lambda: listen("127.0.0.1", 0, 0), "simulated Claude": lambda: Server("127.0.0.1", 0).socket}


@pytest.mark.parametrize("made", LISTENING.values(), ids=LISTENING)
def test_small_writes_are_sent_at_once(made: Callable[[], socket.socket]) -> None:
    """With Nagle's algorithm the second small write waits up to 40 ms for an acknowledgement."""
    with made() as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
