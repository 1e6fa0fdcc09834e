"""A recorded system for chaos runs: proxies on all connections, wrong clocks, small disks, restarts."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from tailrace.deploy.local.nats_server import ServerSpec
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import new_id
from tailrace.proto.nats.leases import KEPT_BYTES_MAX
from tests.chaos.clock import Clock
from tests.checker.recorded_client import Client
from tests.checker.recorded_system import RecordedSystem
from tests.checker.resources import count_process
from tests.harness.disk import MIB, can_mount, small_disk
from tests.harness.processes import Process
from tests.harness.proxy import Proxy
from tests.harness.system import Target
from tests.harness.until import until

LOG_BYTES = 256 * MIB
# A dozen concurrent turns write this much in a minute.
LOG_BYTES_A_MINUTE = 10 * MIB
# The rows take a tenth of the log's size, and a damaged file is kept. A small disk is filled quickly.
DATABASE_SHARE = 1 / 4
CLIENT_TIMEOUT_S = 8.0
RESTART_S_MAX = 120.0
CHECK_EVERY_S = 0.05


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of processes, and their settings besides the defaults."""

    servers: Literal[1, 3] = 3
    gateways: int = 2
    generators: int = 2
    log_bytes: int = LOG_BYTES
    settings: dict[str, dict[str, str]] = {}
    """By role: `{"generator": {"TAILRACE_DELTA_INTERVAL_S": "0.1"}}`."""

    def __str__(self) -> str:
        given = [f"{name}={value}" for some in self.settings.values() for name, value in some.items()]
        return f"settings: {', '.join(given) if given else 'defaults'}; a log of {self.log_bytes // MIB} MiB"


class Memory(NamedTuple):
    pid: int
    rss_bytes: int


class Connection(NamedTuple):
    """A proxy between `source`, a process or a nats-server, and its target."""

    proxy: Proxy
    source: str


class ChaosSystem(RecordedSystem):
    """Restarts each process that ends. The injector starts nats-servers that it has stopped."""

    def __init__(self, folder: Path, size: Size) -> None:
        settings: Any = size.settings
        super().__init__(
            folder, servers=size.servers, log_bytes=size.log_bytes, settings=settings, client_timeout_s=CLIENT_TIMEOUT_S
        )
        self.size = size
        self.connections: dict[Target, list[Connection]] = {"gateway": [], "nats-server": [], "route": [], "model": []}
        self.clocks: dict[str, Clock] = {}
        self.small_disk: Path | None = None
        """The store of the last nats-server, if the test may mount a disk for it."""

    async def prepare(self, specs: list[ServerSpec]) -> list[ServerSpec]:
        """Puts a proxy on each route between servers, and the store of the last server on a small disk."""
        names = {spec.member.port: spec.name for spec in specs if spec.member}
        changed = []
        for spec in specs:
            if spec.member is not None:
                ports = [await self.reach(f"{spec.name} > {names[port]}", "route", port) for port in spec.member.others]
                spec = msgspec.structs.replace(  # noqa: PLW2901
                    spec, member=msgspec.structs.replace(spec.member, others=tuple(ports))
                )
            changed.append(spec)
        store = changed[-1].store
        store.mkdir(parents=True, exist_ok=True)
        self.database.parent.mkdir()
        if can_mount():
            self.small_disk = store
            self._stack.enter_context(small_disk(store, self.size.log_bytes * 3 // 2))
            self._stack.enter_context(small_disk(self.database.parent, int(DATABASE_SHARE * self.size.log_bytes)))
        return changed

    async def reach(self, source: str, target: Target, port: int) -> int:
        name = source if target == "route" else f"{source} > {target}"
        proxy = await self._stack.enter_async_context(Proxy(name, port))
        self.connections[target].append(Connection(proxy, source))
        return proxy.port

    def environ(self, name: str) -> dict[str, str]:
        clock = Clock.create(self.folder, name)
        if clock is None:
            return {}
        self.clocks[name] = clock
        return clock.environ

    async def start(self, *, generators: int = 1, gateways: int = 1, persistence: bool = True) -> None:
        await super().start(generators=generators, gateways=gateways, persistence=persistence)
        restarting = [asyncio.create_task(restart(process)) for process in self.processes.values()]

        async def stop() -> None:
            for task in restarting:
                task.cancel()
            await asyncio.gather(*restarting, return_exceptions=True)

        self._stack.push_async_callback(stop)

    async def wait_for_restart(self, process: Process) -> None:
        """Waits until the process is ready again."""
        await until(lambda: not process.is_gone and bool(process.url), RESTART_S_MAX)

    def log_name(self, name: str) -> str:
        """Returns the name of a generator in the log; other processes are not in it."""
        ready = self.processes[name].find_lines("ready") if name.startswith("generator-") else []
        return str(ready[-1]["generator"]) if ready else name

    async def warm_up(self) -> None:
        """Posts turns and batches until each generator has had both. Resources are counted when connections exist.

        The requests are too large to be kept from their delivery: each generator also reads the log, with an inbox.
        """
        large = "x" * (KEPT_BYTES_MAX - 4000)
        clients = [
            Client(self.folder, f"warm-up {new_id()}", [one], LOCAL.access.tenant)
            for one in self.gateway_clients(LOCAL.access.tenant)
        ]
        served: set[tuple[str, Process]] = set()
        while len(served) < 2 * len(self.generators):
            for client in clients:
                tag = new_id()[-6:]
                posted = {
                    "turn": await client.post(f"#sim words=1 tag={tag} {'x' * 8000}", system=large),
                    "batch": await client.post_batch({"c0": f"#sim words=1 tag=b{tag}"}, tag, "messages"),
                }
                for what, key in posted.items():
                    if key is not None:
                        await client.read_to_end(key)
                        served.add((what, (await self.generator_of(key))[1]))
        for client in clients:
            client.close()

    def memory(self) -> dict[str, Memory]:
        pids = self.pids | {server.spec.name: server.pid for server in self.servers}
        pids["simulated Claude"] = self.claude.pid
        return {name: Memory(pid, count_process(pid)["rss_bytes"]) for name, pid in pids.items()}


async def restart(process: Process) -> None:
    """Starts the process again whenever it has ended, also when its start failed."""
    while True:
        if process.is_gone:
            with suppress(AssertionError):
                await process.start()
        await asyncio.sleep(CHECK_EVERY_S)
