"""`tailrace doctor` on a machine without a running system: each problem, and what to do about it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from tailrace.deploy.cli.doctor import Finding, Level, examine, render
from tailrace.deploy.local import data_dir, running
from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.status_file import FILE, Restart, UpStatus
from tailrace.features.persistence import DATABASES
from tailrace.proto.version import VERSION


async def findings(options: Options, **environ: str) -> dict[str, Finding]:
    return {one.name: one for one in await examine(options, environ)}


async def test_a_healthy_machine_passes_every_check(tmp_path: Path) -> None:
    found = await findings(Options(port=0, data_dir=tmp_path / "new"))
    assert {one.level for one in found.values() if one.name != "File limit"} == {"ok"}
    assert list(found) == ["Python", "Settings", "Port", "Disk", "File limit", "Database", "NATS", "Model key"]


async def test_a_port_in_use_is_an_error_with_an_action(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = await findings(Options(port=server.getsockname()[1], data_dir=tmp_path))
    assert found["Port"].level == "error"
    assert found["Port"].action == "stop the program that uses it, or choose another with --port"
    assert f"→ {found['Port'].action}" in render(list(found.values()))


async def test_a_data_directory_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = (await findings(Options(port=0, data_dir=tmp_path / "file")))["Disk"]
    assert (found.level, found.detail) == ("error", f"{tmp_path}/file is not a directory")


@pytest.mark.parametrize(
    ("database", "names"),
    [({}, set()), ({"TAILRACE_DATABASE": "new/tailrace.db"}, {"Disk", "Database"})],
    ids=["of another machine", "of this machine"],
)
async def test_with_your_own_nats_what_no_process_uses_is_not_checked(
    tmp_path: Path, database: dict[str, str], names: set[str]
) -> None:
    """The port and the data directory are those of `up`."""
    database = {name: str(tmp_path / path) for name, path in database.items()}
    found = await findings(Options(data_dir=tmp_path), TAILRACE_NATS_URL="nats://127.0.0.1:1", **database)
    assert found.keys() & {"Port", "Disk", "Database"} == names
    assert all(str(tmp_path / "new") in found[name].detail or name == "Disk" for name in names)


@asynccontextmanager
async def run_up(state_dir: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> AsyncIterator[str]:
    """Runs a server that answers with `status`, and notes it as an `up` of this user. Yields its URL."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state_dir))
    (folder := state_dir / "other").mkdir()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d any\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        write_private(
            folder / FILE, msgspec.json.encode(UpStatus(VERSION, os.getpid(), url, [], [], Restart())).decode()
        )
        with data_dir.lock(folder, "up"):
            running.record(folder)
            yield url


@pytest.mark.parametrize(
    ("status", "level", "state", "action"),
    [(200, "ok", "which is ready", ""), (503, "error", "which is not ready", "see `tailrace status`")],
)
async def test_a_port_of_an_up_of_this_user_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, level: Level, state: str, action: str
) -> None:
    """It may have another data directory."""
    async with run_up(tmp_path, monkeypatch, status) as url:
        found = (await findings(Options(port=urlsplit(url).port or 0, data_dir=tmp_path / "new")))["Port"]
    assert found == Finding("Port", level, f"in use by the running `up` (pid {os.getpid()}) at {url}, {state}", action)


async def test_an_address_that_cannot_be_bound_is_an_error_also_beside_an_up_at_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_up(tmp_path, monkeypatch, 200) as url:
        options = Options(host="203.0.113.7", port=urlsplit(url).port or 0, data_dir=tmp_path / "new")
        found = (await findings(options))["Port"]
    assert (found.level, found.action) == ("error", "choose another address with --host")


@pytest.mark.parametrize(
    ("environ", "name", "level", "detail"),
    [
        ({"TAILRACE_PORTT": "1"}, "Settings", "error", "TAILRACE_PORTT is not a setting"),
        ({"ANTROPIC_API_KEY": "x"}, "Settings", "warning", "did you mean ANTHROPIC_API_KEY?"),
        ({"TAILRACE_HEDGE_AFTER_S": "2"}, "Settings", "warning", "TAILRACE_HEDGE_AFTER_S has no effect: hedging was"),
        ({"TAILRACE_STREAMS_MAX": "100000000"}, "File limit", "warning", "file descriptors allow"),
        ({"TAILRACE_NATS_URL": "nats://127.0.0.1:1"}, "NATS", "error", "no NATS server answers at 127.0.0.1:1"),
        (
            {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"},
            *("Model key", "error", "http://127.0.0.1:1: "),
        ),
    ],
)
async def test_a_failed_check_names_the_problem_and_an_action(
    tmp_path: Path, environ: dict[str, str], name: str, level: str, detail: str
) -> None:
    found = (await findings(Options(port=0, data_dir=tmp_path), **environ))[name]
    assert (found.level, detail in found.detail, bool(found.action)) == (level, True, True), msgspec.to_builtins(found)


@pytest.mark.parametrize(
    ("environ", "detail"),
    [({}, "a simulated Claude answers"), ({"TAILRACE_NATS_URL": "nats://127.0.0.1:1"}, "not checked")],
)
async def test_a_missing_key_means_a_simulated_claude_only_for_up(
    tmp_path: Path, environ: dict[str, str], detail: str
) -> None:
    """With your own NATS, generators run elsewhere, and their key is not known."""
    found = (await findings(Options(port=0, data_dir=tmp_path), **environ))["Model key"]
    assert (found.level, detail in found.detail, "simulated" in found.detail) == ("ok", True, not environ)


@pytest.mark.parametrize("key", [{}, {"ANTHROPIC_API_KEY": "k"}], ids=["no key", "a key"])
async def test_the_key_of_another_backend_is_not_checked(
    tmp_path: Path, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Anthropic's API has a request that is free of charge."""
    pytest.importorskip("botocore", reason="botocore is not installed: run `make setup`")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    environ = {"TAILRACE_BACKENDS": "bedrock", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}
    found = await findings(Options(port=0, data_dir=tmp_path), **environ, **key)
    assert (found["Model key"].level, found["Model key"].detail.partition(":")[0]) == ("ok", "not checked")
    assert "Clock" not in found


async def test_a_database_that_was_moved_aside_is_a_warning(tmp_path: Path) -> None:
    """The history then lacks older turns, and nothing else says so later."""
    await (await DATABASES.open(tmp_path / "tailrace.db", busy_timeout_s=1)).close()
    (tmp_path / "tailrace.db.damaged-1").write_bytes(b"damaged")
    (tmp_path / "tailrace.db.damaged-2").write_bytes(b"damaged")
    found = (await findings(Options(port=0, data_dir=tmp_path)))["Database"]
    assert (found.level, found.detail.partition(" was damaged")[0]) == (
        "warning",
        str(tmp_path / "tailrace.db.damaged-2"),
    )


async def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tailrace.db").write_text("no database " * 100)
    assert (await findings(Options(port=0, data_dir=tmp_path)))["Database"].level == "error"
