"""Readers that do not read, and what others feel: `python -m tests.bench.slow --silent 200`. One gateway, a process.

Twenty read a turn that is being written, alone and then beside others that have each asked for an answer of 8 MB and
take nothing of it. Printed is how late the twenty get each entry, and what each of the silent costs in memory.
"""

import argparse
import asyncio
import socket
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from deploy.nats_server import NatsServer
from gateway.door.auth import LOCAL
from proto.ids import TurnId, new_id
from proto.log import Connection, TurnLog
from proto.subjects import TurnKey
from tests import processes
from tests.bench.storm import OTHERS, Others, resident, told
from tests.conftest import apply_streams
from tests.until import until
from tests.writing import Writer

TURNS = 10
LATE_COUNT = 200 * OTHERS


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--silent", type=int, default=200, help="readers that do not read")
    silent = parser.parse_args().silent
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await stack.enter_async_context(NatsServer(folder))
        await apply_streams(server.url)
        connection = await Connection.open(server.url, "bench")
        stack.push_async_callback(connection.close)
        log = TurnLog(connection)
        turns = [await long_answer(log) for _ in range(TURNS)]
        gateway = await stack.enter_async_context(processes.gateway(folder, server.url))
        port = int(gateway.url.rpartition(":")[2])
        others = Others(log, port)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        watching = group.create_task(others.watch())
        await until(lambda: len(others.late()) >= 2 * LATE_COUNT, 120)
        alone = others.late()[LATE_COUNT:]
        # What the turns themselves cost, which their readers share.
        for turn in turns:
            stack.enter_context(ask(port, turn))
        await asyncio.sleep(2)
        before = resident(gateway.pid)
        for number in range(silent):
            stack.enter_context(ask(port, turns[number % TURNS]))
        await asyncio.sleep(2)
        known = len(others.late())
        await until(lambda: len(others.late()) >= known + LATE_COUNT, 120)
        beside, each = others.late()[known:], (resident(gateway.pid) - before) / silent
        watching.cancel()
    print(f"others wait, alone: {told(alone)}")
    print(f"beside {silent} that do not read: {told(beside)}")
    print(f"gateway: {each / 1000:.0f} kB for each that does not read")


def ask(port: int, turn: TurnKey) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET /v1/turns/{turn.turn}/events HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return client


async def long_answer(log: TurnLog) -> TurnKey:
    """8 MB, which nobody here will take."""
    key = TurnKey(LOCAL.tenant, TurnId(new_id()))
    writer = Writer(log, key)
    await writer.open()
    await writer.say(*["a" * 100_000] * 80)
    return key


if __name__ == "__main__":
    uvloop.run(main())
