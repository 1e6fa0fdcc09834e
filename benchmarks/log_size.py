"""The cost of an append and of a read in logs of different sizes: `python -m benchmarks.log_size --entries 3000000`.

One nats-server with `--sync default`. The log is filled with other turns' entries: first to 10,000 entries, then to
`--entries`. At each size, turns of 400 entries are written, 20 of them at once, so that their entries are interleaved.
Then each is read from its beginning, as a gateway does for its first reader. Takes a minute and 1 GB of disk for 3
million entries.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.command_line import new_parser
from benchmarks.process_usage import cpu_s
from tailrace.deploy.local.nats_server import GIB, NatsServer
from tailrace.deploy.nats import setup
from tailrace.proto import entries, subjects
from tailrace.proto.chain import START
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog
from tests.harness.readers import read_all_entries
from tests.harness.turn_builder import text_delta
from tests.harness.turn_writer import Writer
from tests.harness.until import until

FEW = 10_000
TURN_ENTRIES = 400
TURNS = 20
REPEATS = 5
FILLED_TURN_ENTRIES = 200
WORDS = "some words of text "
# So many entries are published before the server is asked how many it has stored.
FILLED_AT_ONCE = 20_000


class Cost(NamedTuple):
    """Microseconds for each entry, with `TURNS` turns at once: the time, and the CPU time of nats-server."""

    took_us: float
    cpu_us: float


async def fill(connection: Connection, count: int) -> None:
    """Adds entries of other turns until the log has `count`."""
    stored, payload, subject = await count_entries(connection), entries.encode(text_delta(START, WORDS)), ""
    while stored < count:
        expected = min(stored + FILLED_AT_ONCE, count)
        for index in range(expected - stored):
            if index % FILLED_TURN_ENTRIES == 0:
                subject = subjects.entry(TurnKey(Tenant("other"), TurnId(new_id())), "event")
            await connection.publish(subject, payload)
        await until(partial(has_entries, connection, expected))
        stored = expected


async def count_entries(connection: Connection) -> int:
    return (await connection.jetstream.stream_info(subjects.STREAM)).state.messages


async def has_entries(connection: Connection, count: int) -> bool:
    return await count_entries(connection) >= count


async def measure(pid: int, work: Callable[[], Awaitable[object]]) -> Cost:
    """Runs `work`, which writes or reads `TURNS` turns. Returns its cost; `pid` is nats-server's."""
    began, before = time.monotonic(), cpu_s(pid)
    await work()
    count = TURNS * TURN_ENTRIES / 1e6
    return Cost((time.monotonic() - began) / count, (cpu_s(pid) - before) / count)


async def measure_both(connection: Connection, pid: int) -> tuple[Cost, Cost]:
    """Returns the costs of an append, and of an entry that is read."""
    log = TurnLog(connection)
    writers = [Writer(log, TurnKey(Tenant("ours"), TurnId(new_id()))) for _ in range(TURNS)]

    async def write(writer: Writer) -> None:
        await writer.open(*[WORDS] * (TURN_ENTRIES - 4))

    async def read(writer: Writer) -> None:
        if (found := len(await read_all_entries(log, writer.key))) != TURN_ENTRIES:
            raise RuntimeError(f"{found} of {TURN_ENTRIES} entries were read")

    appended = await measure(pid, lambda: asyncio.gather(*map(write, writers)))
    return appended, await measure(pid, lambda: asyncio.gather(*map(read, writers)))


async def main(count: int, folder: Path) -> None:
    async with NatsServer(folder, sync="default", file_bytes_max=16 * GIB) as server:
        connection = await Connection.open(server.url, "benchmark")
        await setup.apply(connection, bytes_max=8 * GIB)
        rows: dict[int, list[float]] = {}
        for size in (FEW, count):
            await fill(connection, size)
            await measure_both(connection, server.process.pid)  # fills caches; discarded
            costs = [await measure_both(connection, server.process.pid) for _ in range(REPEATS)]
            rows[size] = [statistics.median(cost[kind][unit] for cost in costs) for kind in (0, 1) for unit in (0, 1)]
            append_us, append_cpu_us, read_us, read_cpu_us = rows[size]
            print(
                f"{size:>9,} entries: append {append_us:.0f} µs (nats-server {append_cpu_us:.0f} µs of CPU), "
                f"an entry read {read_us:.0f} µs ({read_cpu_us:.0f} µs)",
                flush=True,
            )
        ratios = [after / before for before, after in zip(rows[FEW], rows[count], strict=True)]
        print("ratio: append {:.2f} (CPU {:.2f}), an entry read {:.2f} (CPU {:.2f})".format(*ratios))
        await connection.close()


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--entries", type=int, default=3_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        uvloop.run(main(options.entries, Path(data)))
