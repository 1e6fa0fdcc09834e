"""Readers for benchmarks: send many requests at once from one process, and time and check each word.

A word contains the time at which the model sent it (`benchmarks.compare.model`). A word that is missing, repeated or
out of order ends the run.
"""

import asyncio
import json
import re
import time
from typing import NamedTuple

WORD = re.compile(rb"w(\d{6})-(\d{16}) ")
TIMEOUT_S = 60


class Answer(NamedTuple):
    """One complete answer: the time to its first byte, and the delay of each delta, in seconds."""

    first_byte: float
    delays: list[float]


class Reader(asyncio.Protocol):
    """Sends one POST and reads its answer. The result of `done` has the delays of its words."""

    def __init__(self, path: str, body: dict[str, object], words: int) -> None:
        content = json.dumps(body).encode()
        self._request = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode() + content
        self._words = words
        self._rest = b""
        self._delays: list[float] = []
        self._first = 0.0
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._began = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns() // 1000
        self._first = self._first or time.monotonic() - self._began
        # A word may be cut between two reads.
        data, end = self._rest + data, 0
        delays = self._delays
        for word in WORD.finditer(data):
            if int(word[1]) != len(delays):
                self._fail(f"word {int(word[1])} came instead of word {len(delays)}")
                return
            delays.append((now - int(word[2])) / 1e6)
            end = word.end()
        self._rest = data[max(end, len(data) - 24) :]
        if len(delays) == self._words and not self.done.done():
            self.done.set_result(Answer(self._first, delays))
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._fail(f"the answer ended after {len(self._delays)} of {self._words} words: {self._rest[:200]!r}")

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(reason))
            self._transport.close()


async def read(port: int, path: str, words: int, rate: int) -> Answer:
    """Asks for one answer and reads it. Raises `RuntimeError` unless each word comes once and in order."""
    loop = asyncio.get_running_loop()
    body: dict[str, object] = {"message": f"#bench words={words} rate={rate}"}
    _, reader = await loop.create_connection(lambda: Reader(path, body, words), "127.0.0.1", port)
    async with asyncio.timeout(TIMEOUT_S):
        return await reader.done


async def read_many(port: int, path: str, turns: int, words: int, rate: int) -> list[Answer]:
    """Reads `turns` answers at once. Spreads their starts over the time between two deltas."""

    async def one(index: int) -> Answer:
        await asyncio.sleep(index / turns / (rate or 1000))
        return await read(port, path, words, rate)

    return await asyncio.gather(*map(one, range(turns)))
