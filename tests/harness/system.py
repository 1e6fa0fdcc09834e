"""The whole system as processes: nats-servers, the simulated Claude, generators, gateways and persistence.

    async with System(folder, servers=3) as system:
        await system.start(generators=2, gateways=2)
        response = await system.clients[0].post("/v1/turns", json={"message": "#sim words=20"})

Every setting has the product's default. `settings` changes those of a role, and the arguments of `new_generator` and
`new_gateway` those of one process.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGCONT
from typing import Literal, Protocol, Self

import httpx2

from tailrace.deploy.local import nats_cluster, nats_server, ports
from tailrace.deploy.local.nats_server import NatsServer, ServerSpec
from tailrace.deploy.local.options import Sync
from tailrace.deploy.nats import setup
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.harness import processes
from tests.harness.generator_in_loop import read_attempts
from tests.harness.nats_cluster import GIB, Cluster
from tests.harness.processes import ForkedProcess, Process, as_user
from tests.harness.until import until

Role = Literal["generator", "gateway", "persistence"]
Target = Literal["nats-server", "route", "model", "gateway"]
"""What a process connects to; `route` is the connection of one nats-server to another."""
Settings = Mapping[Role, Mapping[str, object]]

MODULES: dict[Role, str] = {"generator": "generators", "gateway": "gateway", "persistence": "persistence"}
SETTLED_S_MAX = 20.0
HEALED_S_MAX = 30.0
ENDED_S_MAX = 30.0


class Launch(Protocol):
    """Makes a process of a module, not started yet: `launch("generators", folder, TAILRACE_CONCURRENCY=1)`."""

    def __call__(self, module: str, folder: Path, **environ: object) -> Process: ...


class System:
    """A system in one folder, on free ports. Entering the context starts the nats-servers with all streams.

    `start_claude`, `new_generator`, `new_gateway` and `new_persistence` add the other processes. Leaving the context
    kills all of them. A process that is started again keeps its name, its port and its data.
    """

    def __init__(
        self,
        folder: Path,
        *,
        servers: Literal[1, 3] = 1,
        sync: Sync = "always",
        log_bytes: int = GIB // 2,
        settings: Settings | None = None,
        launch: Launch = ForkedProcess,
        client_timeout_s: float = 30.0,
        database_url: str = "",
    ) -> None:
        self.folder = folder
        self.settings: Settings = settings or {}
        self.processes: dict[str, Process] = {}
        """Generators, gateways and persistence by name: `generator-0`, `gateway-1`, `persistence`."""
        self.clients: list[httpx2.AsyncClient] = []
        """One client of each gateway."""
        self.servers: list[NatsServer] = []
        self.cluster: Cluster | None = None
        self.connection: Connection
        self.log: TurnLog
        self.claude: Process
        self._server_count = servers
        self._sync = sync
        self._log_bytes = log_bytes
        self._launch = launch
        self._client_timeout_s = client_timeout_s
        self.database_url = database_url
        """The URL of a database on a server, which takes the place of the SQLite file."""
        self._stack = AsyncExitStack()

    # What a subclass changes.

    async def prepare(self, specs: list[ServerSpec]) -> list[ServerSpec]:
        """Returns the specs with which the nats-servers start."""
        return specs

    async def reach(self, source: str, target: Target, port: int) -> int:  # noqa: ARG002
        """Returns the port at which the process `source` reaches `port` of a target. A proxy has another one."""
        return port

    def environ(self, name: str) -> dict[str, str]:  # noqa: ARG002
        """Returns environment variables of a process besides its settings."""
        return {}

    # Start and stop.

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._stack = stack
            await self._start_servers()
            self.log = TurnLog(self.connection)
            self._recorder = await Deliveries.open(self.connection, PERSISTENCE)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self, *, generators: int = 1, gateways: int = 1, persistence: bool = True) -> None:
        """Starts the simulated Claude and as many processes, all at once."""
        await self.start_claude()
        added = [await self.new_generator() for _ in range(generators)]
        added += [await self.new_gateway() for _ in range(gateways)]
        if persistence:
            added.append(await self.new_persistence())
        async with asyncio.TaskGroup() as group:
            for process in added:
                group.create_task(process.start())

    async def start_claude(self) -> Process:
        self.claude = await self._stack.enter_async_context(processes.simulated_claude(self.folder))
        return self.claude

    async def new_generator(self, **environ: object) -> Process:
        """Adds a generator that the caller starts."""
        number = len(self.generators)
        name = f"generator-{number}"
        port = await self.reach(name, "model", int(self.claude.url.rpartition(":")[2]))
        own = processes.generator_environ(await self._nats_url(name), f"http://127.0.0.1:{port}")
        return self._add(name, "generator", own | {"TAILRACE_GENERATOR": f"g{number}"}, environ)

    async def new_gateway(self, **environ: object) -> Process:
        """Adds a gateway that the caller starts, and a client of it."""
        name = f"gateway-{len(self.gateways)}"
        (port,) = ports.find_free(1)
        own = {"TAILRACE_NATS_URL": as_user(await self._nats_url(name), GATEWAY), "TAILRACE_PORT": port}
        process = self._add(name, "gateway", own, environ)
        self.clients.append(await self.new_client(await self.reach(f"clients of {name}", "gateway", port)))
        return process

    async def new_persistence(self, name: str = "persistence", **environ: object) -> Process:
        """Adds a persistence process, which the caller starts."""
        self.database.parent.mkdir(exist_ok=True)
        own = {
            "TAILRACE_NATS_URL": as_user(await self._nats_url(name), PERSISTENCE),
            "TAILRACE_DATABASE": self.database_url or self.database,
        }
        return self._add(name, "persistence", own, environ)

    async def new_client(self, port: int, **headers: str) -> httpx2.AsyncClient:
        """Returns a client of the gateway at this port, which is closed with the system."""
        return await self._stack.enter_async_context(
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers=headers,
                timeout=self._client_timeout_s,
                trust_env=False,
                # A gateway keeps idle connections for an hour, and the checker counts its file descriptors.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            )
        )

    # Its parts.

    @property
    def nats_url(self) -> str:
        """The URL of a user without limits, with the addresses of all servers."""
        return ",".join(server.url for server in self.servers)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "database" / "tailrace.db"

    @property
    def generators(self) -> list[Process]:
        return self._of("generator")

    @property
    def gateways(self) -> list[Process]:
        return self._of("gateway")

    @property
    def persistence(self) -> Process:
        return self.processes["persistence"]

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes.items()}

    async def generator_of(self, key: TurnKey) -> tuple[str, Process]:
        """Returns the generator of the turn's last attempt: its name in the log, and its process."""
        name = (await until(lambda: read_attempts(self.log, key)))[-1].generator
        return name, self.processes[f"generator-{name.rpartition('-')[0].removeprefix('g')}"]

    # What a test waits for.

    async def wait_for_end(self, key: TurnKey) -> Turn:
        """Waits until the log has the turn's end; returns the turn."""

        async def turn() -> Turn | None:
            with suppress(LogUnavailable):
                found = await self.log.read_turn(ScopedKey.whole(key))
                return found if found.end is not None else None
            return None

        found = await until(turn, ENDED_S_MAX)
        assert found is not None
        return found

    async def wait_until_settled(self, within_s: float = SETTLED_S_MAX) -> None:
        """Waits until generators and persistence have acknowledged every turn.

        Fails when persistence acknowledges nothing for `within_s`. All of it may take longer: without its database it
        records the whole log again.
        """

        async def is_settled() -> bool:
            # A killed server may not have been found again.
            with suppress(LogUnavailable):
                backlog = await consumer_backlog(self.connection, GENERATORS)
                return not backlog.waiting and not backlog.leased and await self._recorder.is_drained()
            return False

        acknowledged = -1
        while True:
            try:
                await until(is_settled, within_s)
            except AssertionError:
                floor = (await self._recorder.backlog()).floor
                if floor <= acknowledged:
                    raise
                acknowledged = floor
            else:
                return

    async def wait_until_healed(self, within_s: float = HEALED_S_MAX) -> None:
        """Starts nats-servers that have stopped, continues frozen ones, and waits until all replicas are current."""
        for server in self.servers:
            if server.process.returncode is not None:
                await server.start()
            server.signal(SIGCONT)
        if self.cluster is not None:
            await until(self.cluster.is_whole, within_s)

    # Implementation.

    async def _start_servers(self) -> None:
        file_bytes_max = 4 * self._log_bytes
        if self._server_count == 1:
            specs = [nats_server.new_spec(self.folder, sync=self._sync, file_bytes_max=file_bytes_max)]
        else:
            specs = nats_cluster.new_specs(self.folder, sync=self._sync, file_bytes_max=file_bytes_max)
        specs = await self.prepare(specs)
        if self._server_count == 1:
            self.servers = [await self._stack.enter_async_context(NatsServer(self.folder, spec=specs[0]))]
            self.connection = await Connection.open(self.nats_url, "test-system")
            self._stack.push_async_callback(self.connection.close)
            await setup.apply(self.connection, bytes_max=self._log_bytes)
        else:
            cluster = Cluster(self.folder, specs=specs, bytes_max=self._log_bytes)
            self.cluster = await self._stack.enter_async_context(cluster)
            self.servers, self.connection = cluster.nodes, cluster.connection

    async def _nats_url(self, name: str) -> str:
        """The URL with which the process `name` connects to all servers."""
        host, _, _ = self.servers[0].url.rpartition(":")
        found = [await self.reach(name, "nats-server", server.spec.port) for server in self.servers]
        return ",".join(f"{host}:{port}" for port in found)

    def _add(self, name: str, role: Role, own: Mapping[str, object], environ: Mapping[str, object]) -> Process:
        settings = {**own, **self.environ(name), **self.settings.get(role, {}), **environ}
        process = self._launch(MODULES[role], self.folder, **settings)
        self._stack.push_async_exit(process)
        self.processes[name] = process
        return process

    def _of(self, role: Role) -> list[Process]:
        return [process for name, process in self.processes.items() if name.startswith(f"{role}-")]
