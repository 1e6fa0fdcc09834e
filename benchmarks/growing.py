"""Scaling and a rolling restart under running turns: `python -m benchmarks.growing --turns 200`.

Generators go from 1 to 8 and back, gateways from 1 to 4 and back, then each process is restarted in the order of
docs/RUNBOOK.md. Turns run all the time, each with one reader. A reader behaves like EventSource: when its connection
ends, it waits for the time in `retry:` and reconnects with its last id. The promises about turns judge every reader.
"""

import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGTERM

import msgspec
import uvloop

from benchmarks.command_line import count, new_parser
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Rpc
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.records import GetTurn, TurnRecord
from tests.harness import processes
from tests.harness.event_source import EventSource
from tests.harness.generator_in_loop import read_stats
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.processes import Process
from tests.harness.readers import build_reader, read_history
from tests.harness.system import Settings, System
from tests.harness.until import until
from tests.promises import ReaderConnection, judge

# A generator may drain for longer than a turn takes, so no model call is repeated. One generator can run all turns.
SETTINGS: Settings = {
    "generator": {"TAILRACE_GRACE_S": 900, "TAILRACE_CONCURRENCY": 1000, "TAILRACE_TENANT_SHARE": 1},
    "gateway": {"TAILRACE_STREAMS_ADDRESS_MAX": 1000},
}
DRAINED_S_MAX = 300.0
RECORDED_S_MAX = 60.0
QUERY_TIMEOUT_S = 10.0
TABLE = (
    "| change | time | longest pause of a reader | longest time to the first word "
    "| streams resumed | POSTs | refused |\n"
    "|---|---|---|---|---|---|---|"
)


class Phase(msgspec.Struct):
    """A change, and what readers and clients saw during it."""

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
        self._source = EventSource(lambda: [system.clients[number] for number in self._rotation])
        self._rotation: list[int] = []
        """The gateways to which the proxy sends new connections."""
        self._read: list[tuple[TurnKey, tuple[ReaderConnection, ...]]] = []
        self._running: dict[int, asyncio.Task[None]] = {}
        self._is_over = False
        self._began = 0.0

    @property
    def posts(self) -> int:
        return sum(phase.posts for phase in self.phases)

    @property
    def refusals(self) -> list[str]:
        return [why for phase in self.phases for why in phase.refused]

    async def extra_calls(self) -> int:
        return (await read_stats(self.system.claude.url))["calls"] - len(self._read)

    async def run(self, generators: int, gateways: int) -> None:
        """Scales up to `generators` and `gateways` and back to one each, and then restarts each process."""
        await self.system.start()
        self._rotation = [0]
        async with asyncio.TaskGroup() as group:
            self._phase("one generator, one gateway")
            load = [group.create_task(self._keep_asking(number)) for number in range(self._turns)]
            await until(lambda: len(self._running) == self._turns, DRAINED_S_MAX)
            await self._end_of_turns()
            self._phase(f"generators 1 to {generators}")
            for _ in range(1, generators):
                await (await self.system.new_generator()).start()
            await self._end_of_turns()
            self._phase(f"generators {generators} to 1")
            await drain(*self.system.generators[1:])
            self._phase(f"gateways 1 to {gateways}")
            for number in range(1, gateways):
                await (await self.system.new_gateway()).start()
                self._rotation.append(number)
            await self._end_of_turns()
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

    async def _end_of_turns(self) -> None:
        """Waits until the turns that run now have ended."""
        await asyncio.wait(list(self._running.values()))

    async def _stop_gateway(self, number: int) -> None:
        self._rotation.remove(number)
        await drain(self.system.gateways[number])

    async def _keep_asking(self, number: int) -> None:
        await asyncio.sleep(random.uniform(0, self._over_s))
        for question in itertools.count():
            if self._is_over:
                return
            self._running[number] = asyncio.create_task(self._ask(f"{number}-{question}"))
            await self._running[number]

    async def _ask(self, name: str) -> None:
        """Posts a turn until it is accepted, and reads it to its end."""
        began = time.monotonic()
        self.phases[-1].posts += 1
        posted_in, cut_in = self.phases[-1], self.phases[-1]
        last_at: float | None = None
        is_cut = False

        def note_refused(why: str) -> None:
            nonlocal posted_in
            posted_in.refused.append(why)
            posted_in = self.phases[-1]
            posted_in.posts += 1

        def note_entry() -> None:
            nonlocal last_at, is_cut
            now, phase = time.monotonic(), cut_in if is_cut else self.phases[-1]
            is_cut = False
            if last_at is None:
                phase.first_s = max(phase.first_s, now - began)
            else:
                phase.pause_s = max(phase.pause_s, now - last_at)
            last_at = now

        def note_cut() -> None:
            nonlocal is_cut, cut_in
            is_cut, cut_in = True, cut_in if is_cut else self.phases[-1]
            cut_in.resumed += 1

        turn = await self._source.post(f"growing-{name}", f"{name}\n#sim {self._line}", note_refused)
        connections = await self._source.read(turn, note_entry, note_cut)
        self._read.append((TurnKey(LOCAL.access.tenant, turn), connections))

    async def _judge(self) -> None:
        await self.system.wait_until_settled()
        client = HistoryClient(Rpc(self.system.connection), QUERY_TIMEOUT_S)
        for number, (key, connections) in enumerate(self._read):

            async def record(key: TurnKey = key) -> TurnRecord | None:
                with suppress(Refused):
                    return await client.query(Scope(key.tenant, WHOLE), GetTurn(key.turn))
                return None

            found = await until(record, RECORDED_S_MAX)
            assert found is not None
            one = build_reader(f"reader {number}", key, *connections)
            verdict = judge(await read_history(self.system.log, key, one, records={key: found}))
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
    parser = new_parser(__doc__)
    parser.add_argument("--turns", type=count, default=200)
    parser.add_argument("--seconds", type=count, default=60, help="duration of a turn")
    parser.add_argument("--rate", type=count, default=2, help="words a second")
    parser.add_argument("--generators", type=count, default=8)
    parser.add_argument("--gateways", type=count, default=4)
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
    print(*(f"{times} times: {why}" for why, times in Counter(growing.refusals).items()), sep="\n")
    print(
        f"{growing.posts} POSTs, {len(growing.refusals)} refused; model calls beyond one for each turn: {extra}; "
        f"promises broken: {len(growing.broken)}"
    )
    return 1 if growing.broken else 0


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
