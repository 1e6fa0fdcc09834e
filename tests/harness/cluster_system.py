"""Turns that clients read while a test does something to a cluster, and the verdict on what they received."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import httpx2

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId, TurnKey, new_id
from tailrace.proto.nats import Rpc
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.proto.records import GetTurn, TurnRecord
from tests.harness import readers
from tests.harness.generator_in_loop import read_stats, words
from tests.harness.nats_cluster import Cluster
from tests.harness.sse_parser import SseEvent
from tests.harness.system import HEALED_S_MAX, System
from tests.harness.until import until
from tests.promises import ReaderConnection, Verdict, judge

EVERY_ATTEMPT = "turns.*.*.attempt"
QUERY_TIMEOUT_S = 10.0
HEARTBEAT_S = 1.0
# A client that waits longer for a response counts as hanging.
RESPONSE_S_MAX = 12.0


class PostResult(NamedTuple):
    """The response to a POST, and how long it took."""

    status: int
    took_s: float
    code: str
    retry_after: str | None


class Listener:
    """One connection to a turn's stream, with the times of its data."""

    def __init__(self, key: TurnKey, text: str) -> None:
        self.key = key
        self.text = text
        self.deltas_at: list[float] = []
        self.data_at: list[float] = []
        self.connected: ReaderConnection | None = None

    async def listen(self, client: httpx2.AsyncClient) -> None:
        async with client.stream("GET", f"/v1/turns/{self.key.turn}/events") as response:
            self.connected = await readers.receive(response, on_data=self._note_times)

    def _note_times(self, events: list[SseEvent]) -> None:
        self.data_at.append(monotonic())
        self.deltas_at += [monotonic() for sent in events if sent.data.startswith('{"type":"delta"')]

    def delta_pause_s(self, since: float) -> float:
        """Returns the longest time between two deltas that ended after `since`."""
        return longest_pause(self.deltas_at, since)

    def data_pause_s(self, since: float) -> float:
        """Returns the longest time between two pieces of data, including heartbeats, that ended after `since`."""
        return longest_pause(self.data_at, since)


def longest_pause(times: list[float], since: float) -> float:
    return max((after - before for before, after in itertools.pairwise(times) if after > since), default=0.0)


class ClusterSystem(System):
    """A system on three nats-servers. Each of its processes knows all servers and connects to a random one."""

    cluster: Cluster

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            servers=3,
            settings={"gateway": {"TAILRACE_HEARTBEAT_S": HEARTBEAT_S}},
            client_timeout_s=RESPONSE_S_MAX,
        )

    async def post(self, line: str, client: int = 0, **headers: str) -> tuple[PostResult, TurnKey | None]:
        began = monotonic()
        response = await self.clients[client].post("/v1/turns", json={"message": f"#sim {line}"}, headers=headers)
        took_s, body = monotonic() - began, response.json()
        if response.status_code == 202:
            return PostResult(202, took_s, "", None), TurnKey(LOCAL.access.tenant, TurnId(body["turn"]))
        retry_after = response.headers.get("retry-after")
        return PostResult(response.status_code, took_s, body["error"]["code"], retry_after), None

    @asynccontextmanager
    async def streaming(self, count: int, *, number: int, rate: int) -> AsyncIterator[list[Listener]]:
        """Runs turns of `number` words over all gateways. Leaving the context waits until all have ended."""
        async with asyncio.TaskGroup() as group:
            listeners = []
            for turn in range(count):
                tag = f"{new_id()[-6:]}-"
                gateway = turn % len(self.clients)
                _, key = await self.post(f"words={number} rate={rate} tag={tag}", gateway)
                assert key is not None
                listeners.append(Listener(key, words(number, tag)))
                group.create_task(listeners[-1].listen(self.clients[gateway]))
            for listener in listeners:
                await until(lambda listener=listener: listener.deltas_at)  # type: ignore[misc]
            yield listeners

    async def used_by(self, role: str) -> NatsServer:
        """Returns a server with connections of this role, which does not lead the log: another one leads it then."""
        counts = [(await self.connection_count(server, role), server) for server in self.servers]
        _, server = max(counts, key=lambda found: found[0])
        if await self.cluster.leader() is server:
            await self.cluster.step_down()
        return server

    async def connection_count(self, server: NatsServer, role: str) -> int:
        async with httpx2.AsyncClient(trust_env=False) as client:
            connections = (await client.get(f"http://127.0.0.1:{server.spec.monitor_port}/connz")).json()["connections"]
        return sum(one["name"] == f"tailrace-{role}" for one in connections)

    async def attempts(self) -> int:
        """Returns the number of attempts in the whole log."""
        reads, count, after = DirectReader(self.connection), 0, BEFORE_FIRST
        while messages := (await reads.page(EVERY_ATTEMPT, Seq(after + 1))).messages:
            count += len(messages)
            after = Seq(int((messages[-1].headers or {})["Nats-Sequence"]))
        return count

    async def calls(self) -> int:
        return (await read_stats(self.claude.url))["calls"]

    async def verdict(self, listener: Listener) -> tuple[Turn, Verdict]:
        """Returns the turn in the log, and the verdict on the promises about turns."""
        assert listener.connected is not None
        history_client = HistoryClient(Rpc(self.connection), QUERY_TIMEOUT_S)

        async def record() -> TurnRecord | None:
            # Persistence answers "try again" while its consumer has no leader or is behind.
            with suppress(Refused):
                return await history_client.query(Scope(listener.key.tenant, WHOLE), GetTurn(listener.key.turn))
            return None

        found = await until(record, HEALED_S_MAX)
        assert found is not None
        reader = readers.build_reader("listener", listener.key, listener.connected)
        history = await readers.read_history(self.log, listener.key, reader, records={listener.key: found})
        return await self.log.read_turn(ScopedKey.whole(listener.key)), judge(history)


@asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[ClusterSystem]:
    """Starts two gateways and two generators on three servers."""
    async with ClusterSystem(folder) as system:
        await system.start(generators=2, gateways=2)
        yield system
