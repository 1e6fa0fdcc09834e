"""ModelServer: sends an example's pieces over real sockets, from threads of its own."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tailrace.deploy.simulated_claude import conversation
from tailrace.deploy.simulated_claude.case import find_rest
from tailrace.deploy.simulated_claude.request import Message
from tests.sockets.example import Example

ACCEPT_S = 0.2
# A client that does not read blocks its thread for so long.
IDLE_S = 30.0
LINGER_0 = struct.pack("ii", 1, 0)


class _Body(msgspec.Struct):
    """The body of a request of the Messages API."""

    messages: list[Message]


class ModelServer:
    """Answers calls with the example that `play` has set, one example at a time.

    A call that continues a partial answer gets the rest.
    """

    def __init__(self, certificate: tuple[Path, Path]) -> None:
        """`certificate`: the files of a certificate for `localhost` and of its key."""
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(*certificate)
        self._listening = {is_tls: socket.create_server(("127.0.0.1", 0)) for is_tls in (False, True)}
        self._threads: list[threading.Thread] = []
        self._is_stopped = False
        self._example: Example | None = None
        self._interrupt: Callable[[], object] = lambda: None
        self.calls = 0
        """The calls of this example."""
        self.goes_on = threading.Event()
        """Ends the silence of this example."""

    def __enter__(self) -> Self:
        for is_tls in self._listening:
            self._start(lambda is_tls=is_tls: self._accept(is_tls=is_tls))  # type: ignore[misc]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopped = True
        for thread in self._threads:
            thread.join(IDLE_S)
        for one in self._listening.values():
            one.close()

    def play(self, example: Example, interrupt: Callable[[], object]) -> str:
        """Sets the example, and returns the address for it. A thread calls `interrupt` when a kill or cancel is due."""
        self._example, self._interrupt, self.calls = example, interrupt, 0
        self.goes_on.clear()
        port = self._listening[example.is_tls].getsockname()[1]
        return f"https://localhost:{port}" if example.is_tls else f"http://127.0.0.1:{port}"

    def _start(self, run: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, *, is_tls: bool) -> None:
        listening = self._listening[is_tls]
        listening.settimeout(ACCEPT_S)
        while not self._is_stopped:
            with suppress(TimeoutError):
                connection, _ = listening.accept()
                self._start(lambda connection=connection: self._serve(connection, is_tls=is_tls))  # type: ignore[misc]

    def _serve(self, plain: socket.socket, *, is_tls: bool) -> None:
        # A client that was killed or cancelled ends its connection in the middle.
        with plain, suppress(OSError, EOFError):
            plain.settimeout(IDLE_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._tls.wrap_socket(plain, server_side=True) if is_tls else plain as connection:
                while not self._is_stopped and self._answer(connection):
                    pass

    def _answer(self, connection: socket.socket) -> bool:
        """Answers one request; returns whether another one may follow on the connection."""
        example, call = self._example, self.calls
        messages = msgspec.json.decode(_read_body(connection), type=_Body).messages
        assert example is not None  # set before its client begins
        self.calls += 1
        lines = find_rest(example.lines, conversation.read(messages))
        pieces, fault_at = example.pieces(lines, call)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            + (b"content-encoding: gzip\r\n" if example.is_compressed else b"")
            + (b"transfer-encoding: chunked\r\n\r\n" if example.is_chunked else b"connection: close\r\n\r\n")
        )
        for number, piece in enumerate(pieces):
            # Only the first call of an example is interrupted.
            if call == 0 and number == fault_at and not self._go_on(example, connection):
                return False
            if piece.pause_s:
                time.sleep(piece.pause_s)
            connection.sendall(piece.data)
        if example.is_held:
            # Raises EOFError when the client closes the connection.
            _receive(connection)
        return example.is_chunked

    def _go_on(self, example: Example, connection: socket.socket) -> bool:
        """Makes the example's fault happen; returns whether the answer goes on."""
        match example.fault:
            case "kill" | "cancel":
                self._interrupt()
            case "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                return False
            case "close":
                return False
            case "silence":
                self._interrupt()
                self.goes_on.wait(IDLE_S)
        return True


def _read_body(connection: socket.socket) -> bytes:
    """Returns the body of the next request. Raises EOFError if there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
    left, pieces = int(fields[b"content-length"]) - len(body), [body]
    while left > 0:
        pieces.append(_receive(connection))
        left -= len(pieces[-1])
    return b"".join(pieces)


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(2**20)
    if not data:
        raise EOFError
    return data
