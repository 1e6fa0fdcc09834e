"""Slow clients and their effect on other readers: `python -m benchmarks.slow --silent 200`. One gateway process.

Twenty readers read a turn that is being written. Round by round they are alone, and beside

- `--silent`: readers that requested 8 MB of stored text and read nothing,
- `--dripping`: readers that read one byte a second,
- `--trickling`: connections whose headers arrive at one byte a second, opened again when closed,
- `--streams`: readers of a silent running turn, all of one tenant,

and beside as many regular readers as the first two groups have. A slow client costs nothing if the twenty do not get
slower than beside a regular reader. The rounds alternate because the load of other programs changes: single runs of the
same configuration differed by a factor of two.

Printed is how late the twenty get each entry, what an entry costs the gateway, and what each of the others has there in
memory.
"""

import asyncio
import re
import socket
import tempfile
from array import array
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from fcntl import ioctl
from pathlib import Path
from statistics import median
from termios import FIONREAD

import httpx2
import msgspec
import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.latencies import percentile
from benchmarks.log_server import running_log
from benchmarks.process_usage import cpu_s, raise_file_limit, resident_bytes
from benchmarks.storm import OTHERS, Others, Reader
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.http.http_protocol import HEADERS_TIMEOUT_S
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.turn_writer import Writer
from tests.harness.until import until

# A client that reads nothing still receives more bytes than this into the socket buffers.
MUCH = 10_000
# 8 MB that no client reads.
LONG = ["a" * 100_000] * 80
LOOKS = 'python_gc_collections_total{generation="2"}'
EVERY_S = 1.0
# The clients connect over this time, so that they are not all closed in the same second.
SPREAD_S = HEADERS_TIMEOUT_S
# Connections opened at once: the kernel's accept queue is short.
AT_ONCE = 50


class Beside(msgspec.Struct, kw_only=True, frozen=True):
    """The number of slow clients and readers of each kind."""

    silent: int = 0
    dripping: int = 0
    trickling: int = 0
    streams: int = 0
    reading: int = 0

    @property
    def count(self) -> int:
        return self.silent + self.dripping + self.trickling + self.streams + self.reading


class SlowClientMeasurements(msgspec.Struct, kw_only=True):
    """The delays of the twenty readers beside slow clients, and the cost of those: a figure for each round."""

    late: list[list[float]] = []
    """Seconds that they waited for each entry."""
    entry_cpu_s: list[float] = []
    """What an entry took the gateway, all of its readers together."""
    each_bytes: list[float] = []
    """Memory of the gateway for each slow client. Freed memory is reused, so the first round counts."""
    looks: int = 0
    """Number of full garbage collections of the gateway, during which all readers wait."""
    closed: int = 0
    """Trickling connections that the gateway has closed."""

    def waited_s(self, percent: int) -> float:
        """The median of the rounds' percentiles."""
        return median(percentile(late, percent) for late in self.late)

    def describe(self) -> str:
        waited = *(self.waited_s(percent) for percent in (50, 99)), max(map(max, self.late)), median(self.entry_cpu_s)
        form = "median {:.2f}, p99 {:.2f}, most {:.0f} ms; {:.2f} ms of CPU time an entry"
        return form.format(*(1000 * seconds for seconds in waited))


class Trickling:
    """Connections whose headers never end."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._count = count
        self.open = 0
        self.closed = 0

    async def go_on(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._one(SPREAD_S * number / self._count))

    async def _one(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self.open += 1
                writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
                try:
                    while not writer.is_closing():
                        writer.write(b"a")
                        await writer.drain()
                        await asyncio.sleep(EVERY_S)
                finally:
                    writer.transport.abort()
                    self.open -= 1
            self.closed += 1


async def measure_rounds(
    folder: Path, kinds: Sequence[Beside], entries: int, rounds: int = 1
) -> list[SlowClientMeasurements]:
    """All of it in `folder`; in each round the twenty are measured at so many entries beside each of `kinds`."""
    most = max(beside.count for beside in kinds) + 10 * OTHERS
    async with AsyncExitStack() as stack:
        server, connection = await stack.enter_async_context(running_log(folder))
        log = TurnLog(connection)
        room = {f"TAILRACE_STREAMS_{name}": most for name in ("MAX", "TENANT_MAX", "ADDRESS_MAX")}
        gateway = await stack.enter_async_context(processes.gateway(folder, server.url, **room))
        port = int(gateway.url.rpartition(":")[2])
        others = Others(log, port, LONG)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        watching = group.create_task(others.watch())
        await until(lambda: others.received_count > OTHERS * len(LONG), 60)
        seen = [SlowClientMeasurements() for _ in kinds]
        for _ in range(rounds):
            for beside, one in zip(kinds, seen, strict=True):
                await measure(one, beside, entries, gateway, log, others)
        watching.cancel()
    return seen


async def measure(
    seen: SlowClientMeasurements, beside: Beside, entries: int, gateway: processes.Process, log: TurnLog, others: Others
) -> None:
    """One round: the readers connect, so many entries are stored beside them, and the readers disconnect."""
    port = int(gateway.url.rpartition(":")[2])
    await until(lambda: is_alone(gateway.url), 60)
    before, looks = resident_bytes(gateway.pid), await metric(gateway.url, LOOKS)
    trickling, tasks = Trickling(port, beside.trickling), []
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        tasks.append(group.create_task(trickling.go_on()))
        silent = await connect_readers(stack, port, others.key, beside.silent)
        dripping = await connect_readers(stack, port, others.key, beside.dripping)
        reading = await connect_readers(stack, port, others.key, beside.reading, others.last)
        running = await streams(log, port, beside.streams)
        tasks += [group.create_task(take(dripping, 1)), group.create_task(take(reading, 2**16))]
        await until(lambda: trickling.open >= 0.9 * beside.trickling, 60)
        await until(lambda: all(has_come(client) > MUCH for client in silent), 60)
        known, before_s = others.received_count, cpu_s(gateway.pid)
        await until(lambda: others.received_count >= known + entries * OTHERS, 120)
        seen.entry_cpu_s.append((cpu_s(gateway.pid) - before_s) * OTHERS / (others.received_count - known))
        # A reader may have received the last entry before its writer got the acknowledgement.
        await until(lambda: len(others.late(known)) >= entries * OTHERS)
        seen.late.append(others.late(known))
        seen.each_bytes.append((resident_bytes(gateway.pid) - before) / max(beside.count, 1))
        seen.looks += await metric(gateway.url, LOOKS) - looks
        seen.closed += trickling.closed
        for task in tasks:
            task.cancel()
        for reader in running:
            reader.transport.close()


async def is_alone(url: str) -> bool:
    """Whether the gateway has noticed that all but the twenty have gone."""
    return await metric(url, "tailrace_gateway_streams_open") == OTHERS


async def metric(url: str, name: str) -> int:
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        metrics = (await client.get("/metrics")).text
    return sum(map(int, re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\d+)", metrics, re.MULTILINE)))


async def connect_readers(
    stack: AsyncExitStack, port: int, turn: TurnKey, count: int, cursor: Seq = BEFORE_FIRST
) -> list[socket.socket]:
    """Opens `count` connections that requested a turn after `cursor` and have read nothing yet."""
    clients = []
    for number in range(count):
        clients.append(stack.enter_context(ask(port, turn, cursor)))
        if number % AT_ONCE == AT_ONCE - 1:
            await until(lambda: all(map(has_come, clients)), 60)
    return clients


async def take(clients: list[socket.socket], most: int) -> None:
    """Each reads up to `most` bytes a second, until it is cancelled. To a gateway that is reading, if that is all."""
    while True:
        await asyncio.sleep(EVERY_S)
        for client in clients:
            with suppress(BlockingIOError):
                client.recv(most, socket.MSG_DONTWAIT)


async def streams(log: TurnLog, port: int, count: int) -> list[Reader]:
    """So many readers of turns that run and say nothing."""
    key = TurnKey(LOCAL.access.tenant, TurnId(new_id()))
    await Writer(log, key).open("a")
    loop, path = asyncio.get_running_loop(), f"/v1/turns/{key.turn}/events"
    readers: list[Reader] = []
    for number in range(count):
        _, reader = await loop.create_connection(lambda: Reader(path, BEFORE_FIRST, Seq(2**62)), "127.0.0.1", port)
        readers.append(reader)
        if number % AT_ONCE == AT_ONCE - 1:
            await until(lambda: all(one.status == 200 for one in readers), 60)
    await until(lambda: all(one.status == 200 for one in readers), 60)
    return readers


def ask(port: int, turn: TurnKey, cursor: Seq = BEFORE_FIRST) -> socket.socket:
    """Requests a turn over a socket with a small buffer, and reads nothing. No client library can do that."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.connect(("127.0.0.1", port))
    path = f"/v1/turns/{turn.turn}/events?after={cursor}"
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return client


def has_come(client: socket.socket) -> int:
    """Bytes that wait for it to read."""
    waiting = array("i", [0])
    ioctl(client, FIONREAD, waiting)
    return waiting[0]


async def main() -> None:
    parser = new_parser(__doc__)
    for name in ("silent", "dripping", "trickling", "streams"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--entries", type=count, default=100, help="at which the twenty are measured, each time")
    parser.add_argument("--rounds", type=count, default=10)
    options = vars(parser.parse_args())
    raise_file_limit()
    entries, rounds = options.pop("entries"), options.pop("rounds")
    kinds = {"alone": Beside(), f"beside {options}": Beside(**options)}
    if readers := options["silent"] + options["dripping"]:
        kinds[f"beside {readers} fast readers"] = Beside(reading=readers)
    with tempfile.TemporaryDirectory() as folder:
        seen = dict(zip(kinds, await measure_rounds(Path(folder), list(kinds.values()), entries, rounds), strict=True))
    for name, one in seen.items():
        print(f"{name}: {one.describe()}")
    alone, them, *reading = seen.values()
    for name, one in zip(("alone", "beside readers"), (alone, *reading), strict=False):
        waited = (them.waited_s(percent) / one.waited_s(percent) for percent in (50, 99))
        ratios = *waited, median(them.entry_cpu_s) / median(one.entry_cpu_s)
        print("of {}: median {:.2f}, p99 {:.2f}, CPU time {:.2f} times".format(name, *ratios))
    print(f"{them.each_bytes[0] / 1000:.0f} kB for each of them; {them.closed} trickling ones were closed;")
    print(f"{them.looks} times the gateway looked through all of its memory")


if __name__ == "__main__":
    uvloop.run(main())
