"""The processes on the command line: error messages, exit status, --check, and the CPU time of a stop."""

import asyncio
import json
import os
import pty
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tests.harness import processes
from tests.harness.forks import fork, run_module
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
TOKEN = "the-token-of-nats"


@pytest.fixture
def unused_address() -> Iterator[str]:
    """Host and port at which no process listens."""
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def environ_of(**environ: str) -> dict[str, str]:
    """Returns the environment of the tests with these settings only."""
    return processes.inherited_environ() | {"NO_PROXY": "127.0.0.1"} | environ


async def on_a_terminal(role: str, *arguments: str, **environ: str) -> tuple[int, str]:
    """Returns the status of a process that ends by itself, and its output on a terminal."""
    ours, its = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"tailrace.{role}", *arguments),
            cwd=processes.CHECKOUT,
            env=environ_of(**environ),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=its,
        )
        status = await asyncio.wait_for(process.wait(), processes.START_S_MAX)
        return status, os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(its)


async def test_a_check_without_nats_ends_with_one_line(unused_address: str) -> None:
    """The line has the address and what to do, without the token. A start waits: test_waiting.py."""
    where = f"nats://{TOKEN}@{unused_address}"
    status, shown = await on_a_terminal("gateway", "--check", TAILRACE_NATS_URL=where)
    assert (status, shown.count("\n")) == (1, 1)
    assert f"no NATS server answers at {unused_address}: start one, or set TAILRACE_NATS_URL" in shown
    assert TOKEN not in shown
    assert "{" not in shown


async def test_the_log_format_setting_overrides_the_terminal(tmp_path: Path) -> None:
    """Here the error is a database whose directory is a file."""
    (tmp_path / "file").touch()
    where = str(tmp_path / "file" / "tailrace.db")
    _, shown = await on_a_terminal("persistence", "--check", TAILRACE_DATABASE=where, TAILRACE_LOG_FORMAT="json")
    assert shown.startswith(f'{{"error": "the database {tmp_path / "file"} cannot be opened or written: File exists"')


@pytest.mark.parametrize(
    ("command", "environ", "message"),
    [
        ("gateway", {"TAILRACE_HOST": "256.0.0.1"}, "TAILRACE_HOST: '256.0.0.1' is not an address of this machine"),
        (
            "gateway --check",
            {"TAILRACE_CACHE": "9m"},
            "TAILRACE_CACHE: Invalid enum value '9m'; expected one of auto, 5m, 1h, off",
        ),
        (
            "generators --check",
            {"TAILRACE_NATS_URL": "nats://TOKEN@h:port", "ANTHROPIC_API_KEY": "k"},
            "TAILRACE_NATS_URL: expected nats://",
        ),
        ("persistence", {"TAILRACE_WEBHOOK_PRIVATE_HOSTS": "http://h"}, "TAILRACE_WEBHOOK_PRIVATE_HOSTS: 'http://h'"),
    ],
)
async def test_an_invalid_setting_is_refused_at_start_and_by_check(
    tmp_path: Path, command: str, environ: dict[str, str], message: str
) -> None:
    """One line and status 2; all settings are in test_every_setting.py."""
    role, *arguments = command.split()
    given = environ_of(**{"TAILRACE_DATABASE": str(tmp_path / "x.db")} | environ)
    status, stdout, stderr = await run_module(f"tailrace.{role}", *arguments, **given)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"{role}: {message}")
    assert "TOKEN@h" not in stderr


async def test_a_process_warns_of_a_mistyped_setting(unused_address: str) -> None:
    """It starts nevertheless: after a downgrade, the environment may have settings of the newer version."""
    nats = {"TAILRACE_NATS_URL": f"nats://{unused_address}"}
    environ = environ_of(TAILRACE_JWT_ISSUERS="https://h", **nats)
    status, _, stderr = await run_module("tailrace.gateway", "--check", **environ)
    first, second = map(json.loads, stderr.splitlines())
    assert (first["event"], first["variable"]) == ("unknown setting", "TAILRACE_JWT_ISSUERS")
    assert (first["level"], first["did_you_mean"]) == ("warning", "TAILRACE_JWT_ISSUER")
    assert (status, second["event"]) == (1, "stopped")


@pytest.mark.parametrize("role", ["gateway", "generators"])
async def test_a_process_warns_of_a_setting_of_an_earlier_version(unused_address: str, role: str) -> None:
    nats = f"nats://{unused_address}"
    environ = environ_of(TAILRACE_HEDGE_AFTER_S="2", TAILRACE_NATS_URL=nats, ANTHROPIC_API_KEY="k")
    _, _, stderr = await run_module(f"tailrace.{role}", "--check", **environ)
    first, second = map(json.loads, stderr.splitlines())
    assert (first["level"], first["event"], first["variable"]) == (
        "warning",
        "setting without effect",
        "TAILRACE_HEDGE_AFTER_S",
    )
    assert first["why"].startswith("hedging was removed")
    assert second["event"] == "stopped"


async def test_a_check_of_persistence_refuses_a_file_that_is_no_database(system: System, tmp_path: Path) -> None:
    """A start moves it aside, and makes a new database from the log."""
    (path := tmp_path / "x.db").write_bytes(b"no database " * 1000)
    given = environ_of(TAILRACE_NATS_URL=system.nats_url, TAILRACE_DATABASE=str(path))
    status, _, stderr = await run_module("tailrace.persistence", "--check", **given)
    assert (status, f"the database {path}: file is not a database (SQLITE_NOTADB)" in stderr) == (1, True)
    assert path.exists()


@pytest.mark.parametrize("setting", ["TAILRACE_PORT", "TAILRACE_METRICS_PORT"])
async def test_a_port_in_use_is_no_invalid_setting(system: System, setting: str) -> None:
    """Status 1: systemd starts the process again. The other program may end."""
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        given = environ_of(**{"TAILRACE_NATS_URL": system.nats_url, "TAILRACE_PORT": "0", setting: port})
        status, _, stderr = await run_module("tailrace.gateway", **given)
    assert status == 1
    assert f"{setting}: port {port} on 127.0.0.1 is in use: stop the program that uses it, or choose another" in stderr


async def test_a_gateway_that_cannot_read_the_signing_secret_ends_with_one_error(
    own_server: NatsServer, own_connection: Connection, tenant: Tenant
) -> None:
    """Its message is logged in one line; a group of errors would be a traceback."""
    await own_connection.jetstream.delete_stream("KV_SECRETS")
    gateway = Gateway(own_server.url, tenant, {})
    with pytest.raises(LogUnavailable, match="the signing secret cannot be read or stored"):
        await gateway.answers()
    await gateway.client.aclose()


@pytest.mark.parametrize("fault", ["", "an unreachable address", "a refused key"])
async def test_a_check_of_a_generator_calls_the_model(
    system: System, claude: str, unused_address: str, tmp_path: Path, fault: str
) -> None:
    """The message has the address, the error and its code; it does not contain the key."""
    url = f"http://{unused_address}" if fault == "an unreachable address" else claude
    key = "bad-key" if fault == "a refused key" else "sk-test"
    environ = {"TAILRACE_NATS_URL": system.nats_url, "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": key}
    printed = tmp_path / "printed.txt"
    process = await fork("tailrace.generators", ["--check"], os.environ | {"NO_PROXY": "127.0.0.1"} | environ, printed)
    await until(lambda: process.returncode is not None, processes.START_S_MAX)
    if not fault:
        assert (process.returncode, printed.read_text()) == (0, "generators: settings and connections are valid\n")
        return
    error = "the server's key was refused by the model's API (backend_refused_key)"
    if fault == "an unreachable address":
        error = f"no connection to the model (backend_unreachable: Cannot connect to host {unused_address} "
    assert process.returncode == 1
    assert f"{url}: {error}" in printed.read_text()
    assert key not in printed.read_text()


async def test_the_stop_of_a_generator_takes_little_cpu_time(system: System, claude: str) -> None:
    """CPU time is measured, so that a busy machine does not matter."""
    environ = processes.generator_environ(system.nats_url, claude)
    async with processes.Process("generators", system.folder, **environ) as generator:
        begun_s, reaped_s = cpu_s(generator.pid), children_cpu_s()
        assert await generator.stop() == 0
        assert children_cpu_s() - reaped_s - begun_s < 0.15


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def children_cpu_s() -> float:
    """Returns the CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
