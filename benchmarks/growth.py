"""Measures the CPU of a delta with more readers, other streams, stored turns and processes.

`python -m benchmarks.growth` starts the system anew for each row, measures it three times, and prints the medians. The
first rows have one turn with 10 deltas a second, the others 20 turns with 50. CPU is that of one delta of the model,
whatever the number of its readers, without what the system needs when it is idle.
"""

import argparse
import asyncio
import contextlib
import socket
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import NamedTuple

import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.compare.__main__ import measure, measure_idle
from benchmarks.compare.arms import Arm, port_of, process, tailrace
from benchmarks.compare.attached_readers import readers_of
from benchmarks.compare.closed_loop import Sample, used_us
from benchmarks.compare.readers import read_many
from benchmarks.process_usage import raise_file_limit

TURNS, RATE, RATE_OF_ONE = 20, 50, 10
IDLE_STREAMS, SLOW_READERS, STORED_TURNS = 2000, 200, 10_000
STORED_AT_ONCE = 50
SILENT_S = 300
# The text that a slow reader does not read: more than the buffers of its connection hold.
SLOW_WORDS, SLOW_RATE = 20_000, 5000


Measure = Callable[[Arm, dict[str, float], int], Awaitable[Sample]]
"""Measures an arm for some seconds. The second argument is what its roles use when they are idle, in cores."""
Around = Callable[[Arm], contextlib.AbstractAsyncContextManager[None]]


async def read_turns(arm: Arm, idle: dict[str, float], seconds: int) -> Sample:
    """Reads TURNS turns. Raises RuntimeError if a word is missing or out of order."""
    sample = await measure(arm, TURNS, seconds * RATE, RATE, idle)
    return Sample(sample.cpu_us, sample.p50_ms)


async def read_one_turn(arm: Arm, idle: dict[str, float], seconds: int, *, readers: int) -> Sample:
    """Reads one turn with so many readers. Raises as `read_turns` does."""
    async with readers_of(arm) as opened:
        path = await opened.begin(RATE_OF_ONE * SILENT_S, RATE_OF_ONE)
        attached = await asyncio.gather(*(opened.attach(path) for _ in range(readers)))
        await asyncio.sleep(1)
        seen, before = [len(one.delays) for one in attached], arm.cpu_s()
        await asyncio.sleep(seconds)
        after, delays = arm.cpu_s(), [one.delays[had:] for one, had in zip(attached, seen, strict=True)]
        words = statistics.median(map(len, delays))
        used = used_us(before, after, idle, seconds, words)
        return Sample(used, statistics.median(delay for one in delays for delay in one) * 1e3)


@contextlib.asynccontextmanager
async def nothing_else(_arm: Arm) -> AsyncIterator[None]:
    """The load alone."""
    yield


@contextlib.asynccontextmanager
async def beside_streams(arm: Arm) -> AsyncIterator[None]:
    """IDLE_STREAMS streams of a silent turn, and SLOW_READERS clients that do not read a long one."""
    async with readers_of(arm) as readers:
        silent = await readers.begin(1, 1, SILENT_S)
        await asyncio.gather(*(readers.attach(silent) for _ in range(IDLE_STREAMS)))
        path = await readers.begin(SLOW_WORDS, SLOW_RATE, SILENT_S)
        slow = [_connect_slow(arm, path) for _ in range(SLOW_READERS)]
        # Until the long text is written and the buffers are full.
        await asyncio.sleep(2 * SLOW_WORDS / SLOW_RATE)
        try:
            yield
        finally:
            for one in slow:
                one.close()


def _connect_slow(arm: Arm, path: str) -> socket.socket:
    """Returns a connection that has asked for a stream and reads nothing."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", arm.port))
    one.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode())
    return one


@contextlib.asynccontextmanager
async def after_stored_turns(arm: Arm) -> AsyncIterator[None]:
    """STORED_TURNS short turns are in the log and in the database."""
    for _ in range(STORED_TURNS // STORED_AT_ONCE):
        await read_many(arm, STORED_AT_ONCE, 2, 0)
    yield


class Row(NamedTuple):
    """A row of the table. `options` are those of `tailrace up`."""

    name: str
    options: tuple[str, ...] = ("--sync", "default")
    around: Around = nothing_else
    measure: Measure = read_turns


ROWS = (
    *(Row(f"1 turn, {n:,} readers", measure=partial(read_one_turn, readers=n)) for n in (1, 100, 1000)),
    Row("20 turns"),
    Row(f"beside {IDLE_STREAMS:,} idle streams and {SLOW_READERS} slow readers", around=beside_streams),
    Row(f"after {STORED_TURNS:,} stored turns", around=after_stored_turns),
    Row("2 generators, 2 gateways", ("--sync", "default", "--generators", "2", "--gateways", "2")),
    Row("`--sync always`", ("--sync", "always")),
)


async def measure_row(row: Row, model: str, options: argparse.Namespace) -> Sample:
    """Starts the system and returns the medians."""
    with tailrace(row.name, *row.options)(model) as arm:
        # Fills connection pools and caches.
        await read_many(arm, TURNS, RATE, RATE)
        async with row.around(arm):
            idle = (await measure_idle([arm]))[arm.name]
            samples = [await row.measure(arm, idle, options.seconds) for _ in range(options.repeats)]
    cpu_us = {role: statistics.median(one.cpu_us[role] for one in samples) for role in samples[0].cpu_us}
    return Sample(cpu_us, statistics.median(one.delay_ms for one in samples))


async def run(options: argparse.Namespace) -> None:
    """Measures all rows and prints the table."""
    print("| | CPU of a delta | by role | delay p50 |\n|---|---|---|---|")
    with process(sys.executable, "-m", "benchmarks.compare.model") as model:
        for row in ROWS:
            sample = await measure_row(row, f"http://127.0.0.1:{port_of(model)}", options)
            roles = ", ".join(f"{role} {used:.0f}" for role, used in sample.cpu_us.items())
            print(f"| {row.name} | {sample.sum_us:.0f} µs | {roles} | {sample.delay_ms:.1f} ms |", flush=True)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--seconds", type=count, default=5, help="of each measurement")
    parser.add_argument("--repeats", type=count, default=3)
    raise_file_limit()
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
