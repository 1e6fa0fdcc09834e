"""The whole system on three nats-servers, with turns that are being read while something is done to the servers.

Everything is a process of its own. What was seen is told as figures and as what the promises judge; it judges nothing.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from signal import SIGCONT
from time import monotonic
from typing import NamedTuple

import httpx2

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId, new_id
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import TurnKey
from tests.harness import processes, readers
from tests.harness.generator_in_loop import stats, words
from tests.harness.nats_cluster import Cluster
from tests.harness.processes import Process
from tests.harness.sse_parser import EventStream, Sent
from tests.harness.until import until
from tests.promises import Connected, Verdict, judge

GATEWAYS = GENERATORS = 2
HEARTBEAT_S = 1.0
EVERY_ATTEMPT = "turns.*.*.attempt"
QUERY_TIMEOUT_S = 10.0
HEAL_S_MAX = 30.0
# Nobody waits longer for an answer: this is a hang.
ANSWER_S_MAX = 12.0


class Posted(NamedTuple):
    """One POST: what came of it, and after how long."""

    status: int
    took_s: float
    code: str
    retry_after: str | None


class Listener:
    """One connection to a turn's stream, from its beginning to its end, and when what of it came."""

    def __init__(self, key: TurnKey, text: str) -> None:
        self.key = key
        self.text = text
        self.deltas_at: list[float] = []
        self.anything_at: list[float] = []
        self.connected: Connected | None = None

    async def listen(self, client: httpx2.AsyncClient) -> None:
        stream, events = EventStream(), list[Sent]()
        async with client.stream("GET", f"/v1/turns/{self.key.turn}/events") as response:
            assert response.status_code == 200, await response.aread()
            try:
                async for received in response.aiter_raw():
                    self.anything_at.append(monotonic())
                    found = stream.feed(received)
                    events += found
                    self.deltas_at += [monotonic() for sent in found if sent.data.startswith('{"type":"delta"')]
            except httpx2.RemoteProtocolError:
                pass
        is_ended = bool(events) and events[-1].data.startswith(readers.ENDS)
        self.connected = Connected(BEFORE_FIRST, tuple(readers.frames(events)), "ended" if is_ended else "cut")

    def silence_s(self, since: float) -> float:
        """The longest time without a delta that lasted until after `since`."""
        return longest(self.deltas_at, since)

    def stillness_s(self, since: float) -> float:
        """The longest time without a byte, heartbeats too."""
        return longest(self.anything_at, since)


def longest(times: list[float], since: float) -> float:
    return max((after - before for before, after in itertools.pairwise(times) if after > since), default=0.0)


class System:
    """`gateways` and `generators` know all three servers, and each is connected to one that it has drawn."""

    def __init__(self, cluster: Cluster, claude: Process, gateways: list[Process], generators: list[Process]) -> None:
        self.cluster = cluster
        self.claude = claude
        self.gateways = gateways
        self.generators = generators
        self.clients = [httpx2.AsyncClient(base_url=one.url, timeout=ANSWER_S_MAX, trust_env=False) for one in gateways]
        self.log = TurnLog(cluster.connection)
        self._reads = DirectReader(cluster.connection)
        self.history = HistoryClient(Rpc(cluster.connection), QUERY_TIMEOUT_S)

    async def post(self, line: str, client: int = 0, **headers: str) -> tuple[Posted, TurnKey | None]:
        began = monotonic()
        answer = await self.clients[client].post("/v1/turns", json={"message": f"#sim {line}"}, headers=headers)
        took_s, told = monotonic() - began, answer.json()
        if answer.status_code == 202:
            return Posted(202, took_s, "", None), TurnKey(LOCAL.tenant, TurnId(told["turn"]))
        error = told["error"]["code"]
        return Posted(answer.status_code, took_s, error, answer.headers.get("retry-after")), None

    @asynccontextmanager
    async def telling(self, count: int, *, number: int, rate: int) -> AsyncIterator[list[Listener]]:
        """Turns of `number` words that are being told, over both gateways; at the end of the block all have ended."""
        async with asyncio.TaskGroup() as group:
            listeners = []
            for turn in range(count):
                tag = f"{new_id()[-6:]}-"
                _, key = await self.post(f"words={number} rate={rate} tag={tag}", turn % GATEWAYS)
                assert key is not None
                listeners.append(Listener(key, words(number, tag)))
                group.create_task(listeners[-1].listen(self.clients[turn % GATEWAYS]))
            for listener in listeners:
                await until(lambda listener=listener: listener.deltas_at)  # type: ignore[misc]
            yield listeners

    async def heal(self) -> None:
        """Returns when all three servers run and have everything."""
        for node in self.cluster.nodes:
            if node.process.returncode is not None:
                await node.start()
            node.signal(SIGCONT)
        await until(self.cluster.is_whole, HEAL_S_MAX)

    async def used_by(self, role: str) -> NatsServer:
        """A server that does not lead the log, and that a process of that role has its connection to."""
        counts = [(await self.connected_to(node, role), node) for node in self.cluster.nodes]
        _, node = max(counts, key=lambda found: found[0])
        if await self.cluster.leader() is node:
            await self.cluster.step_down()
        return node

    async def connected_to(self, node: NatsServer, role: str) -> int:
        """How many processes of that role have their connection to this server."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            told = (await client.get(f"http://127.0.0.1:{node.spec.monitor_port}/connz")).json()
        return sum(one["name"] == f"tailrace-{role}" for one in told["connections"])

    async def attempts(self) -> int:
        """How often a generator has taken a turn, of all that there are: also one that nobody was told is stored."""
        count, after = 0, BEFORE_FIRST
        while messages := (await self._reads.page(EVERY_ATTEMPT, Seq(after + 1))).messages:
            count += len(messages)
            after = Seq(int((messages[-1].headers or {})["Nats-Sequence"]))
        return count

    async def calls(self) -> int:
        return (await stats(self.claude.url))["calls"]

    async def ended(self, key: TurnKey) -> Turn:
        """The turn, once the log has its end."""

        async def turn() -> Turn | None:
            with suppress(LogUnavailable):
                found = await self.log.turn(key)
                return found if found.end is not None else None
            return None

        found = await until(turn, HEAL_S_MAX)
        assert found is not None
        return found

    async def _record(self, key: TurnKey) -> TurnRecord | None:
        # Its own consumer may have just lost its leader, or have one that has not caught up: it says "try again".
        with suppress(Refused):
            return await self.history.ask(key.tenant, GetTurn(key.turn))
        return None

    async def verdict(self, listener: Listener) -> tuple[Turn, Verdict]:
        """The turn as the log has it, and what the five promises say of it."""
        assert listener.connected is not None
        record = await until(lambda: self._record(listener.key), HEAL_S_MAX)
        assert record is not None
        seen = readers.reader("there", listener.key, listener.connected)
        history = await readers.history(self.log, listener.key, seen, records={listener.key: record})
        return await self.log.turn(listener.key), judge(history)


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[System]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(folder, sync="always"))
        claude = await stack.enter_async_context(processes.simulated_claude(folder))
        generators = [
            processes.generator(folder, cluster.url, claude.url, TAILRACE_GENERATOR=f"g{number}")
            for number in range(GENERATORS)
        ]
        gateways = [processes.gateway(folder, cluster.url, TAILRACE_HEARTBEAT_S=HEARTBEAT_S) for _ in range(GATEWAYS)]
        persistence = processes.persistence(folder, cluster.url)
        await asyncio.gather(*(stack.enter_async_context(one) for one in (*generators, *gateways, persistence)))
        system = System(cluster, claude, gateways, generators)
        for client in system.clients:
            await stack.enter_async_context(client)
        yield system
