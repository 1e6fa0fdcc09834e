"""The gateway of the arm `bare`: questions go to NATS, and stored entries to their reader, with plain sockets.

`python -m benchmarks.compare.servers.bare_gateway NATS_PORT` prints its URL.
"""

import asyncio
import secrets
import sys

import msgspec
import uvloop

from benchmarks.compare.servers.bare_nats import NatsConnection, connect
from benchmarks.compare.servers.floor import HEAD, LENGTH


class Event(msgspec.Struct):
    type: str
    delta: dict[str, str | None] = {}


class Entry(msgspec.Struct):
    event: Event


decode, encode = msgspec.json.Decoder(Entry).decode, msgspec.json.Encoder().encode
readers: dict[bytes, asyncio.Transport] = {}


def receive(subject: bytes, headers: bytes, payload: bytes) -> None:
    """Writes an entry that the stream has republished to the reader of its turn."""
    *_, turn, kind = subject.split(b".")
    reader = readers.get(turn)
    if reader is None or reader.is_closing():
        return
    begin = headers.find(b"Nats-Sequence:") + 14
    seq = headers[begin : headers.find(b"\r\n", begin)].strip()
    event = decode(payload).event
    if kind == b"end":
        reader.write(b'id: %b\ndata: {"type":"done"}\n\n' % seq)
        reader.close()
    elif event.type == "content_block_delta":
        reader.write(b"id: %b\ndata: %b\n\n" % (seq, encode({"type": "delta", "text": event.delta["text"]})))


class Client(asyncio.Protocol):
    def __init__(self, nats: NatsConnection) -> None:
        self._nats, self._received = nats, b""
        self._turn = secrets.token_hex(8).encode()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if found and length and len(body) == int(length[1]):
            readers[self._turn] = self._transport
            self._transport.write(HEAD)
            self._nats.send(b"PUB questions.%b %d\r\n%b\r\n" % (self._turn, len(body), body))

    def connection_lost(self, _exc: Exception | None) -> None:
        readers.pop(self._turn, None)


async def main() -> None:
    nats = await connect(int(sys.argv[1]), receive)
    nats.send(b"SUB live.> 1\r\n")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(nats), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
