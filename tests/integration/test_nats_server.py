"""A real nats-server, started as `up` and the other tests start it."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_server import ROOT_USER, NatsServer, ServerSpec, command, wait_started
from tailrace.proto.nats.permissions import RIGHTS


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path) as server:
        yield server


async def said(server: NatsServer, password: str, user: str = ROOT_USER) -> bytes:
    """What the server says to somebody who connects with `password` and asks JetStream for its account."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.spec.port)
    ask = b"SUB i 1\r\nPUB $JS.API.INFO i 0\r\n\r\n"
    writer.write(b"CONNECT %b\r\n" % json.dumps({"user": user, "pass": password, "verbose": False}).encode() + ask)
    try:
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"INFO ")
            return await reader.readline() + await reader.readline()
    finally:
        writer.close()


async def test_a_server_is_ready_within_a_second(tmp_path: Path) -> None:
    """Every test may have a server of its own, because one costs next to nothing: the best of three, in wall time."""
    took_s = []
    for number in range(3):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        started_s = time.monotonic()
        async with NatsServer(folder):
            took_s.append(time.monotonic() - started_s)
    assert min(took_s) < 1.0


async def test_a_server_that_greets_has_jetstream_and_knows_its_password(server: NatsServer) -> None:
    """Ready means that the log answers, not only that the port is open."""
    assert b'"type":"io.nats.jetstream.api.v1.account_info_response"' in await said(
        server, server.spec.passwords[ROOT_USER]
    )


@pytest.mark.rule("S16")
@pytest.mark.parametrize("user", [ROOT_USER, *RIGHTS, "", "nobody"])
async def test_a_wrong_password_is_refused(server: NatsServer, user: str) -> None:
    """Another user of the machine cannot read the log."""
    assert b"Authorization Violation" in await said(server, "guessed", user)
    assert b"Authorization Violation" in await said(server, "", user)


async def test_the_configuration_is_for_its_owner_only(server: NatsServer) -> None:
    """The passwords in it open the log."""
    assert (server.spec.directory / "nats.conf").stat().st_mode & 0o777 == 0o600


async def test_a_server_that_was_killed_comes_back_where_it_was(server: NatsServer) -> None:
    """Clients find it again after a crash: port and passwords stay."""
    assert await server.stop(SIGKILL) == -SIGKILL
    await server.start()
    assert b"account_info_response" in await said(server, server.spec.passwords[ROOT_USER])


async def test_a_server_stops_in_order_when_asked(server: NatsServer) -> None:
    """SIGTERM lets it close its files: status 0, and it says so."""
    assert await server.stop(SIGTERM) == 0
    assert "Server Exiting" in server.log.read_text()


async def test_any_name_of_a_folder_will_do(tmp_path: Path) -> None:
    """Spaces, quotes and letters beyond ASCII reach the server as they are."""
    folder = tmp_path / 'it\'s "mine" äöü\\'
    folder.mkdir()
    async with NatsServer(folder):
        assert (folder / "nats" / "jetstream").is_dir()


async def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own last line is the best sentence that there is."""
    monkeypatch.setattr("tailrace.deploy.local.nats_server.START_S_MAX", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = NatsServer(tmp_path)
        server.spec = ServerSpec(
            tmp_path, taken.getsockname()[1], server.spec.monitor_port, {"t": "t"}, "default", 1024
        )
        with pytest.raises(UpRefused, match="address already in use"):
            await server.start()


async def test_a_missing_binary_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs it with another Python is told what to run."""
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(UpRefused, match="install it with `make setup`"):
        command(NatsServer(tmp_path).spec)


async def test_asking_waits_for_the_greeting(tmp_path: Path) -> None:
    """A port that is open but silent is not a server that answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        await asyncio.wait_for(wait_started(silent.getsockname()[1]), timeout=0.1)
