"""Time until readers of a killed gateway have resumed at another: `python -m benchmarks.resumed --readers 200`.

Readers behave like EventSource: after a disconnect they wait for the time in `retry:` and reconnect with their last id.
The time is from the kill until a reader has the next entry of its turn, which is still being written. A reader must
receive every entry of its turn once, in order.
"""

import asyncio
import re
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL

import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.latencies import describe_latencies
from benchmarks.log_server import running_log
from benchmarks.storm import Reader
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.readers import read_all_entries, render_frames
from tests.harness.turn_writer import Writer

TURNS = 10
WRITTEN_EVERY_S = 0.25
RETRY = re.compile(rb"retry: (\d+)\n")


class Resuming(Reader):
    """One connection. Records when its first entry came, and how long to wait before the next connection.

    Not tailrace.AsyncClient, which chooses its waits itself: this measures the waits in the gateway's `retry:` lines.
    """

    def __init__(self, path: str, cursor: Seq) -> None:
        super().__init__(path, cursor, Seq(2**62))
        self.retry_s = 0.0
        self.first_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if found := RETRY.search(data):
            self.retry_s = int(found[1]) / 1000
        super().data_received(data)
        if self.ids and not self.first_at.done():
            self.first_at.set_result(time.perf_counter())


async def main(readers: int) -> int:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, connection = await stack.enter_async_context(running_log(folder))
        log = TurnLog(connection)
        gateways = [await stack.enter_async_context(processes.gateway(folder, server.url)) for _ in range(2)]
        ports = [int(gateway.url.rpartition(":")[2]) for gateway in gateways]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        turns = [TurnKey(LOCAL.access.tenant, TurnId(new_id())) for _ in range(TURNS)]
        writing = [group.create_task(write(log, turn)) for turn in turns]
        await asyncio.sleep(1)
        paths = [f"/v1/turns/{turns[number % TURNS].turn}/events" for number in range(readers)]
        firsts = [await connect(ports[0], path, BEFORE_FIRST) for path in paths]
        await asyncio.wait_for(asyncio.gather(*(reader.first_at for reader in firsts)), 60)
        killed_at = time.perf_counter()
        gateways[0].signal(SIGKILL)
        seconds = await asyncio.gather(*(come_back(ports[1], *pair) for pair in zip(paths, firsts, strict=True)))
        for task in writing:
            task.cancel()
        took = [second.first_at.result() - killed_at for second in seconds]
        shown = [[frame.seq for frame in render_frames(key, await read_all_entries(log, key))] for key in turns]
        received = [first.ids + second.ids for first, second in zip(firsts, seconds, strict=True)]
        wrong = sum(ids != shown[number % TURNS][: len(ids)] for number, ids in enumerate(received))
        for second in seconds:
            second.transport.close()
    print(
        f"{readers} readers of a gateway that was killed; each has the next entry after: {describe_latencies(took)}; "
        f"with a gap or a repeat: {wrong}"
    )
    return 1 if wrong else 0


async def connect(port: int, path: str, cursor: Seq) -> Resuming:
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(lambda: Resuming(path, cursor), "127.0.0.1", port)
    return reader


async def come_back(port: int, path: str, first: Resuming) -> Resuming:
    await first.done
    await asyncio.sleep(first.retry_s)
    second = await connect(port, path, Seq(first.ids[-1]))
    await asyncio.wait_for(second.first_at, 30)
    return second


async def write(log: TurnLog, turn: TurnKey) -> None:
    """Says a word again and again, until it is cancelled."""
    writer = Writer(log, turn)
    await writer.open()
    while True:
        await writer.store_texts("word ")
        await asyncio.sleep(WRITTEN_EVERY_S)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--readers", type=count, default=200)
    sys.exit(uvloop.run(main(parser.parse_args().readers)))
