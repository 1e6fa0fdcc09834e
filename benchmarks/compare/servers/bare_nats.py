"""The least that a NATS client needs for `bare_gateway` and `bare_generator`: no reconnects, no TLS, no checks."""

import asyncio
from collections.abc import Callable

# Takes the subject, the headers and the payload of a message.
Receive = Callable[[bytes, bytes, bytes], None]


class NatsConnection(asyncio.Protocol):
    """Passes each message to one function. What is published in one iteration of the event loop is written at once."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._unread = b""
        self._unsent: list[bytes] = []
        self.connected: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(b'CONNECT {"verbose":false,"headers":true}\r\nPING\r\n')

    def data_received(self, data: bytes) -> None:
        data, at = self._unread + data, 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            words, body = data[at:line_end].split(b" "), line_end + 2
            end = body
            if words[0] in (b"MSG", b"HMSG"):
                end += int(words[-1]) + 2
                if len(data) < end:
                    break
                payload = body + int(words[-2]) if words[0] == b"HMSG" else body
                self._receive(words[1], data[body:payload], data[payload : end - 2])
            elif words[0] == b"PING":
                self._transport.write(b"PONG\r\n")
            elif words[0] == b"PONG":
                self.connected.set_result(None)
            at = end
        self._unread = data[at:]

    def send(self, data: bytes) -> None:
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent.append(data)

    def _write(self) -> None:
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()


async def connect(port: int, receive: Receive) -> NatsConnection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: NatsConnection(receive), "127.0.0.1", port)
    await connection.connected
    return connection
