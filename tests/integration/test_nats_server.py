"""NatsServer: start, passwords, stop, restart and errors of a real nats-server."""

import asyncio
import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_server import (
    FILE_BYTES_MAX,
    ROOT_USER,
    NatsServer,
    ServerSpec,
    command,
    storage_limit,
    wait_started,
)
from tailrace.deploy.nats import setup
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.deploy.nats.streams import log_bytes_max
from tailrace.proto.nats import Connection


async def reply(server: NatsServer, password: str, user: str) -> bytes:
    """Connects with `password` and requests the JetStream account; returns the reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.spec.port)
    ask = b"SUB i 1\r\nPUB $JS.API.INFO i 0\r\n\r\n"
    writer.write(b"CONNECT %b\r\n" % json.dumps({"user": user, "pass": password, "verbose": False}).encode() + ask)
    try:
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"INFO ")
            return await reader.readline() + await reader.readline()
    finally:
        writer.close()


@pytest.mark.rule("S16")
async def test_a_wrong_password_of_any_user_is_refused(tmp_path: Path) -> None:
    """Another user of the machine cannot read the log. The directory may have any name."""
    folder = tmp_path / 'it\'s "mine" äöü\\'
    folder.mkdir()
    async with NatsServer(folder) as server:
        assert (folder / "nats" / "jetstream").is_dir()
        for user in (ROOT_USER, *RIGHTS, "", "unknown"):
            for password in ("guessed", ""):
                assert b"Authorization Violation" in await reply(server, password, user), user


async def test_the_error_of_a_failed_start_is_the_servers_last_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = NatsServer(tmp_path)
        server.spec = ServerSpec(
            tmp_path, taken.getsockname()[1], server.spec.monitor_port, {"t": "t"}, "default", 1024
        )
        with pytest.raises(UpRefused, match="address already in use"):
            await server.start()


async def test_a_fuller_disk_does_not_prevent_a_new_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an upgrade, or after a deletion."""
    server = NatsServer(tmp_path, file_bytes_max=FILE_BYTES_MAX)
    async with server:
        await create_streams(server)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1024**2))
    limit = storage_limit(server.spec.store)
    async with NatsServer(tmp_path, spec=msgspec.structs.replace(server.spec, file_bytes_max=limit)) as restarted:
        assert await create_streams(restarted, without="KV_LOGINS") == 1


async def create_streams(server: NatsServer, without: str = "") -> int:
    """Deletes the stream `without`, and then creates what is missing. Returns how many it has created."""
    connection = await Connection.open(server.url, "test")
    try:
        if without:
            await connection.jetstream.delete_stream(without)
        return await setup.apply(connection, bytes_max=log_bytes_max(server.spec.file_bytes_max))
    finally:
        await connection.close()


async def test_a_missing_binary_is_reported_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(UpRefused, match="install Tailrace again; in a checkout: `make setup`"):
        command(NatsServer(tmp_path).spec)


async def test_wait_started_waits_for_the_greeting(tmp_path: Path) -> None:
    """An open port that is silent is not a started server."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        await asyncio.wait_for(wait_started(silent.getsockname()[1]), timeout=0.1)
