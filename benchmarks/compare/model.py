"""A model server for benchmarks: speaks Anthropic's streaming protocol, and writes the send time into each delta.

`python -m benchmarks.compare.model` prints its URL. The prompt `#bench words=200 rate=50` asks for 200 deltas, 50 a
second; rate 0 sends all at once. With ` wait=30` behind it, the answer ends 30 s after its last delta. A delta is
`w<number>-<monotonic time in µs> `. Readers subtract it from the same clock, so the delay is measured without a proxy.
The simulated Claude can also inject faults, but uses more CPU.
"""

import asyncio
import json
import random
import re
import time

import uvloop

PROMPT = re.compile(rb"#bench words=(\d+) rate=(\d+)(?: wait=(\d+))?")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nrequest-id: req_bench\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def event(kind: str, **fields: object) -> bytes:
    """Returns one SSE event of Anthropic's protocol."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, separators=(',', ':'))}\n\n".encode()


def chunk(content: bytes) -> bytes:
    """Returns one chunk of HTTP/1.1's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def begin() -> bytes:
    usage = {"input_tokens": 10, "output_tokens": 1}
    message: dict[str, object] = {
        "id": "msg_bench",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    block = {"type": "text", "text": ""}
    return event("message_start", message=message) + event("content_block_start", index=0, content_block=block)


def end(words: int) -> bytes:
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    return (
        event("content_block_stop", index=0)
        + event("message_delta", delta=delta, usage={"output_tokens": words})
        + event("message_stop")
    )


BEGIN = HEAD + chunk(begin())
DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"w%06d-%016d "}}\n\n'
)


class Model(asyncio.Protocol):
    """One connection. Answers its requests one after the other."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self._received = transport, b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (at := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:at]
            length = LENGTH.search(head)
            total = at + 4 + (int(length[1]) if length else 0)
            if len(self._received) < total:
                return
            body, self._received = self._received[at + 4 : total], self._received[total:]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        prompts = PROMPT.findall(body)
        if not prompts:
            content = b'{"data":[],"has_more":false}'
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(head % len(content) + content)
            return
        words, rate, wait_s = (int(number or 0) for number in prompts[-1])
        self._transport.write(BEGIN)
        loop = asyncio.get_running_loop()
        if rate:
            self._delta(0)
            # The second delta comes earlier by a random part of the period: the deltas of turns that begin together
            # would otherwise arrive together, which costs less CPU.
            self._schedule(1, words, loop.time() - random.random() / rate, 1 / rate, wait_s)
        else:
            for number in range(words):
                self._delta(number)
            self._end(words)

    def _delta(self, number: int) -> None:
        self._transport.write(chunk(DELTA % (number, time.monotonic_ns() // 1000)))

    def _end(self, words: int) -> None:
        self._transport.write(chunk(end(words)) + b"0\r\n\r\n")

    def _tick(self, number: int, words: int, began: float, period: float, wait_s: int) -> None:
        if self._transport.is_closing():
            return
        if number == words:
            asyncio.get_running_loop().call_later(wait_s, self._end, words)
            return
        self._delta(number)
        self._schedule(number + 1, words, began, period, wait_s)

    def _schedule(self, number: int, words: int, began: float, period: float, wait_s: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(began + number * period, self._tick, number, words, began, period, wait_s)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
