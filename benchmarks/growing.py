"""Scaling and a rolling restart under running turns: `python -m benchmarks.growing --turns 200`.

Generators go from 1 to 8 and back, gateways from 1 to 4 and back, then each process is restarted in the order of
docs/RUNBOOK.md. Turns run all the time, each with one reader. A reader behaves like EventSource: when its connection
ends, it waits for the time in `retry:` and reconnects with its last id. Every reader is judged by the five promises.
"""

import argparse
import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGTERM

import httpx2
import msgspec
import uvloop

from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import Refused
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId
from tailrace.proto.nats import Rpc
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import TurnKey
from tests.harness import processes
from tests.harness.generator_in_loop import stats
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.processes import Process
from tests.harness.readers import ENDS, frames, history, reader
from tests.harness.sse_parser import EventStream, Sent
from tests.harness.system import Settings, System
from tests.harness.until import until
from tests.promises import Connected, judge

# Longer than a turn: a draining generator makes no further call. One generator holds all turns.
SETTINGS: Settings = {
    "generator": {"TAILRACE_GRACE_S": 900, "TAILRACE_CONCURRENCY": 1000, "TAILRACE_TENANT_SHARE": 1},
    "gateway": {"TAILRACE_STREAMS_ADDRESS_MAX": 1000},
}
DRAINED_S_MAX = 300.0
RECORDED_S_MAX = 60.0
QUERY_TIMEOUT_S = 10.0
RETRY_MS = 500
TABLE = (
    "| change | time | longest pause of a reader | longest time to the first word "
    "| streams resumed | POSTs | refused |\n"
    "|---|---|---|---|---|---|---|"
)


class Phase(msgspec.Struct):
    """What readers and clients have seen while something was changed."""

    name: str
    took_s: float = 0.0
    pause_s: float = 0.0
    """The longest time between two entries of a reader."""
    first_s: float = 0.0
    """The longest time from a POST to its first entry."""
    resumed: int = 0
    posts: int = 0
    refused: list[str] = msgspec.field(default_factory=list)


class ScalingRun:
    """A running system, its load, and the results."""

    def __init__(self, system: System, turns: int, line: str, *, over_s: float = 0.0) -> None:
        """`line` is the directive of each turn. The first turns are posted over `over_s` seconds."""
        self.system = system
        self.phases: list[Phase] = []
        self.broken: list[str] = []
        self._turns = turns
        self._line = line
        self._over_s = over_s
        self._rotation: list[int] = []
        """The gateways to which the proxy sends new connections."""
        self._read: list[tuple[TurnKey, tuple[Connected, ...]]] = []
        self._running: dict[int, asyncio.Task[None]] = {}
        self._is_over = False
        self._began = 0.0

    @property
    def posts(self) -> int:
        return sum(phase.posts for phase in self.phases)

    @property
    def refused(self) -> list[str]:
        return [why for phase in self.phases for why in phase.refused]

    async def extra_calls(self) -> int:
        return (await stats(self.system.claude.url))["calls"] - len(self._read)

    async def run(self, generators: int, gateways: int) -> None:
        """Scales up to so many processes and back to one, and restarts all."""
        await self.system.start()
        self._rotation = [0]
        async with asyncio.TaskGroup() as group:
            self._phase("one generator, one gateway")
            load = [group.create_task(self._keep_asking(number)) for number in range(self._turns)]
            await until(lambda: len(self._running) == self._turns, DRAINED_S_MAX)
            await self._turn_over()
            self._phase(f"generators 1 to {generators}")
            for _ in range(1, generators):
                await (await self.system.new_generator()).start()
            await self._turn_over()
            self._phase(f"generators {generators} to 1")
            await drain(*self.system.generators[1:])
            self._phase(f"gateways 1 to {gateways}")
            for number in range(1, gateways):
                await (await self.system.new_gateway()).start()
                self._rotation.append(number)
            await self._turn_over()
            self._phase(f"gateways {gateways} to 1")
            for number in range(1, gateways):
                await self._stop_gateway(number)
            self._phase("restart of persistence")
            await drain(self.system.persistence)
            await self.system.persistence.start()
            self._phase("restart of the generator")
            # A spare takes the queue, as with `tailrace restart`.
            first, spare = self.system.generators[:2]
            await spare.start()
            await drain(first)
            await first.start()
            await drain(spare)
            self._phase("restart of the gateway")
            await self.system.gateways[1].start()
            self._rotation.append(1)
            await self._stop_gateway(0)
            await self.system.gateways[0].start()
            self._rotation.append(0)
            await self._stop_gateway(1)
            self._phase("all turns end")
            self._is_over = True
            await asyncio.gather(*load)
            self.phases[-1].took_s = time.monotonic() - self._began
        await self._judge()

    def _phase(self, name: str) -> None:
        now = time.monotonic()
        if self.phases:
            self.phases[-1].took_s = now - self._began
        self._began = now
        self.phases.append(Phase(name))

    async def _turn_over(self) -> None:
        """Returns when the turns that run now have ended."""
        await asyncio.wait(list(self._running.values()))

    async def _stop_gateway(self, number: int) -> None:
        self._rotation.remove(number)
        await drain(self.system.gateways[number])

    async def _keep_asking(self, number: int) -> None:
        await asyncio.sleep(random.uniform(0, self._over_s))
        for count in itertools.count():
            if self._is_over:
                return
            self._running[number] = asyncio.create_task(self._ask(f"{number}-{count}"))
            await self._running[number]

    async def _ask(self, name: str) -> None:
        """Posts a turn until it is accepted, and reads it to its end."""
        began = time.monotonic()
        turn = ""
        while not turn:
            turn = await self._post(name)
        key = TurnKey(LOCAL.tenant, TurnId(turn))
        connections: list[Connected] = []
        last_at: float | None = None
        cut_in: Phase | None = None

        def note_entry() -> None:
            nonlocal last_at, cut_in
            now, phase = time.monotonic(), cut_in or self.phases[-1]
            cut_in = None
            if last_at is None:
                phase.first_s = max(phase.first_s, now - began)
            else:
                phase.pause_s = max(phase.pause_s, now - last_at)
            last_at = now

        while not connections or connections[-1].over != "ended":
            cursor = next((one.frames[-1].seq for one in reversed(connections) if one.frames), BEFORE_FIRST)
            events, is_ended = await self._connect(turn, cursor, note_entry)
            connections.append(Connected(cursor, tuple(frames(events)), "ended" if is_ended else "cut"))
            if not is_ended:
                cut_in = cut_in or self.phases[-1]
                cut_in.resumed += 1
                retry_ms = next((event.retry_ms for event in events if event.retry_ms is not None), RETRY_MS)
                await asyncio.sleep(retry_ms / 1000)
        self._read.append((key, tuple(connections)))

    async def _connect(self, turn: str, cursor: Seq, note_entry: Callable[[], None]) -> tuple[list[Sent], bool]:
        """Reads one connection to its end; returns its events, and whether they have the turn's end.

        Not with tailrace.AsyncClient, which joins connections: the judge checks the frames of each.
        """
        events: list[Sent] = []
        headers = {"last-event-id": str(cursor)} if cursor else {}
        with suppress(httpx2.HTTPError):
            async with self._client().stream("GET", f"/v1/turns/{turn}/events", headers=headers) as response:
                if response.status_code != 200:
                    return events, response.status_code == 204
                stream = EventStream()
                async for received in response.aiter_raw():
                    new = stream.feed(received)
                    events += new
                    if any(event.id is not None for event in new):
                        note_entry()
        return events, bool(events) and events[-1].data.startswith(ENDS)

    async def _post(self, name: str) -> str:
        phase = self.phases[-1]
        phase.posts += 1
        try:
            headers = {"idempotency-key": f"growing-{name}-{'k' * 16}"}
            body = {"message": f"{name}\n#sim {self._line}"}
            response = await self._client().post("/v1/turns", json=body, headers=headers)
        except httpx2.HTTPError as error:
            phase.refused.append(repr(error))
        else:
            if response.status_code == 202:
                return str(response.json()["turn"])
            phase.refused.append(f"{response.status_code} {response.text}")
        await asyncio.sleep(RETRY_MS / 1000)
        return ""

    def _client(self) -> httpx2.AsyncClient:
        return self.system.clients[random.choice(self._rotation)]

    async def _judge(self) -> None:
        await self.system.settled()
        client = HistoryClient(Rpc(self.system.connection), QUERY_TIMEOUT_S)
        for number, (key, connections) in enumerate(self._read):

            async def record(key: TurnKey = key) -> TurnRecord | None:
                with suppress(Refused):
                    return await client.ask(key.tenant, GetTurn(key.turn))
                return None

            found = await until(record, RECORDED_S_MAX)
            assert found is not None
            one = reader(f"reader {number}", key, *connections)
            verdict = judge(await history(self.system.log, key, one, records={key: found}))
            if not verdict.is_green:
                self.broken.append(verdict.evidence)


async def drain(*running: Process) -> None:
    """Sends SIGTERM to processes; returns when they have ended."""
    for process in running:
        process.signal(SIGTERM)
    await until(lambda: all(process.is_gone for process in running), DRAINED_S_MAX)


def describe(phase: Phase) -> str:
    return (
        f"| {phase.name} | {phase.took_s:.0f} s | {phase.pause_s:.2f} s | {phase.first_s:.2f} s | {phase.resumed} "
        f"| {phase.posts} | {len(phase.refused)} |"
    )


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60, help="of a turn")
    parser.add_argument("--rate", type=int, default=2, help="words a second")
    parser.add_argument("--generators", type=int, default=8)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--postgresql", action="store_true", help="the database is a PostgreSQL server")
    given = parser.parse_args()
    # A busy machine starts a process slowly.
    processes.START_S_MAX = DRAINED_S_MAX
    line = f"words={given.seconds * given.rate} rate={given.rate}"
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            url = ""
            if given.postgresql:
                url = await (await stack.enter_async_context(PostgreSQLServer())).new_database()
            system = System(Path(folder), sync="default", settings=SETTINGS, launch=Process, database_url=url)
            growing = ScalingRun(await stack.enter_async_context(system), given.turns, line, over_s=given.seconds)
            await growing.run(given.generators, given.gateways)
            extra = await growing.extra_calls()
    print(TABLE, *map(describe, growing.phases), sep="\n")
    print(*growing.broken, sep="\n")
    print(*(f"{count} times: {why}" for why, count in Counter(growing.refused).items()), sep="\n")
    print(
        f"{growing.posts} POSTs, {len(growing.refused)} refused; model calls beyond one for each turn: {extra}; "
        f"promises broken: {len(growing.broken)}"
    )
    return 1 if growing.broken else 0


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
