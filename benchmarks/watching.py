"""Cost of generators that watch one another: `python -m benchmarks.watching`.

So many watchers, each with a connection of its own and with as many deliveries, of which one in ten changes each
second, run in one process beside one nats-server. Prints, for each watcher and second, the messages that nats-server
receives and sends, and the CPU time of the watchers and of nats-server.
"""

import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.log_server import running_log
from benchmarks.process_usage import cpu_s
from tailrace.generators.peer_watch import PeerWatch
from tailrace.proto.ids import new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.peers import PeerLink
from tailrace.proto.subjects import GENERATORS
from tests.harness.processes import as_user

NUMBERS = (1, 3, 30)
SETTLED_S = 5.0


class Deliveries:
    """The deliveries that one generator holds."""

    def __init__(self, turns: int) -> None:
        self._numbers = itertools.count(1)
        self._held = [self._new() for _ in range(turns)]

    def _new(self) -> Any:
        number = next(self._numbers)
        key = SimpleNamespace(tenant="tenant", turn=new_id())
        return SimpleNamespace(key=key, ack_subject=f"$JS.ACK.TURNS.generators.1.{number}.{number}.{time.time_ns()}.0")

    def deliveries(self) -> list[Any]:
        return self._held

    async def change(self) -> None:
        """Replaces a tenth of them each second."""
        while True:
            await asyncio.sleep(1)
            tenth = -(-len(self._held) // 10)
            self._held = [*self._held[tenth:], *(self._new() for _ in range(tenth))]


async def measure(generators: int, turns: int, seconds: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        async with running_log(Path(folder)) as (nats, admin), asyncio.TaskGroup() as group:
            connections, tasks = [], []
            for number in range(generators):
                connection = await Connection.open(as_user(nats.url, GENERATORS), "watcher")
                name, held = f"generator-{number}", Deliveries(turns)
                watch = PeerWatch(PeerLink(connection, name), name, TurnLog(admin), held)  # type: ignore[arg-type]
                connections.append(connection)
                tasks += [group.create_task(watch.run()), group.create_task(held.change())]
            await asyncio.sleep(SETTLED_S)
            before = await _state(nats)
            await asyncio.sleep(seconds)
            after = await _state(nats)
            for task in tasks:
                task.cancel()
            for connection in connections:
                await connection.close()
    received, sent, own_s, server_s = (
        (end - begin) / seconds / generators for begin, end in zip(before, after, strict=True)
    )
    return (
        f"{generators} generators with {turns} deliveries; each second and generator: {received:.1f} messages to "
        f"nats-server, {sent:.1f} back; {1000 * own_s:.2f} ms of CPU in the watcher, {1000 * server_s:.2f} in it"
    )


async def _state(nats: Any) -> tuple[float, float, float, float]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        varz = (await client.get(f"http://127.0.0.1:{nats.spec.monitor_port}/varz")).json()
    return varz["in_msgs"], varz["out_msgs"], time.process_time(), cpu_s(nats.pid)


async def main(turns: int, seconds: float) -> None:
    for generators in NUMBERS:
        print(await measure(generators, turns, seconds), flush=True)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--turns", type=count, default=20, help="deliveries that each generator holds")
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    uvloop.run(main(given.turns, given.seconds))
