"""Measures readers that attach to a running turn: resuming, herds, many readers of one turn, idle streams.

Only arms that can resume a stream are measured. Each reader checks its words, as in `readers`.
"""

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from benchmarks.compare.arms import Arm
from benchmarks.compare.readers import Words
from benchmarks.process_usage import pss_kb

# For `resume` and the herds, a turn has this many words when its readers come. It is silent then, so that only the
# readers are measured.
TURN_WORDS = 400
SHORT_TURN_WORDS = 20
LONG_TURN_WORDS = 5000
WORDS_PER_S = 100
# A turn with more words is written faster, but not so fast that Tailrace joins deltas.
WRITTEN_S_MAX = 10
SILENT_S = 60
HERD_TURNS = 20
RESUME_REPEATS = 20
HERD_READERS = 500
FOLLOWERS = 1000
FOLLOWED_WORDS_PER_S = 10
FOLLOWED_S = 6
IDLE_STREAMS = 2000
IDLE_S = 40
TIMEOUT_S = 120
CONNECTING_MAX = 200
RETRY_S = 0.5
PAGE_BYTES = 4096


class Streams(msgspec.Struct):
    """The measurements of one arm. Times in seconds, CPU in microseconds of all processes for each word delivered."""

    resume_short_s: float
    """The median time in which one reader receives the first `SHORT_TURN_WORDS` words of a running turn."""
    resume_s: float
    """The same for `TURN_WORDS` words."""
    resume_long_s: float
    """The same for `LONG_TURN_WORDS` words."""
    resume_long_cold_s: float
    """The same for the first of these readers: in Tailrace, the turn had no reader before."""
    herd_cold_s: float
    """The time until `HERD_READERS` readers of `HERD_TURNS` turns have these words. The turns had no reader before."""
    herd_warm_s: float
    """The same for turns that have had readers."""
    herd_cpu_us: float
    readers_p50_ms: float
    """The median delay of a word for `FOLLOWERS` readers of one turn."""
    readers_cpu_us: float


class IdleStreams(msgspec.Struct):
    """The cost of `IDLE_STREAMS` streams of one silent turn, for an arm that has served nothing else yet."""

    stream_kb: float
    """The memory of one stream, in all processes."""
    open_s: float
    """The time in which all are opened."""


class AttachedReader(asyncio.Protocol):
    """One reader of a running turn. `wait_for_words(n)` waits for its first n words.

    Not tailrace.AsyncClient, for the reason in readers.Reader.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._words = Words()
        self._wanted = 0
        self._reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.delays = self._words.delays
        self.head = b""
        self.has_begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.head = self.head or data[:PAGE_BYTES]
        if not self.has_begun.done():
            self.has_begun.set_result(None)
        try:
            self._words.add(data)
        except RuntimeError as error:
            self._fail(error)
            return
        if self._wanted and len(self.delays) >= self._wanted and not self._reached.done():
            self._reached.set_result(None)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._fail(RuntimeError(f"the stream ended after {len(self.delays)} words: {self.head[:200]!r}"))

    async def wait_for_words(self, words: int) -> None:
        self._wanted = words
        if len(self.delays) < words:
            await self._reached

    def _fail(self, error: RuntimeError) -> None:
        for future in (self._reached, self.has_begun):
            if not future.done():
                future.set_exception(error)
                # If no task waits for it, its error is not logged.
                future.exception()
        self.transport.close()


class Readers:
    """Begins turns of an arm and attaches readers to them. Closes every connection at the end."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._open: list[AttachedReader] = []
        self._connecting = asyncio.Semaphore(CONNECTING_MAX)

    async def begin(self, words: int, rate: int, wait_s: int = 0) -> str:
        """Begins a turn; returns the path at which it is read. Only Tailrace begins one without a first reader."""
        question = self._arm.body(f"#bench words={words} rate={rate} wait={wait_s}")
        first = await self._connect(self._arm.method, self._arm.path, json.dumps(question).encode())
        await first.has_begun
        head = first.head.partition(b"\r\n\r\n")[0].decode().lower()
        names = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        if "stream-path" in names:
            return names["stream-path"]
        return f"{self._arm.path}/{names['tailrace-turn']}/events"

    async def attach(self, path: str) -> AttachedReader:
        """Attaches a reader. Connects again, as clients do, when the server closes the connection without a byte.

        `resumable-stream` does so on a busy machine: its subscription waits one second.
        """
        while True:
            async with self._connecting:
                reader = await self._connect("GET", path)
                with contextlib.suppress(RuntimeError):
                    await reader.has_begun
            if reader.head:
                return reader
            await asyncio.sleep(RETRY_S)

    async def catch_up(self, path: str, words: int = TURN_WORDS) -> None:
        """Reads the first `words` words of a turn, and leaves."""
        reader = await self.attach(path)
        await reader.wait_for_words(words)
        reader.transport.close()

    async def _connect(self, method: str, path: str, body: bytes = b"") -> AttachedReader:
        length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        accept = "Accept: application/json" if method == "POST" else "Accept: text/event-stream"
        request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{accept}\r\n{length}\r\n".encode() + body
        loop = asyncio.get_running_loop()
        _, reader = await loop.create_connection(lambda: AttachedReader(request), "127.0.0.1", self._arm.port)
        self._open.append(reader)
        return reader

    def close(self) -> None:
        for reader in self._open:
            reader.transport.close()
        self._open.clear()


@contextlib.asynccontextmanager
async def readers_of(arm: Arm) -> AsyncIterator[Readers]:
    readers = Readers(arm)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield readers
    finally:
        readers.close()


async def time_of(work: Awaitable[object]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def begin_turns(readers: Readers, count: int, words: int = TURN_WORDS) -> list[str]:
    """Begins `count` turns, and returns their paths when each has `words` words."""
    rate = max(WORDS_PER_S, words // WRITTEN_S_MAX)
    paths = [await readers.begin(words, rate, SILENT_S) for _ in range(count)]
    await asyncio.sleep(words / rate + 0.5)
    return paths


async def measure_resume(arm: Arm, words: int) -> tuple[float, float]:
    """Returns the time of the first reader of a turn with `words` words, and the median of `RESUME_REPEATS` others."""
    async with readers_of(arm) as readers:
        [path] = await begin_turns(readers, 1, words)
        first = await time_of(readers.catch_up(path, words))
        return first, statistics.median([await time_of(readers.catch_up(path, words)) for _ in range(RESUME_REPEATS)])


async def measure_herd(arm: Arm) -> tuple[float, float, float]:
    """Returns the times of a first and of a second herd, and the CPU for each word of the second."""
    async with readers_of(arm) as readers:
        paths = await begin_turns(readers, HERD_TURNS)

        async def herd() -> None:
            await asyncio.gather(*(readers.catch_up(paths[index % HERD_TURNS]) for index in range(HERD_READERS)))

        cold = await time_of(herd())
        before = cpu(arm)
        warm = await time_of(herd())
        return cold, warm, (cpu(arm) - before) / (HERD_READERS * TURN_WORDS) * 1e6


async def measure_readers(arm: Arm) -> tuple[float, float]:
    """Returns the median delay for `FOLLOWERS` readers of one turn, and the CPU for each word delivered."""
    async with readers_of(arm) as readers:
        path = await readers.begin(FOLLOWED_WORDS_PER_S * SILENT_S, FOLLOWED_WORDS_PER_S)
        attached = await asyncio.gather(*(readers.attach(path) for _ in range(FOLLOWERS)))
        await asyncio.sleep(1)
        had, before = [len(one.delays) for one in attached], cpu(arm)
        await asyncio.sleep(FOLLOWED_S)
        used = cpu(arm) - before
        delays = [delay for one, count in zip(attached, had, strict=True) for delay in one.delays[count:]]
        return statistics.median(delays) * 1e3, used / len(delays) * 1e6


async def measure_idle_streams(arm: Arm) -> IdleStreams:
    """Opens `IDLE_STREAMS` streams. A process that has served others before would use the memory that it still has."""
    async with readers_of(arm) as readers:
        path = await readers.begin(1, 1, IDLE_S)
        await readers.attach(path)
        await asyncio.sleep(1)
        before = memory_kb(arm)
        took = await time_of(asyncio.gather(*(readers.attach(path) for _ in range(IDLE_STREAMS))))
        return IdleStreams((memory_kb(arm) - before) / IDLE_STREAMS, took)


async def measure_streams(arm: Arm) -> Streams:
    """Runs all measurements of `Streams` in turn. Raises RuntimeError for a word that is missing or out of order."""
    _, short_s = await measure_resume(arm, SHORT_TURN_WORDS)
    _, resume_s = await measure_resume(arm, TURN_WORDS)
    long_cold_s, long_s = await measure_resume(arm, LONG_TURN_WORDS)
    cold, warm, herd_cpu_us = await measure_herd(arm)
    p50_ms, readers_cpu_us = await measure_readers(arm)
    return Streams(short_s, resume_s, long_s, long_cold_s, cold, warm, herd_cpu_us, p50_ms, readers_cpu_us)


def cpu(arm: Arm) -> float:
    return sum(arm.cpu_s().values())


def memory_kb(arm: Arm) -> float:
    """Returns the private and shared memory of all processes (`Pss` of `smaps_rollup`)."""
    return sum(pss_kb(pid) for pids in arm.processes.values() for pid in pids)


Column = tuple[str, Callable[[Streams], str]]
COLUMNS: tuple[Column, ...] = (
    (f"resume {SHORT_TURN_WORDS} words", lambda one: f"{one.resume_short_s * 1e3:.1f} ms"),
    (f"{TURN_WORDS} words", lambda one: f"{one.resume_s * 1e3:.1f} ms"),
    (f"{LONG_TURN_WORDS} words", lambda one: f"{one.resume_long_s * 1e3:.1f} ms"),
    (f"{LONG_TURN_WORDS} words, first reader", lambda one: f"{one.resume_long_cold_s * 1e3:.1f} ms"),
    (f"{HERD_READERS} readers, first herd", lambda one: f"{one.herd_cold_s:.2f} s"),
    (f"{HERD_READERS} readers, second herd", lambda one: f"{one.herd_warm_s:.2f} s"),
    (f"CPU a word for {HERD_READERS} readers", lambda one: f"{one.herd_cpu_us:.1f} µs"),
    (f"{FOLLOWERS} readers of one turn, delay p50", lambda one: f"{one.readers_p50_ms:.0f} ms"),
    (f"CPU a word for {FOLLOWERS} readers", lambda one: f"{one.readers_cpu_us:.1f} µs"),
)


def table(streams: dict[str, list[Streams]], idle: dict[str, IdleStreams]) -> str:
    """Returns a Markdown table of the medians, and of the idle streams."""
    names = [*(name for name, _ in COLUMNS), "idle stream", f"{IDLE_STREAMS} opened in"]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, samples in streams.items():
        middle = Streams(
            *(statistics.median(values) for values in zip(*map(msgspec.structs.astuple, samples), strict=True))
        )
        shown = [show(middle) for _, show in COLUMNS]
        shown += [f"{idle[name].stream_kb:.1f} kB", f"{idle[name].open_s:.1f} s"] if name in idle else ["", ""]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
