"""The running house, as nouns: `claude`, `generator`, `persistence`, and gateways. Each is the real thing.

What many tests may share runs once for each pytest process, on a nats-server of its own, as the processes that `up`
would start. Gateways are made anew for each test, in the test's own event loop, so that a test can set them up as it
needs and look inside. `lone_gateway` stands on the server of `log`, where no generator answers: there a test writes
the log by hand.
"""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.gateway.__main__ import serve
from tailrace.gateway.settings import Settings
from tailrace.proto import subjects
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.permissions import GATEWAY
from tailrace.proto.subjects import STREAM, TurnKey
from tests.conftest import apply_streams
from tests.harness import processes
from tests.harness.processes import Process

# uvicorn takes a fifth of a second to go away: too long for each row of a table.
on_shared_loop = pytest.mark.asyncio(loop_scope="session")
# A gateway asks for it; a client of it sends it.
KEY = "a-key-that-only-this-test-has"


class House(NamedTuple):
    """Where the shared processes are; what each says stands in `folder`."""

    folder: Path
    nats_url: str


class Gateway:
    """A gateway in this event loop, and a client that has a key of `tenant`."""

    def __init__(self, nats_url: str, tenant: Tenant, given: dict[str, object]) -> None:
        listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port: int = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.stopping = asyncio.Event()
        settings = {
            "nats_url": nats_url,
            "listen_fd": listening.detach(),
            "api_keys": api_keys(tenant),
            "linger_s": 0.2,
            **given,
        }
        self._running = asyncio.create_task(self._run(msgspec.convert(settings, Settings)))
        self.client = self.new_client()

    def new_client(self) -> httpx2.AsyncClient:
        """Close it, or its connections outlive the test."""
        headers = {"authorization": f"Bearer {KEY}"}
        # Without certificates, which nobody shows here: to read the machine's takes longer than to make a gateway.
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=20, trust_env=False, verify=False)

    async def answers(self) -> None:
        """Returns when it does; raises what broke it."""
        answering = asyncio.create_task(self.client.get("/healthz"))
        await asyncio.wait((answering, self._running), return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            answering.cancel()
            await self._running
        await answering

    async def stop(self) -> None:
        """What SIGTERM does. Returns when it is gone; raises what broke it."""
        self.stopping.set()
        await self.client.aclose()
        await self._running

    async def _run(self, settings: Settings) -> None:
        connection = await Connection.open(processes.as_user(settings.nats_url, GATEWAY), "test-gateway")
        try:
            await serve(settings, connection, self.stopping)
        finally:
            await connection.close()


NewGateway = Callable[..., Awaitable[Gateway]]


def api_keys(tenant: Tenant) -> str:
    """The setting under which `KEY` is the tenant's."""
    return f"{tenant}:{hashlib.sha256(KEY.encode()).hexdigest()}"


async def forget(gateway: Gateway, log: TurnLog, key: TurnKey, *, before: Seq | None = None) -> None:
    """Makes the log forget a turn, or what is before an entry, as its retention does after a day.

    By then persistence has long recorded it; here the first question waits until it has.
    """
    await gateway.client.get("/v1/sessions?limit=1")
    await log._connection.jetstream.purge_stream(STREAM, subject=subjects.entries(key), seq=before)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("house")
    async with NatsServer(folder) as server:
        await apply_streams(server.url)
        yield House(folder, server.url)
        # No test need look for it: what a process does without the right to is done in vain, in some corner.
        assert "Violation" not in server.log.read_text()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def claude(house: House) -> AsyncIterator[str]:
    """Where the simulated Claude is that `generator` asks."""
    async with processes.simulated_claude(house.folder) as process:
        yield process.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def generator(house: House, claude: str) -> AsyncIterator[Process]:
    async with processes.generator(house.folder, house.nats_url, claude) as process:
        yield process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def persistence(house: House) -> AsyncIterator[Process]:
    async with processes.persistence(house.folder, house.nats_url) as process:
        yield process


@pytest_asyncio.fixture
async def new_gateway(tenant: Tenant) -> AsyncIterator[NewGateway]:
    """Makes gateways; stops those that the test has not stopped."""
    made: list[Gateway] = []

    async def make(nats_url: str, **given: object) -> Gateway:
        made.append(Gateway(nats_url, tenant, given))
        await made[-1].answers()
        return made[-1]

    yield make
    for gateway in made:
        await gateway.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_gateway(house: House, generator: Process, persistence: Process) -> AsyncIterator[Gateway]:
    """A gateway of the running house for tests `on_shared_loop`, which ask and look at the answer, and no more."""
    gateway = Gateway(house.nats_url, Tenant("shared"), {})
    await gateway.answers()
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture
async def gateway(house: House, generator: Process, persistence: Process, new_gateway: NewGateway) -> Gateway:
    """A gateway of the running house: what is asked here is answered."""
    return await new_gateway(house.nats_url)


@pytest.fixture
async def own_gateway(own_server: NatsServer, new_gateway: NewGateway) -> Gateway:
    """A gateway of the test's own server."""
    return await new_gateway(own_server.url)


@pytest.fixture
async def own_claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls, and that has kept nothing yet."""
    async with serving() as url:
        yield url


@pytest_asyncio.fixture
async def second_gateway(house: House, gateway: Gateway, new_gateway: NewGateway) -> Gateway:
    """Another gateway of the same house."""
    return await new_gateway(house.nats_url)


@pytest_asyncio.fixture
async def lone_gateway(nats_url: str, new_gateway: NewGateway) -> Gateway:
    """A gateway where nobody answers: the log is written by hand."""
    return await new_gateway(nats_url)


@pytest_asyncio.fixture
async def house_log(house: House) -> AsyncIterator[TurnLog]:
    """The log of the running house."""
    connection = await Connection.open(house.nats_url, "test")
    yield TurnLog(connection)
    await connection.close()
