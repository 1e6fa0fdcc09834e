"""Clients that take their time, and what others feel: `python -m tests.bench.slow --silent 200`. One process serves.

Twenty read a turn that is being written, alone and then beside

- `--silent`: readers that have asked for an answer of 8 MB and take nothing of it,
- `--dripping`: readers that take a byte of it a second,
- `--trickling`: connections whose headers come by a byte a second, each opened again when it is closed,
- `--streams`: readers of turns that are running, all of one tenant.

Printed is how late the twenty get each entry in both cases, their ratio, and what each of the others costs in memory.
"""

import argparse
import asyncio
import re
import resource
import socket
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import httpx2
import msgspec
import uvloop

from deploy.nats_server import NatsServer
from gateway.connection import HEADERS_TIMEOUT_S
from gateway.door.auth import LOCAL
from proto.ids import NOTHING, Seq, TurnId, new_id
from proto.log import Connection, TurnLog
from proto.subjects import TurnKey
from tests import processes
from tests.bench.storm import OTHERS, Others, Reader, cpu, percentile, resident, told
from tests.conftest import apply_streams
from tests.until import until
from tests.writing import Writer

# Of a long answer.
READERS_OF_ONE = 20
EVERY_S = 1.0
# Over which they come, so that it is no second in which all of them are closed. The gateway waits as long for headers.
SPREAD_S = HEADERS_TIMEOUT_S
# They come in so many at a time, as a kernel's queue of connections is short.
AT_ONCE = 50


class Beside(msgspec.Struct, kw_only=True):
    """How many of each kind there are."""

    silent: int = 0
    dripping: int = 0
    trickling: int = 0
    streams: int = 0

    @property
    def count(self) -> int:
        return self.silent + self.dripping + self.trickling + self.streams


class Seen(msgspec.Struct, kw_only=True):
    """Seconds that others waited for each entry, and bytes that the gateway has for each who is beside them."""

    alone: list[float]
    beside: list[float]
    each_bytes: float
    busy: float
    """Share of a core that the gateway was at work beside them."""
    looks: int
    """How often the gateway has looked through all of its memory for what is garbage, while everybody waited."""
    closed: int
    """Trickling connections that the gateway has closed."""


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


async def measured(folder: Path, beside: Beside, entries: int) -> Seen:
    """All of it in `folder`; each of the twenty is measured at so many entries, alone and beside the others."""
    count = entries * OTHERS
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(folder))
        await apply_streams(server.url)
        connection = await Connection.open(server.url, "bench")
        stack.push_async_callback(connection.close)
        log = TurnLog(connection)
        turns = [await long_answer(log) for _ in range(1 + (beside.silent + beside.dripping) // READERS_OF_ONE)]
        room = {f"TAILRACE_STREAMS_{name}": beside.count + 10 * OTHERS for name in ("MAX", "TENANT_MAX", "ADDRESS_MAX")}
        gateway = await stack.enter_async_context(processes.gateway(folder, server.url, **room))
        port = int(gateway.url.rpartition(":")[2])
        others = Others(log, port)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(others.watch())]
        await until(lambda: len(others.late()) >= 2 * count, 120)
        alone = others.late()[count:]
        # What the turns themselves cost, which their readers share.
        clients = [stack.enter_context(ask(port, turn)) for turn in turns]
        await until(lambda: all(map(has_come, clients)), 60)
        before = resident(gateway.pid)
        looks = await full_looks(gateway.url)
        trickling = Trickling(port, beside.trickling)
        tasks.append(group.create_task(trickling.go_on()))
        silent = await come(stack, port, turns, beside.silent)
        tasks.append(group.create_task(drip(await come(stack, port, turns, beside.dripping))))
        running = await streams(log, port, beside.streams)
        await until(lambda: trickling.open >= 0.9 * beside.trickling and all(map(has_come, silent)), 60)
        known, began, cpu_s = len(others.late()), time.perf_counter(), cpu(gateway.pid)
        await until(lambda: len(others.late()) >= known + count, 120)
        late, each = others.late()[known:], (resident(gateway.pid) - before) / max(beside.count, 1)
        busy = (cpu(gateway.pid) - cpu_s) / (time.perf_counter() - began)
        looks = await full_looks(gateway.url) - looks
        for task in tasks:
            task.cancel()
        for reader in running:
            reader.transport.close()
    return Seen(alone=alone, beside=late, each_bytes=each, busy=busy, looks=looks, closed=trickling.closed)


async def full_looks(url: str) -> int:
    """What a gateway tells of its collections of the oldest generation."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        told = (await client.get("/metrics")).text
    found = re.search(r'^python_gc_collections_total{generation="2"} (\d+)', told, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def come(stack: ExitStack | AsyncExitStack, port: int, turns: list[TurnKey], count: int) -> list[socket.socket]:
    """So many who have asked for a long answer, and have read nothing of it yet."""
    clients = []
    for number in range(count):
        clients.append(stack.enter_context(ask(port, turns[number % len(turns)])))
        if number % AT_ONCE == AT_ONCE - 1:
            await until(lambda: all(map(has_come, clients)), 60)
    return clients


async def drip(clients: list[socket.socket]) -> None:
    """Until it is cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        for client in clients:
            with suppress(BlockingIOError):
                client.recv(1, socket.MSG_DONTWAIT)


async def streams(log: TurnLog, port: int, count: int) -> list[Reader]:
    """So many readers of turns that run and say nothing."""
    key = TurnKey(LOCAL.tenant, TurnId(new_id()))
    await Writer(log, key).open("a")
    loop, path = asyncio.get_running_loop(), f"/v1/turns/{key.turn}/events"
    readers: list[Reader] = []
    for number in range(count):
        _, reader = await loop.create_connection(lambda: Reader(path, NOTHING, Seq(2**62)), "127.0.0.1", port)
        readers.append(reader)
        if number % AT_ONCE == AT_ONCE - 1:
            await until(lambda: all(one.status == 200 for one in readers), 60)
    await until(lambda: all(one.status == 200 for one in readers), 60)
    return readers


def ask(port: int, turn: TurnKey) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET /v1/turns/{turn.turn}/events HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return client


def has_come(client: socket.socket) -> bool:
    """Whether its kernel has something for it."""
    with suppress(BlockingIOError):
        return bool(client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False


async def long_answer(log: TurnLog) -> TurnKey:
    """8 MB, which nobody here will take."""
    key = TurnKey(LOCAL.tenant, TurnId(new_id()))
    writer = Writer(log, key)
    await writer.open()
    await writer.say(*["a" * 100_000] * 80)
    return key


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in Beside.__struct_fields__:
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--entries", type=int, default=400, help="at which the others are measured, each time")
    asked = vars(parser.parse_args())
    entries = asked.pop("entries")
    beside = Beside(**asked)
    with tempfile.TemporaryDirectory() as folder:
        seen = await measured(Path(folder), beside, entries)
    print(f"others wait, alone: {told(seen.alone)}")
    print(f"beside {asked}: {told(seen.beside)}; {seen.closed} trickling ones were closed")
    ratios = (percentile(seen.beside, percent) / percentile(seen.alone, percent) for percent in (50, 99))
    print("ratio: median {:.2f}, p99 {:.2f}".format(*ratios))
    print(f"gateway: {seen.busy:.0%} of a core, {seen.each_bytes / 1000:.0f} kB for each who is beside them,")
    print(f"and {seen.looks} times it looked through all of its memory")


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main())
