"""Readers for benchmarks: send many requests at once from one process, and time and check each word.

A word contains the time at which the model sent it (`benchmarks.compare.model`). A word that is missing, repeated or
out of order is an error.
"""

import asyncio
import json
import re
import time
from typing import NamedTuple

from benchmarks.compare.arms import Arm

WORD = re.compile(rb"w(\d{6})-(\d{16}) ")
TIMEOUT_S = 60


class Answer(NamedTuple):
    """One complete answer: the time from its request to its first word, and the delay of each delta, in seconds."""

    first_word: float
    delays: list[float]


class Words:
    """The words of an answer as they arrive, in pieces of any size."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        """The delay of each word, in seconds."""
        self.rest = b""

    def add(self, data: bytes) -> None:
        """Adds received bytes. Raises `RuntimeError` for a word that is missing, repeated or out of order."""
        now = time.monotonic_ns() // 1000
        # A word may be cut between two reads.
        data, end = self.rest + data, 0
        delays = self.delays
        for word in WORD.finditer(data):
            if int(word[1]) != len(delays):
                raise RuntimeError(f"word {int(word[1])} came instead of word {len(delays)}")
            delays.append((now - int(word[2])) / 1e6)
            end = word.end()
        self.rest = data[max(end, len(data) - 24) :]


class Reader(asyncio.Protocol):
    """Sends one request and reads its answer. The result of `done` has the delays of its words.

    Not tailrace.AsyncClient: the same program reads the answers of all systems, and it needs less CPU than they do.
    """

    def __init__(self, arm: Arm, words: int, rate: int) -> None:
        content = json.dumps(arm.body(f"#bench words={words} rate={rate}")).encode()
        self._request = (
            f"{arm.method} {arm.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode() + content
        self._count = words
        self._words = Words()
        self._first = 0.0
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._began = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._words.add(data)
        except RuntimeError as error:
            self._fail(error)
            return
        if self._words.delays and not self._first:
            self._first = time.monotonic() - self._began
        if len(self._words.delays) == self._count and not self.done.done():
            self.done.set_result(Answer(self._first, self._words.delays))
            self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        received, rest = len(self._words.delays), self._words.rest[:200]
        self._fail(RuntimeError(f"the answer ended after {received} of {self._count} words: {rest!r}"))

    def _fail(self, error: RuntimeError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self._transport.close()


async def read(arm: Arm, words: int, rate: int) -> Answer:
    """Asks for one answer and reads it. Raises `RuntimeError` unless each word comes once and in order."""
    loop = asyncio.get_running_loop()
    transport, reader = await loop.create_connection(lambda: Reader(arm, words, rate), "127.0.0.1", arm.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await reader.done
    finally:
        transport.close()


async def read_many(arm: Arm, turns: int, words: int, rate: int) -> list[Answer]:
    """Reads `turns` answers at once. Spreads their starts over the time between two deltas. Raises as `read` does."""

    async def one(index: int) -> Answer:
        await asyncio.sleep(index / turns / (rate or 1000))
        return await read(arm, words, rate)

    tasks = [asyncio.ensure_future(one(index)) for index in range(turns)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # After an error, the other readers must not disturb the next arm.
        for task in tasks:
            task.cancel()
