"""The generator of the arm `bare`: stores each delta behind the same fence as Tailrace, with plain sockets.

One append of a turn is under way at a time, and deltas that wait are joined. Nothing is checked, retried or taken over.
`python -m benchmarks.compare.servers.bare_generator NATS_PORT` prints `ready`.
"""

import asyncio
import itertools
import json
import sys
from collections import deque

import msgspec
import uvloop

from benchmarks.compare.servers.bare_nats import NatsConnection, connect
from benchmarks.compare.servers.floor import MODEL_PORT

STREAM = {
    "name": "TURNS",
    "subjects": ["turns.>"],
    "storage": "file",
    "republish": {"src": "turns.>", "dest": "live.turns.>"},
}
HEADERS = (
    b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n"
    b"Nats-Expected-Last-Subject-Sequence-Subject: turns.%b.>\r\n\r\n"
)
JOINED = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%b}}'


class Event(msgspec.Struct):
    type: str
    delta: dict[str, str | None] = {}


class Ack(msgspec.Struct):
    seq: int


decode, decode_ack = msgspec.json.Decoder(Event).decode, msgspec.json.Decoder(Ack).decode
encode = msgspec.json.Encoder().encode
numbers = itertools.count(1)


class Turn(asyncio.Protocol):
    """Reads the model's answer from its socket, and appends it."""

    def __init__(self, nats: NatsConnection, replies: dict[bytes, "Turn"], turn: bytes, question: bytes) -> None:
        self._nats, self._replies, self._turn = nats, replies, turn
        content = json.dumps({"messages": [{"role": "user", "content": json.loads(question)["message"]}]}).encode()
        self._request = b"POST /v1/messages HTTP/1.1\r\nHost: model\r\nContent-Length: %d\r\n\r\n" % len(content)
        self._request += content
        self._fence = 0
        self._is_appending = False
        self._waiting: deque[tuple[Event, bytes]] = deque()
        self._line = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        # The lines of the header and of the chunked coding do not begin with `data: `.
        *lines, self._line = (self._line + data).split(b"\n")
        self._waiting += [(decode(line[6:]), line[6:]) for line in lines if line.startswith(b"data: ")]
        self._append_next()

    def acknowledge(self, payload: bytes) -> None:
        self._fence, self._is_appending = decode_ack(payload).seq, False
        self._append_next()

    def _append_next(self) -> None:
        if self._is_appending or not self._waiting:
            return
        event, raw = self._waiting.popleft()
        is_last = event.type == "message_stop"
        if event.type == "content_block_delta" and self._waiting:
            texts = [event.delta["text"] or ""]
            while self._waiting and self._waiting[0][0].type == event.type:
                texts.append(self._waiting.popleft()[0].delta["text"] or "")
            raw = JOINED % encode("".join(texts))
        if is_last:
            self._transport.close()
        payload = b'{"prev":%d,"attempt":1,"event":%b}' % (self._fence, raw)
        headers = HEADERS % (self._fence, self._turn)
        reply = b"replies.%d" % next(numbers)
        self._replies[reply], self._is_appending = self, True
        sizes = len(headers), len(headers) + len(payload)
        kind = b"end" if is_last else b"event"
        self._nats.send(b"HPUB turns.%b.%b %b %d %d\r\n" % (self._turn, kind, reply, *sizes))
        self._nats.send(headers + payload + b"\r\n")


async def main() -> None:
    loop, replies, connecting = asyncio.get_running_loop(), dict[bytes, Turn](), set[asyncio.Task[object]]()
    created: asyncio.Future[None] = loop.create_future()

    def receive(subject: bytes, _headers: bytes, payload: bytes) -> None:
        if subject == b"replies.0":
            created.set_result(None)
        elif subject.startswith(b"replies."):
            replies.pop(subject).acknowledge(payload)
        else:
            turn = Turn(nats, replies, subject.removeprefix(b"questions."), payload)
            task = loop.create_task(loop.create_connection(lambda: turn, "127.0.0.1", MODEL_PORT))
            connecting.add(task)
            task.add_done_callback(connecting.discard)

    nats = await connect(int(sys.argv[1]), receive)
    config = json.dumps(STREAM).encode()
    nats.send(b"SUB replies.* 1\r\nSUB questions.* 2\r\n")
    nats.send(b"PUB $JS.API.STREAM.CREATE.TURNS replies.0 %d\r\n%b\r\n" % (len(config), config))
    await created
    print("ready", flush=True)
    await loop.create_future()


if __name__ == "__main__":
    uvloop.run(main())
