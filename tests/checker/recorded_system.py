"""A system whose operations are recorded in its folder.

async with RecordedSystem(folder) as system:
    await system.start(generators=2)
    reader = system.client("reader")
    key = await reader.post("#sim words=20")
    await reader.read_to_end(key)
    await system.settled()
    await system.collect()
verdicts = judge(load(folder))
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx2

from tailrace.gateway.auth.api_key import hash_key
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import Tenant, new_id
from tests.checker.collect import collect
from tests.checker.history import HISTORY, Recorder, ResourceCount
from tests.checker.recorded_client import Client
from tests.checker.recorded_process import recorded_process
from tests.checker.resources import Counts, count_resources, has_no_more
from tests.harness.budget_audit import BudgetAudit, limit_settings
from tests.harness.system import SETTLED_S_MAX, Settings, System
from tests.harness.until import until

OVERLOADER = Tenant("overloader")
KEYS = {LOCAL.access.tenant: b"key-of-local", OVERLOADER: b"key-of-overloader"}


def tenant_keys() -> dict[str, object]:
    """Returns the gateway settings for two tenants, each with its API key."""
    return {"TAILRACE_API_KEYS": ",".join(f"{tenant}:{hash_key(key)}" for tenant, key in KEYS.items())}


def with_budgets(settings: Settings) -> Settings:
    """Returns the settings with a budget and a limit of running turns for each key and each tenant."""
    gateway = dict(settings.get("gateway", {}))
    for name, pairs in limit_settings().items():
        gateway[name] = ",".join(str(one) for one in (gateway.get(name), pairs) if one)
    return {**settings, "gateway": gateway}


class RecordedSystem(System):
    """Records all appends, acknowledgements and commits of its processes, and the operations of its clients."""

    def __init__(self, folder: Path, *, settings: Settings | None = None, **options: Any) -> None:
        super().__init__(folder, **{"launch": recorded_process, "settings": with_budgets(settings or {}), **options})
        self.budgets: BudgetAudit | None = None
        self._recorded_clients: dict[Tenant, list[httpx2.AsyncClient]] = {}

    async def __aenter__(self) -> Self:
        self.recorder("clock").read_clock()
        return await super().__aenter__()

    async def start(self, *, generators: int = 1, gateways: int = 1, persistence: bool = True) -> None:
        await super().start(generators=generators, gateways=gateways, persistence=persistence)
        for tenant, key in KEYS.items():
            self._recorded_clients[tenant] = [
                await self.new_client(int(client.base_url.port or 0), authorization=f"Bearer {key.decode()}")
                for client in self.clients
            ]
        # A gateway subscribes to the inbox of its reads at the first one, and each count has to include that.
        for client in self.gateway_clients(LOCAL.access.tenant):
            await client.get(f"/v1/turns/{new_id()}")
        if not self.database_url:
            self.budgets = BudgetAudit(self.connection, self.database)
            sampling = asyncio.create_task(self.budgets.sample())
            self._stack.callback(sampling.cancel)

    def recorder(self, name: str) -> Recorder:
        """Returns a recorder of the process `name`, which is a sequence of operations."""
        return Recorder(self.folder / HISTORY, name)

    def client(self, name: str, tenant: Tenant = LOCAL.access.tenant) -> Client:
        """Returns a recorded client that uses all gateways in turn."""
        return Client(self.folder, name, self.gateway_clients(tenant), tenant)

    def gateway_clients(self, tenant: Tenant) -> list[httpx2.AsyncClient]:
        """Returns an HTTP client with the tenant's key for each gateway."""
        return self._recorded_clients[tenant]

    async def count(self) -> Counts:
        """Counts and records the resources of all processes and servers."""
        counts = await self._count()
        self._record(counts)
        return counts

    def _record(self, counts: Counts) -> None:
        recorder = self.recorder("resources")
        for subject, some in counts.items():
            operation = ResourceCount(subject=subject, pid=self.pids.get(subject, 0), counts=some)
            with recorder.recording(operation) as recording:
                recording.ok()
        recorder.close()

    async def count_again(self, before: Counts) -> None:
        """Counts until no resource is held in addition to `before`, or for SETTLED_S_MAX; records the last counts.

        Gateways ask the generators for reports from time to time, each time with a subscription of its own.
        """
        counts: Counts = {}

        async def has_settled() -> bool:
            nonlocal counts
            counts = await self._count()
            return has_no_more(counts, before)

        with suppress(AssertionError):
            await until(has_settled, SETTLED_S_MAX)
        self._record(counts)

    async def collect(self) -> None:
        """Writes the log, the rows, the model's calls, the backlogs and the budgets into the folder.

        Waits until no budget is held, for two minutes at most. No turn runs any more.
        """
        found = await self.budgets.wait_until_exact() if self.budgets is not None else None
        await collect(
            self.folder,
            self.connection,
            claude_url=self.claude.url,
            database=self.database_url or self.database,
            servers=len(self.servers),
            budgets=tuple(found) if found is not None else None,
            samples=tuple(self.budgets.worst.values()) if self.budgets is not None else (),
        )

    async def _count(self) -> Counts:
        monitor_urls = [f"http://127.0.0.1:{server.spec.monitor_port}" for server in self.servers]
        return await count_resources(self.pids, self.connection, monitor_urls)
