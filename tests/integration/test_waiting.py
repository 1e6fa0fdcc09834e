"""A process that starts before what it needs: it waits with a line and a state, and works as soon as it can."""

import asyncio
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, Self

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.ports import find_free
from tailrace.deploy.local.spawn import spawn
from tailrace.persistence.migrations import NEWEST
from tailrace.proto.nats import Connection
from tailrace.proto.nats.users import ADMIN
from tests.conftest import apply_streams
from tests.harness import processes
from tests.harness.forks import run_command, run_module
from tests.harness.processes import Process
from tests.harness.system import System
from tests.harness.until import until, until_equal

ROLES = ("gateway", "generators", "persistence")
NO_NATS = "waiting for nats-server"


class StartingProcess:
    """A process that was launched, and its ports."""

    def __init__(self, role: str, folder: Path, nats_url: str, **environ: object) -> None:
        self.port, self.metrics_port = find_free(2)
        environ = {"TAILRACE_METRICS_PORT": self.metrics_port, **environ}
        if role == "gateway":
            self.process = processes.gateway(folder, nats_url, **{"TAILRACE_PORT": self.port, **environ})
        elif role == "generators":
            self.process = processes.generator(folder, nats_url, "http://127.0.0.1:9", **environ)
        else:
            self.process = processes.persistence(folder, nats_url, **environ)

    async def __aenter__(self) -> Self:
        await self.process.launch()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.process.stop(SIGKILL)

    async def get(self, path: str, port: int = 0) -> tuple[int, str]:
        """Returns the status and the text of a response; by default of the port for metrics. 0 without a response."""
        try:
            async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
                answer = await client.get(f"http://127.0.0.1:{port or self.metrics_port}{path}")
        except httpx2.TransportError:
            return 0, ""
        return answer.status_code, answer.text.strip()

    async def until_waiting(self, awaited: str) -> dict[str, Any]:
        """Returns its only line about the wait, when `/readyz` says that it waits."""
        await until_equal(lambda: self.get("/readyz"), (503, f"waiting for {awaited}"))
        assert await self.get("/healthz") == (200, "ok")
        assert "\ntailrace_waiting 1.0" in (await self.get("/metrics"))[1]
        [line] = self.process.find_lines(f"waiting for {awaited}")
        return line

    async def until_ready(self) -> None:
        await self.process.wait_ready()
        assert await self.get("/readyz") == (200, "ok")
        assert "\ntailrace_waiting 0.0" in (await self.get("/metrics"))[1]


@pytest.mark.rule("F35")
@pytest.mark.parametrize("role", ROLES)
async def test_a_process_waits_for_nats_and_works_when_it_is_there(
    own_server: NatsServer, tmp_path: Path, role: str
) -> None:
    """A gateway answers on its own port, too: clients repeat the request."""
    await own_server.stop(SIGKILL)
    async with StartingProcess(role, tmp_path, own_server.url) as starting:
        line = await starting.until_waiting("nats-server")
        assert (line["level"], f"127.0.0.1:{own_server.spec.port}: start one" in line["error"]) == ("warning", True)
        if role == "gateway":
            await until_equal(lambda: starting.get("/healthz", starting.port), (200, '{"ok":true}'))
            report = f'{{"ok":false,"gateway":{{"ok":false,"detail":"{NO_NATS}"}}}}'
            assert await starting.get("/readyz", starting.port) == (503, report)
            status, answer = await starting.get("/v1/turns", starting.port)
            assert (status, f"this gateway is {NO_NATS}: retry" in answer) == (503, True)
        await own_server.start()
        await starting.until_ready()
        assert await starting.process.stop(SIGTERM) == 0


@pytest.mark.parametrize("role", ROLES)
async def test_a_process_that_waits_stops_at_once(tmp_path: Path, role: str) -> None:
    """The first process of a container gets SIGTERM only if it has a handler."""
    [port] = find_free(1)
    async with StartingProcess(role, tmp_path, f"nats://127.0.0.1:{port}") as starting:
        await starting.until_waiting("nats-server")
        begun_s = time.monotonic()
        assert await starting.process.stop(SIGTERM) == 0
        assert time.monotonic() - begun_s < 5


async def test_a_process_waits_for_the_streams(tmp_path: Path) -> None:
    async with (
        NatsServer(tmp_path) as server,
        StartingProcess("generators", tmp_path, server.url) as starting,
    ):
        line = await starting.until_waiting("the streams in NATS")
        assert "run `tailrace streams --new`" in line["error"]
        await apply_streams(server.url)
        await starting.until_ready()


async def test_persistence_waits_for_a_database_that_cannot_be_opened(own_server: NatsServer, tmp_path: Path) -> None:
    (folder := tmp_path / "folder").touch()
    database = folder / "tailrace.db"
    async with StartingProcess("persistence", tmp_path, own_server.url, TAILRACE_DATABASE=database) as starting:
        line = await starting.until_waiting("the database")
        assert str(folder) in line["error"]
        folder.unlink()
        await starting.until_ready()
    assert database.exists()


async def test_a_gateway_waits_for_the_first_key(own_server: NatsServer, tmp_path: Path) -> None:
    """It needs no restart. Until then, it answers no request."""
    async with StartingProcess("gateway", tmp_path, own_server.url, TAILRACE_HOST="0.0.0.0") as starting:
        line = await starting.until_waiting("an API key")
        assert "create a key with `tailrace keys create`" in line["error"]
        await until_equal(lambda: starting.get("/healthz", starting.port), (200, '{"ok":true}'))
        assert (await starting.get("/v1/sessions", starting.port))[0] == 503
        url = processes.as_user(own_server.url, ADMIN)
        created = await run_command("keys", "create", "--tenant", "acme", TAILRACE_NATS_URL=url)
        assert created.status == 0
        await starting.until_ready()
        assert (await starting.get("/v1/sessions", starting.port))[0] == 401


async def test_a_gateway_that_waits_leaves_an_inherited_socket_alone(own_server: NatsServer, tmp_path: Path) -> None:
    """Another gateway may answer on it; with systemd, clients wait in its queue."""
    await own_server.stop(SIGKILL)
    with closing(socket.create_server(("127.0.0.1", 0))) as shared:
        port = shared.getsockname()[1]
        inherited = InheritingProcess(tmp_path, own_server.url, shared.fileno())
        await inherited.launch()
        try:
            await until(lambda: bool(inherited.find_lines(NO_NATS)), processes.START_S_MAX)
            answer = asyncio.create_task(asyncio.to_thread(get_health, port))
            await own_server.start()
            await inherited.wait_ready()
            assert await answer == 200
        finally:
            await inherited.stop(SIGKILL)


class InheritingProcess(Process):
    """A gateway that inherits a listening socket."""

    def __init__(self, folder: Path, nats_url: str, listen_fd: int) -> None:
        url = processes.as_user(nats_url, "gateway")
        super().__init__("gateway", folder, TAILRACE_NATS_URL=url, TAILRACE_LISTEN_FD=listen_fd)
        self._listen_fd = listen_fd

    async def _launch(self) -> asyncio.subprocess.Process:
        with self.printed.open("ab") as printed:
            return await spawn(self.command, self._environ, printed.fileno(), (self._listen_fd,))


def get_health(port: int) -> int:
    return httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=processes.START_S_MAX).status_code


@pytest.mark.parametrize("role", ROLES)
async def test_a_wrong_password_ends_the_process_with_status_2(system: System, tmp_path: Path, role: str) -> None:
    """A supervisor does not start it again: only a change of the setting helps."""
    url = processes.as_user(system.nats_url, role).replace("@", "x@")
    environ = processes.inherited_environ() | {
        "TAILRACE_NATS_URL": url,
        "TAILRACE_DATABASE": str(tmp_path / "x.db"),
        "ANTHROPIC_API_KEY": "k",
    }
    ended = await run_module(f"tailrace.{role}", **environ)
    assert ended.status == 2
    assert "rejects the user or password: set TAILRACE_NATS_URL" in ended.err


async def test_a_database_of_a_newer_version_ends_persistence_with_status_2(system: System, tmp_path: Path) -> None:
    with closing(sqlite3.connect(path := tmp_path / "x.db")) as database:
        database.execute(f"PRAGMA user_version = {NEWEST + 1}")
    environ = {"TAILRACE_NATS_URL": processes.as_user(system.nats_url, "persistence"), "TAILRACE_DATABASE": str(path)}
    ended = await run_module("tailrace.persistence", **processes.inherited_environ() | environ)
    assert (ended.status, "start the newer version again" in ended.err) == (2, True)


async def test_streams_of_another_version_end_the_process_with_status_2(own_server: NatsServer, tmp_path: Path) -> None:

    connection = await Connection.open(own_server.url, "test")
    config = (await connection.jetstream.stream_info("TURNS")).config
    config.allow_direct = False
    await connection.jetstream.update_stream(config)
    await connection.close()
    environ = {"TAILRACE_NATS_URL": processes.as_user(own_server.url, "gateway"), "TAILRACE_PORT": "0"}
    ended = await run_module("tailrace.gateway", **processes.inherited_environ() | environ)
    assert (ended.status, "NATS is set up for another version" in ended.err) == (2, True)


async def test_a_port_in_use_ends_a_gateway_that_waits_with_status_1(tmp_path: Path) -> None:
    [nats_port] = find_free(1)
    with closing(socket.create_server(("127.0.0.1", 0))) as used:
        port = str(used.getsockname()[1])
        environ = {"TAILRACE_NATS_URL": f"nats://127.0.0.1:{nats_port}", "TAILRACE_PORT": port}
        ended = await run_module("tailrace.gateway", **processes.inherited_environ() | environ)
    assert (ended.status, f"port {port} on 127.0.0.1 is in use" in ended.err) == (1, True)
