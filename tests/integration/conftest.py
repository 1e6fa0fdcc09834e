"""Fixtures of the integration tests: the shared system, its processes, and gateways in the test's event loop.

`system` runs once for each pytest process, with the processes that `tailrace up` starts. Each test has its own
gateways, with the settings that it needs. `lone_gateway` is on the server of `log`, where no generator answers: there
a test writes the log by hand.
"""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.gateway import FEATURES, Settings
from tailrace.gateway import metrics
from tailrace.gateway.serve import serve
from tailrace.gateway.settings import Settings as CoreSettings
from tailrace.proto import subjects
from tailrace.proto.ids import Seq, Tenant, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.subjects import KEYS, STREAM
from tests.harness import processes
from tests.harness.own_system import OwnSystem
from tests.harness.processes import Process
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until

# A gateway takes a fifth of a second to stop, which is too long for each row of a table.
on_shared_loop = pytest.mark.asyncio(loop_scope="session")
# The API key of each test's tenant.
KEY = "a-key-that-only-this-test-has"


class Gateway:
    """A gateway in this event loop, and a client with an API key of `tenant`."""

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
        """Returns a client that the caller closes."""
        headers = {"authorization": f"Bearer {KEY}"}
        # verify=False: loading the machine's certificates takes longer than starting a gateway.
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=20, trust_env=False, verify=False)

    async def answers(self) -> None:
        """Waits until it answers. Raises the error with which it failed to start."""
        answering = asyncio.create_task(self.client.get("/healthz"))
        await asyncio.wait((answering, self._running), return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            answering.cancel()
            await self._running
        await answering

    async def stop(self) -> None:
        """Stops it as SIGTERM does. Raises the error with which it ended."""
        self.stopping.set()
        await self.client.aclose()
        await self._running

    async def _run(self, settings: CoreSettings) -> None:
        connection = await Connection.open(processes.as_user(settings.nats_url, GATEWAY), "test-gateway")
        try:
            await serve(settings, connection, self.stopping, features=FEATURES)
        finally:
            await connection.close()


NewGateway = Callable[..., Awaitable[Gateway]]


def api_keys(tenant: Tenant) -> str:
    """Returns the setting TAILRACE_API_KEYS in which `KEY` belongs to the tenant."""
    return f"{tenant}:{hashlib.sha256(KEY.encode()).hexdigest()}"


async def forget(gateway: Gateway, log: TurnLog, key: TurnKey, *, before: Seq | None = None) -> None:
    """Removes a turn, or its entries before `before`, from the log, as retention does after a day.

    First waits until persistence has recorded it, with a query.
    """
    await gateway.client.get("/v1/sessions?limit=1")
    await log.connection.jetstream.purge_stream(STREAM, subject=subjects.entries(key), seq=before)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """At the end of the test, closes what the test has entered."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def writer(log: TurnLog, key: TurnKey) -> Writer:
    """Writes the entries of a turn that does not exist yet."""
    return Writer(log, key)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """The system that tests share; the fixtures `claude`, `generator` and `persistence` start its processes.

    A process that tried what its user has no right to fails the run, and so does a test that has left an API key.
    """
    async with System(tmp_path_factory.mktemp("system"), sync="default") as system:
        yield system
        assert "Violation" not in system.servers[0].log.read_text()
        connection = await Connection.open(system.nats_url, "test")
        left = await KeyStore(connection).list_keys()
        await connection.close()
        assert not left, f"a test has left API keys, so requests of later ones are refused: use `shared_keys`; {left}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def claude(system: System) -> str:
    """The URL of the simulated Claude that `generator` calls."""
    return (await system.start_claude()).url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def generator(system: System, claude: str) -> Process:
    process = await system.new_generator(**processes.QUICK_RETRY)
    await process.start()
    return process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def persistence(system: System) -> Process:
    process = await system.new_persistence()
    await process.start()
    return process


@pytest_asyncio.fixture
async def new_gateway(tenant: Tenant) -> AsyncIterator[NewGateway]:
    """Starts gateways; stops those that the test has not stopped."""
    made: list[Gateway] = []

    async def make(nats_url: str, **given: object) -> Gateway:
        made.append(Gateway(nats_url, tenant, given))
        await made[-1].answers()
        return made[-1]

    yield make
    for gateway in made:
        await gateway.stop()
    # This metric has a series for each route and status, and each gateway samples all of them when it starts. Series
    # of earlier tests would take longer than the rest of the start.
    metrics.REQUEST_S.clear()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_gateway(system: System, generator: Process, persistence: Process) -> AsyncIterator[Gateway]:
    """The gateway of `shared_gateway`."""
    gateway = Gateway(system.nats_url, Tenant("shared"), {})
    await gateway.answers()
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def shared_gateway(session_gateway: Gateway) -> Gateway:
    """A gateway of the shared system for tests `on_shared_loop`, which only send requests.

    While tests on other loops run, its loop stands still. After minutes, nats-server closes its connection, and the
    gateway refuses requests until it has reconnected.
    """

    async def answers() -> bool:
        return (await session_gateway.client.get("/v1/sessions?limit=1")).is_success

    await until(answers)
    return session_gateway


@pytest_asyncio.fixture
async def gateway(system: System, generator: Process, persistence: Process, new_gateway: NewGateway) -> Gateway:
    """A gateway of the shared system: a generator answers its turns."""
    return await new_gateway(system.nats_url)


@pytest.fixture
async def own_gateway(own_server: NatsServer, new_gateway: NewGateway) -> Gateway:
    """A gateway of `own_server`."""
    return await new_gateway(own_server.url)


@pytest.fixture
async def own_claude() -> AsyncIterator[str]:
    """The URL of a new simulated Claude of this test."""
    async with run_simulated_claude() as url:
        yield url


@pytest.fixture
def own(own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str) -> OwnSystem:
    """A nats-server and a simulated Claude of this test, without a generator."""
    return OwnSystem(own_server, own_connection, own_log, own_claude)


@pytest.fixture
async def emptied_bodies(system_log: TurnLog) -> AsyncIterator[None]:
    """Removes all blobs and large events of the shared system before the test, and those of the test."""
    await system_log.connection.jetstream.purge_stream(subjects.BODIES)
    yield
    await system_log.connection.jetstream.purge_stream(subjects.BODIES)


@pytest_asyncio.fixture
async def shared_keys(system_log: TurnLog) -> AsyncIterator[KeyStore]:
    """The API keys of the shared system. While it has one, each request needs one: they leave with the test."""
    yield KeyStore(system_log.connection)
    await system_log.connection.jetstream.purge_stream(f"KV_{KEYS}")


@pytest_asyncio.fixture
async def second_gateway(system: System, gateway: Gateway, new_gateway: NewGateway) -> Gateway:
    """Another gateway of the shared system."""
    return await new_gateway(system.nats_url)


@pytest_asyncio.fixture
async def lone_gateway(nats_url: str, new_gateway: NewGateway) -> Gateway:
    """A gateway without a generator: the test writes the log by hand."""
    return await new_gateway(nats_url)


@pytest_asyncio.fixture
async def system_log(system: System) -> AsyncIterator[TurnLog]:
    """The log of the shared system."""
    connection = await Connection.open(system.nats_url, "test")
    yield TurnLog(connection)
    await connection.close()
