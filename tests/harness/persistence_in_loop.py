"""The persistence process in the test's event loop, and a client of its queries."""

import asyncio
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from tailrace.features.persistence import FEATURES, Settings
from tailrace.persistence.health import PersistenceHealth
from tailrace.persistence.serve import serve
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.subjects import PERSISTENCE
from tests.harness.processes import as_user
from tests.harness.until import until

T = TypeVar("T")

# As short as a test wants it: with `up`, a lock is waited for longer than any test lasts.
QUICK: dict[str, object] = {"busy_timeout_s": 0.05, "retry_wait_s": 0.05, "catch_up_timeout_s": 5.0}
ASK_TIMEOUT_S = 10.0


class Persistence:
    """`async with Persistence(url, database) as persistence:` starts and stops it like its process."""

    def __init__(self, nats_url: str, database: Path | str, **given: object) -> None:
        self.database = Path(database)
        self.settings = Settings(nats_url=nats_url, database=str(database), **QUICK | given)  # type: ignore[arg-type]
        self.stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        users = {"serves": PERSISTENCE, "asks": GATEWAY}
        self.connections = [
            await Connection.open(as_user(self.settings.nats_url, user), name) for name, user in users.items()
        ]
        serves, asks = self.connections
        self.services = Rpc(asks)
        self.running = asyncio.create_task(serve(self.settings, serves, self.stop, features=FEATURES))
        await until(self.has_started)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await asyncio.wait([self.running])
        for connection in self.connections:
            await connection.close()

    async def has_started(self) -> bool:
        return self.running.done() or await self.services.health(PERSISTENCE, timeout_s=0.2) is not None

    async def ask(self, tenant: Tenant, name: str, question: object, answer: type[T]) -> T:
        reply = await self.services.request(tenant, name, msgspec.json.encode(question), timeout_s=ASK_TIMEOUT_S)
        return msgspec.json.decode(reply, type=answer)

    async def health(self) -> PersistenceHealth:
        reply = await self.services.health(PERSISTENCE, timeout_s=ASK_TIMEOUT_S)
        return msgspec.json.decode(reply or b"", type=PersistenceHealth)
