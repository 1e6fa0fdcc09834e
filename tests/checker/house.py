"""The whole system as processes, all of whose operations are recorded. Breaks nothing and judges nothing.

async with opened(folder, generators=2) as house:
    reader = house.client("reader")
    key = await reader.ask("#sim words=20")
    await reader.read_on(key)
    await house.settled()
    await house.collect()
verdicts = judge(load(folder))
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2

from tailrace.deploy.local import ports
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.options import Sync
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.api_key import hash_key
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Deliveries, TurnLog, streams
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.nats.permissions import GATEWAY
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, TurnKey
from tests.checker import census
from tests.checker.client import Client
from tests.checker.collect import collect
from tests.checker.history import HISTORY, Recorder
from tests.checker.recorded import recorded
from tests.harness import processes
from tests.harness.generator_in_loop import shorten_lease
from tests.harness.processes import Process, as_user
from tests.harness.until import until

Part = Callable[..., Process]
"""Makes a process of a module: `part("generators", folder, TAILRACE_CONCURRENCY=1)`."""

LOG_BYTES_MAX = 512 * 1024**2
CLIENT_TIMEOUT_S = 30.0
SETTLED_S_MAX = 20.0
NOISY = Tenant("noisy")
KEYS = {LOCAL.tenant: b"key-of-local", NOISY: b"key-of-noisy"}


class House:
    """What runs, and the folder that everything is recorded in."""

    def __init__(self, folder: Path, server: NatsServer, connection: Connection, claude_url: str) -> None:
        self.folder = folder
        self.server = server
        self.connection = connection
        self.claude_url = claude_url
        self.log = TurnLog(connection)
        self.generators: list[Process] = []
        self.gateways: list[Process] = []
        self.persistence: Process
        self._recording: Deliveries
        self.environ: dict[str, object] = {}
        """Of generators, besides what they need."""
        self.make: Part = recorded
        self.http: list[httpx2.AsyncClient] = []
        self.noisy_http: list[httpx2.AsyncClient] = []

    @property
    def database(self) -> Path:
        return self.folder / "tailrace.db"

    @property
    def processes(self) -> list[Process]:
        return [*self.generators, *self.gateways, self.persistence]

    @property
    def pids(self) -> dict[str, int]:
        """Of each process, by a name that it has in all of its lives."""
        return {process.printed.stem: process.pid for process in self.processes}

    @property
    def servers(self) -> list[NatsServer]:
        return [self.server]

    def nemesis(self, name: str = "nemesis") -> Recorder:
        """Who breaks things: one name is one sequence of faults."""
        return Recorder(self.folder / HISTORY, name)

    def client(self, name: str) -> Client:
        """One that asks all gateways in turn."""
        return Client(self.folder, name, self.http, LOCAL.tenant)

    def noisy(self, name: str) -> Client:
        """The same of another tenant, where tenants are limited."""
        return Client(self.folder, name, self.noisy_http, NOISY)

    def add_generator(self, nats_url: str, **environ: object) -> Process:
        """One more, which is for the caller to start."""
        self.generators.append(
            self.make(
                "generators",
                self.folder,
                TAILRACE_NATS_URL=as_user(nats_url, GENERATORS),
                ANTHROPIC_BASE_URL=self.claude_url,
                ANTHROPIC_API_KEY="sk-test",
                TAILRACE_CALL_WAIT_S=0.02,
                TAILRACE_GENERATOR=f"g{len(self.generators)}",
                **self.environ | environ,
            )
        )
        return self.generators[-1]

    async def holder(self, key: TurnKey) -> tuple[str, Process]:
        """The generator that has the turn, with its name in the log."""
        name = (await self.log.turn(key)).generator
        return name, self.generators[int(name.rpartition("-")[0].removeprefix("g"))]

    async def settled(self, within_s: float = SETTLED_S_MAX) -> None:
        """Once every turn is acknowledged by generators and persistence; fails when that does not come."""

        async def is_settled() -> bool:
            try:
                backlog = await consumer_backlog(self.connection, GENERATORS)
            except LogUnavailable:
                # The server was killed, and this has not found back to it yet.
                return False
            return not backlog.waiting and not backlog.leased and await self._recording.is_drained()

        await until(is_settled, within_s)

    async def count(self) -> census.Counts:
        """What all processes and the server hold now, which is recorded."""
        pids, taken = self.pids, await self._counts()
        census.record(self.nemesis("census"), taken, pids)
        return taken

    async def count_again(self, before: census.Counts) -> None:
        """The same, once it is no more than `before`, or will not be."""

        async def is_no_more() -> bool:
            return census.is_no_more(await self._counts(), before)

        with suppress(AssertionError):
            await until(is_no_more, SETTLED_S_MAX)
        await self.count()

    async def _counts(self) -> census.Counts:
        monitor_urls = [f"http://127.0.0.1:{server.spec.monitor_port}" for server in self.servers]
        return await census.counts(self.pids, self.connection, monitor_urls)

    async def collect(self, *, nodes: int = 1) -> None:
        await collect(self.folder, self.connection, claude_url=self.claude_url, database=self.database, nodes=nodes)


@asynccontextmanager
async def opened(
    folder: Path,
    *,
    generators: int = 1,
    gateways: int = 1,
    lease_s: float = streams.GENERATOR_ACK_WAIT_S,
    sync: Sync = "default",
    make: Part = recorded,
    limits: str = "",
    **environ: object,
) -> AsyncIterator[House]:
    """Everything on free ports and in `folder`; ended, however the block ends. `environ` is the generators'.

    `limits` are each tenant's, of whom there are two then, with a key each: `client`'s and `noisy`'s.
    `make` makes a process of each part. What is started again is where it was.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(folder, sync=sync))
        connection = await Connection.open(server.url, "house")
        stack.push_async_callback(connection.close)
        await streams.apply(connection, bytes_max=LOG_BYTES_MAX)
        await shorten_lease(connection, lease_s)
        claude = await stack.enter_async_context(processes.simulated_claude(folder))
        house = House(folder, server, connection, claude.url)
        house._recording = await Deliveries.open(connection, PERSISTENCE)
        house.environ, house.make = environ, make
        house.nemesis("clock").clock()
        for _ in range(generators):
            house.add_generator(server.url)
        nats_url = as_user(server.url, GATEWAY)
        settings: dict[str, object] = {"TAILRACE_NATS_URL": nats_url}
        if limits:
            keys = ",".join(f"{tenant}:{hash_key(key)}" for tenant, key in KEYS.items())
            settings |= {"TAILRACE_API_KEYS": keys, "TAILRACE_LIMITS_TENANT": limits}
        house.gateways = [
            make("gateway", folder, **settings, TAILRACE_PORT=number) for number in ports.find_free(gateways)
        ]
        house.persistence = make(
            "persistence",
            folder,
            TAILRACE_NATS_URL=as_user(server.url, PERSISTENCE),
            TAILRACE_DATABASE=house.database,
            TAILRACE_BUSY_TIMEOUT_S=0.1,
        )
        async with asyncio.TaskGroup() as group:
            for process in (*house.generators, *house.gateways, house.persistence):
                group.create_task(stack.enter_async_context(process))
        for gateway in house.gateways:
            house.http.append(await stack.enter_async_context(_http(gateway, LOCAL.tenant)))
            house.noisy_http.append(await stack.enter_async_context(_http(gateway, NOISY)))
        yield house


def _http(gateway: Process, tenant: Tenant) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=gateway.url,
        headers={"authorization": f"Bearer {KEYS[tenant].decode()}"},
        timeout=CLIENT_TIMEOUT_S,
        trust_env=False,
        limits=httpx2.Limits(max_connections=None),
    )
