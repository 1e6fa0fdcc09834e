"""Fixtures of the client tests: those of the integration tests, gateways without API keys, and killed generators.

A test compares what a client shows with the text of the log and of SQLite, which `read_stored_text` returns.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.nats import Connection
from tests.clients.node import find_browser, find_firefox, find_webkit
from tests.clients.openai_chat import sdk_of
from tests.conftest import apply_streams
from tests.harness.generator_in_loop import is_acknowledged, running_generator, shorten_lease
from tests.harness.killable_generator import run_and_kill_after
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import CHECKOUT
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import (
    Gateway,
    NewGateway,
    claude,
    gateway,
    generator,
    lone_gateway,
    new_gateway,
    own,
    own_claude,
    persistence,
    session_gateway,
    shared_gateway,
    shared_keys,
    system,
    system_log,
)

__all__ = [
    "claude",
    "gateway",
    "generator",
    "lone_gateway",
    "new_gateway",
    "persistence",
    "session_gateway",
    "shared_gateway",
]
__all__ += ["own", "own_claude", "shared_keys", "system", "system_log"]

# Only one generator runs, so a short lease takes no turn away from a slow one.
LEASE_S = 0.2
LEFT_S_MAX = 30.0
# More than any turn has.
APPENDS_MAX = 10_000


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proves(dialect, feature, client): the row of docs/CLIENTS.md that this test is")


def found_or_skip(path: str | None, program: str) -> str:
    """Returns `path`; skips the test if there is none."""
    if path is None:
        pytest.skip(f"there is no `{program}` here")
    return path


@pytest.fixture
def browser() -> str:
    """Returns the path of Chromium, which a script receives as `CHROMIUM`."""
    return found_or_skip(find_browser(), "chromium")


@pytest.fixture
def firefox() -> str:
    """Returns the path of Firefox, which a script receives as `FIREFOX`."""
    return found_or_skip(find_firefox(), "firefox-esr")


@pytest.fixture
def webkit() -> str:
    """Returns the path of WebKit's driver, which a script receives as `WEBKIT`."""
    return found_or_skip(find_webkit(), "WebKitWebDriver` and `Xvfb")


@pytest.fixture(params=["CHROMIUM", "FIREFOX", "WEBKIT"])
def each_browser(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Returns Chromium, then Firefox, then WebKit: the variable that a script receives, with its path."""
    fixture = {"CHROMIUM": "browser", "FIREFOX": "firefox", "WEBKIT": "webkit"}[request.param]
    return {request.param: request.getfixturevalue(fixture)}


@pytest.fixture
def pictures() -> Path:
    """Returns the folder of the pictures that tests take of pages, which is kept."""
    folder = CHECKOUT / "dist/pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
async def open_gateway(system: System, gateway: Gateway, new_gateway: NewGateway) -> Gateway:
    """A gateway of the shared system without API keys: EventSource cannot send one."""
    return await new_gateway(system.nats_url, api_keys="")


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's SDK, with a gateway of the shared system."""
    async with sdk_of(gateway.url) as sdk:
        yield sdk


@pytest.fixture
async def connections() -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client for SDKs that would leave their own connections open."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        yield client


async def read_stored_text(gateway: Gateway, turn: str) -> str:
    """Returns the text of a completed turn, which is the same in the log and in SQLite."""
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    assert record["outcome"] == "completed", record
    page = (await gateway.client.get(f"/v1/sessions/{record['session']}/turns")).json()
    recorded = {one["turn"]: one["text"] for one in page["turns"]}
    assert recorded[turn] == record["text"]
    text: str = record["text"]
    return text


async def count_turns(gateway: Gateway) -> int:
    """Returns how many turns the gateway's tenant has paid."""
    return sum(day["turns"] for day in (await gateway.client.get("/v1/usage")).json()["data"])


async def read_whole_turns(gateway: Gateway) -> list[str]:
    """Returns the texts of all turns of the test's tenant when they have ended."""
    turns = (await gateway.client.get("/v1/turns")).json()["data"]
    return [(await gateway.client.get(f"/v1/turns/{one['turn']}/events?dialect=text")).text for one in turns]


class Takeover:
    """A gateway without API keys and without a generator. Tests use it one after the other."""

    def __init__(self, gateway: Gateway, connection: Connection, nats_url: str, claude_url: str) -> None:
        self.gateway = gateway
        self._connection = connection
        self._nats_url = nats_url
        self._claude_url = claude_url

    @asynccontextmanager
    async def run_and_kill_after(self, entries: int, containing: bytes = b"") -> AsyncIterator[None]:
        """Runs the posted turn in a generator that is killed after so many entries that contain these bytes; then
        another generator continues.
        """
        urls = self._nats_url, self._claude_url
        assert await run_and_kill_after(entries, *urls, containing=containing), "its generator outlived the turn"
        async with running_generator(self._nats_url, self._claude_url):
            yield
            await until(lambda: is_acknowledged(self._connection))

    async def kill_in_each_pause(self, pauses: int, *, is_returned: bool = False) -> None:
        """Runs the posted turn in generators that are killed, one after the other, when they have stored a pause.

        `is_returned`: each pause ends a turn, which another generator completes; the client then posts the next turn.
        """
        for _ in range(pauses):
            urls = self._nats_url, self._claude_url
            assert await run_and_kill_after(1, *urls, containing=b'"pause_turn"'), "its generator outlived the turn"
            assert not is_returned or not await run_and_kill_after(APPENDS_MAX, *urls), "the turn did not end"
        async with running_generator(self._nats_url, self._claude_url):
            await until(lambda: is_acknowledged(self._connection))

    async def executions(self) -> dict[str, list[str]]:
        """Returns the results of each call of a server tool that the simulated Claude has executed, by the call."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            stats = (await client.get(f"{self._claude_url}/_sim/stats")).json()
        found: dict[str, list[str]] = stats["executions"]
        return found

    async def finish(self) -> None:
        """Runs the turn that a failed test has left: the next killed generator would run it."""
        if not await is_acknowledged(self._connection):
            async with running_generator(self._nats_url, self._claude_url):
                await until(lambda: is_acknowledged(self._connection), LEFT_S_MAX)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def takeover_system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Takeover]:
    """A system for the tests of a file: while those of other files run, its loop stands still, and it loses NATS."""
    folder = tmp_path_factory.mktemp("takeover")
    async with NatsServer(folder) as server:
        await apply_streams(server.url)
        connection = await Connection.open(server.url, "test")
        await shorten_lease(connection, LEASE_S)
        async with run_simulated_claude() as claude_url, Persistence(server.url, folder / "tailrace.db"):
            gateway = Gateway(server.url, LOCAL.access.tenant, {"api_keys": ""})
            await gateway.answers()
            yield Takeover(gateway, connection, server.url, claude_url)
            await gateway.stop()
        await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def takeover(takeover_system: Takeover) -> AsyncIterator[Takeover]:
    """For tests `on_shared_loop`: a new system for each would take half of their time."""
    yield takeover_system
    await takeover_system.finish()
