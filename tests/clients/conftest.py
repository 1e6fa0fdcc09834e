"""Fixtures of the client tests: those of the integration tests, gateways without API keys, and killed generators.

A test compares what a client shows with the text of the log and of SQLite, which `read_stored_text` returns.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.proto.nats import Connection
from tests.clients.node import find_browser
from tests.harness.generator_in_loop import running_generator, shorten_lease
from tests.harness.killable_generator import run_and_kill_after
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import CHECKOUT
from tests.harness.system import System
from tests.integration.conftest import (
    Gateway,
    NewGateway,
    claude,
    gateway,
    generator,
    lone_gateway,
    new_gateway,
    persistence,
    system,
    system_log,
)

__all__ = ["claude", "gateway", "generator", "lone_gateway", "new_gateway", "persistence", "system", "system_log"]

# Only one generator runs, so a short lease takes no turn away from a slow one.
LEASE_S = 0.2


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proves(dialect, feature, client): the row of docs/CLIENTS.md that this test is")


@pytest.fixture
def browser() -> str:
    """Returns the path of Chromium, which a script receives as `CHROMIUM`."""
    found = find_browser()
    if found is None:
        pytest.skip("there is no `chromium` here")
    return found


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


class Takeover:
    """A gateway without API keys and without a generator."""

    def __init__(self, gateway: Gateway, nats_url: str, claude_url: str) -> None:
        self.gateway = gateway
        self._nats_url = nats_url
        self._claude_url = claude_url

    @asynccontextmanager
    async def run_and_kill_after(self, entries: int) -> AsyncIterator[None]:
        """Runs the posted turn in a generator that is killed after so many entries; then another generator
        continues.
        """
        assert await run_and_kill_after(entries, self._nats_url, self._claude_url), "its generator outlived the turn"
        async with running_generator(self._nats_url, self._claude_url):
            yield


@pytest.fixture
async def takeover(own_server: NatsServer, new_gateway: NewGateway, tmp_path: Path) -> AsyncIterator[Takeover]:
    connection = await Connection.open(own_server.url, "test")
    await shorten_lease(connection, LEASE_S)
    await connection.close()
    async with run_simulated_claude() as claude_url, Persistence(own_server.url, tmp_path / "tailrace.db"):
        yield Takeover(await new_gateway(own_server.url, api_keys=""), own_server.url, claude_url)
