"""The whole system as processes, recorded, with a link between any two of them. Breaks nothing and judges nothing.

What dies is started again, as `up` does it; nats-servers are for whoever ended them to start.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import httpx2
import msgspec

from tailrace.deploy.local import nats_cluster, nats_server, ports
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import new_id
from tailrace.proto.nats import Connection, Deliveries, streams
from tailrace.proto.nats.permissions import GATEWAY
from tailrace.proto.subjects import PERSISTENCE
from tests.chaos.clock import Clock
from tests.chaos.link import Link
from tests.checker.census import held_by
from tests.checker.client import Client
from tests.checker.house import House
from tests.checker.recorded import recorded
from tests.harness import processes
from tests.harness.disk import MIB, can_mount, small_disk
from tests.harness.generator_in_loop import shorten_lease
from tests.harness.nats_cluster import Cluster
from tests.harness.processes import Process, as_user
from tests.harness.until import until

LOG_BYTES = 256 * MIB
# What a dozen turns at once write a minute.
LOG_BYTES_A_MINUTE = 10 * MIB
# The rows are a tenth of the log, and what was damaged last stays beside them; a small disk is filled in a moment.
DATABASE_SHARE = 1 / 4
# Generators die faster here than anywhere else: a turn may need many of them, and none is to be given up.
ATTEMPTS_MAX = 100
# What is silent is noticed soon: a link that swallows, a model that stalls.
GENERATOR = {"TAILRACE_STALL_TIMEOUT_S": 3, "TAILRACE_CONNECT_TIMEOUT_S": 3}
CLIENT_TIMEOUT_S = 8.0
BACK_S_MAX = 120.0

Ends = Literal["client", "log", "route", "model"]
"""What a link joins: clients and a gateway, a process and a nats-server, two of those, a generator and Claude."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything there is."""

    nodes: Literal[1, 3] = 3
    gateways: int = 2
    generators: int = 2
    lease_s: float = streams.GENERATOR_ACK_WAIT_S
    hedge_after_s: float = 0.0
    log_bytes: int = LOG_BYTES

    @property
    def hedges(self) -> int:
        """How many calls more than without it a turn may have."""
        return int(self.hedge_after_s > 0)


class Memory(NamedTuple):
    """What a process holds, in which of its lives."""

    pid: int
    rss_bytes: int


class Joined(NamedTuple):
    """A link, and the process whose link it is; None: it joins two nats-servers."""

    link: Link
    process: Process | None


class System(House):
    """What runs, what joins it, and what can be done to it."""

    cluster: Cluster | None = None
    nodes: list[NatsServer]
    links: dict[Ends, list[Joined]]
    clocks: dict[Process, Clock]
    claude: Process
    disk: Path | None = None
    """Where the last nats-server's store is, if that has a disk of its own."""

    def is_up(self, process: Process) -> bool:
        return not process.is_gone and bool(process.url)

    async def back(self, process: Process) -> None:
        """Returns when it is ready again; whoever keeps it starts it."""
        await until(lambda: self.is_up(process), BACK_S_MAX)

    def name(self, process: Process) -> str:
        """A generator's name in the log; of others, what they are."""
        if process in self.generators:
            told = process.said("ready")
            return str(told[-1]["generator"]) if told else ""
        return "persistence" if process is self.persistence else f"gateway-{self.gateways.index(process)}"

    @property
    def database(self) -> Path:
        return self.folder / "database" / "tailrace.db"

    @property
    def pids(self) -> dict[str, int]:
        named = {f"generator-{number}": one for number, one in enumerate(self.generators)}
        named |= {self.name(one): one for one in (*self.gateways, self.persistence)}
        return {name: process.pid for name, process in named.items()}

    @property
    def servers(self) -> list[NatsServer]:
        return self.nodes

    async def calm(self) -> None:
        """Turns of one word by each gateway, until each generator has had one: what is made when it is first needed
        is there then, and what was kept for later and is none any more is missed."""
        clients = [Client(self.folder, f"calm {new_id()}", [one], LOCAL.tenant) for one in self.http]
        served: set[Process] = set()
        while len(served) < len(self.generators):
            for client in clients:
                key = await client.ask(f"#sim words=1 tag={new_id()[-6:]}")
                if key is not None:
                    await client.read_on(key)
                    served.add((await self.holder(key))[1])
        for client in clients:
            client.close()

    def memory(self) -> dict[str, Memory]:
        """Of all that runs."""
        pids = self.pids | {node.spec.name: node.pid for node in self.nodes} | {"simulated Claude": self.claude.pid}
        return {name: Memory(pid, held_by(pid)["rss_bytes"]) for name, pid in pids.items()}


@asynccontextmanager
async def started(folder: Path, size: Size) -> AsyncIterator[System]:
    """Everything in `folder` and on free ports; ended, however the block ends."""
    async with AsyncExitStack() as stack:
        nodes, cluster, routes, disk = await _nodes(stack, folder, size)
        connection = await Connection.open(",".join(node.url for node in nodes), "chaos")
        stack.push_async_callback(connection.close)
        await shorten_lease(connection, size.lease_s)
        claude = await stack.enter_async_context(processes.simulated_claude(folder))
        system = System(folder, nodes[0], connection, claude.url)
        system.nodes, system.cluster, system.disk, system.claude = nodes, cluster, disk, claude
        system.links = {"client": [], "log": [], "route": [Joined(link, None) for link in routes], "model": []}
        system.clocks = {}
        system._recording = await Deliveries.open(connection, PERSISTENCE)
        system.nemesis("clock").clock()
        system.database.parent.mkdir()
        if can_mount():
            stack.enter_context(small_disk(system.database.parent, int(DATABASE_SHARE * size.log_bytes)))
        await _parts(stack, system, size)
        yield system


async def _nodes(
    stack: AsyncExitStack, folder: Path, size: Size
) -> tuple[list[NatsServer], Cluster | None, list[Link], Path | None]:
    """Nats-servers with all streams, of three also what joins them; the last has its own disk, if root mounts it."""
    # Requests' pictures and all counters have their share, too.
    file_bytes_max, disk_bytes = 4 * size.log_bytes, size.log_bytes * 3 // 2
    if size.nodes == 1:
        spec = nats_server.new_spec(folder, sync="always", file_bytes_max=file_bytes_max)
        disk = _disk(stack, spec.store, disk_bytes)
        server = await stack.enter_async_context(NatsServer(folder, spec=spec))
        connection = await Connection.open(server.url, "chaos-streams")
        await streams.apply(connection, bytes_max=size.log_bytes)
        await connection.close()
        return [server], None, [], disk
    specs, routes = nats_cluster.new_specs(folder, sync="always", file_bytes_max=file_bytes_max), list[Link]()
    names = {spec.member.port: spec.name for spec in specs if spec.member}
    for number, spec in enumerate(specs):
        assert spec.member is not None
        ways = [
            await stack.enter_async_context(Link(f"{spec.name} > {names[other]}", other))
            for other in spec.member.others
        ]
        routes += ways
        member = msgspec.structs.replace(spec.member, others=tuple(way.port for way in ways))
        specs[number] = msgspec.structs.replace(spec, member=member)
    cluster = Cluster(folder, specs=specs, bytes_max=size.log_bytes)
    disk = _disk(stack, specs[-1].store, disk_bytes)
    await stack.enter_async_context(cluster)
    return cluster.nodes, cluster, routes, disk


def _disk(stack: AsyncExitStack, store: Path, disk_bytes: int) -> Path | None:
    store.mkdir(parents=True, exist_ok=True)
    if not can_mount():
        return None
    stack.enter_context(small_disk(store, disk_bytes))
    return store


async def _parts(stack: AsyncExitStack, system: System, size: Size) -> None:
    """The processes between, each behind links of its own."""

    async def join(ends: Ends, name: str, to: int) -> Link:
        return await stack.enter_async_context(Link(f"{name} > {ends}", to))

    async def nats(name: str) -> tuple[str, list[Link]]:
        ways = [await join("log", f"{name} > {node.spec.name}", node.spec.port) for node in system.nodes]
        host, _, _ = system.server.url.rpartition(":")
        return ",".join(f"{host}:{way.port}" for way in ways), ways

    def wind(name: str) -> tuple[Clock | None, dict[str, str]]:
        clock = Clock.made(system.folder, name)
        return clock, clock.environ if clock else {}

    def own(process: Process, clock: Clock | None, ways: Sequence[Link], ends: Ends = "log") -> None:
        system.links[ends] += [Joined(way, process) for way in ways]
        if clock:
            system.clocks[process] = clock

    claude_url = system.claude_url
    for number in range(size.generators):
        name = f"generator-{number}"
        url, ways = await nats(name)
        model = await join("model", name, int(claude_url.rpartition(":")[2]))
        clock, environ = wind(name)
        hedging = {"TAILRACE_HEDGE_AFTER_S": size.hedge_after_s}
        system.environ = {"TAILRACE_ATTEMPTS_MAX": ATTEMPTS_MAX, **GENERATOR, **hedging, **environ}
        # What it is given is the link; who collects asks Claude itself.
        system.claude_url = f"http://127.0.0.1:{model.port}"
        process = system.add_generator(url)
        own(process, clock, ways)
        own(process, None, [model], "model")
    system.claude_url = claude_url
    for number, own_port in enumerate(ports.find_free(size.gateways)):
        name = f"gateway-{number}"
        url, ways = await nats(name)
        clock, environ = wind(name)
        process = recorded(
            "gateway",
            system.folder,
            TAILRACE_NATS_URL=as_user(url, GATEWAY),
            TAILRACE_PORT=own_port,
            **environ,
        )
        system.gateways.append(process)
        own(process, clock, ways)
        front = await join("client", f"clients of {name}", own_port)
        own(process, None, [front], "client")
        client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{front.port}",
            timeout=CLIENT_TIMEOUT_S,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None),
        )
        system.http.append(await stack.enter_async_context(client))
    url, ways = await nats("persistence")
    clock, environ = wind("persistence")
    system.persistence = recorded(
        "persistence",
        system.folder,
        TAILRACE_NATS_URL=as_user(url, PERSISTENCE),
        TAILRACE_DATABASE=system.database,
        TAILRACE_BUSY_TIMEOUT_S=0.1,
        TAILRACE_RETRY_WAIT_S=0.2,
        **environ,
    )
    own(system.persistence, clock, ways)
    async with asyncio.TaskGroup() as group:
        for process in system.processes:
            group.create_task(stack.enter_async_context(process))
    keeping = [asyncio.create_task(_keep(process)) for process in system.processes]

    async def leave() -> None:
        for one in keeping:
            one.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)

    stack.push_async_callback(leave)


async def _keep(process: Process) -> None:
    """Starts it again, whatever ended it. What finds nobody at its start says so and leaves, and is started again."""
    while True:
        if process.is_gone:
            with suppress(AssertionError):
                await process.start()
        await asyncio.sleep(0.05)
