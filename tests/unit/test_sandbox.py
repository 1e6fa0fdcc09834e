"""The sandbox: limits in time, number and environment. The scripts are a few lines."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tailrace.features.common.sandbox import PROCESSES_MAX, PROCESSES_TENANT_MAX, Sandbox
from tailrace.proto.errors import SandboxBusy, SandboxFailed
from tests.harness.until import until
from tests.harness.up import is_alive

LONG_S = 60.0


def program(folder: Path, *lines: str, wait_s: float = LONG_S) -> Sandbox:
    file = folder / f"program-{os.urandom(4).hex()}.py"
    file.write_text("\n".join(["import os, sys, time", *lines]))
    return Sandbox(file, wait_s=wait_s)


def count_started(folder: Path) -> int:
    """Returns how many scripts have started."""
    return len([*folder.glob("begun-*")])


async def test_run_returns_the_scripts_output_for_its_input_and_its_cpu_limit(tmp_path: Path) -> None:
    """The limit is an argument, in seconds. The script sets it itself before it reads its input."""
    sandbox = program(tmp_path, "print(sys.argv[1:], sys.stdin.read().upper(), end='')")
    assert await sandbox.run(b"input", LONG_S, "acme") == b"['3'] INPUT"


async def test_a_script_that_exceeds_the_timeout_is_killed(tmp_path: Path) -> None:
    """Also if it uses no CPU and does not read its input."""
    pid_file = tmp_path / "pid"
    sandbox = program(tmp_path, f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))", "time.sleep(3600)")
    with pytest.raises(SandboxFailed, match="more than"):
        await sandbox.run(b"x" * 10_000_000, 1.0, "acme")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_cancelling_the_caller_kills_the_script(tmp_path: Path) -> None:
    """The client of a cancelled request has disconnected."""
    pid_file = tmp_path / "pid"
    sandbox = program(
        tmp_path, f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))", "print(flush=True)", "time.sleep(3600)"
    )
    run = asyncio.create_task(sandbox.run(b"", LONG_S, "acme"))
    await until(lambda: pid_file.exists() and pid_file.read_text())
    run.cancel()
    await asyncio.wait({run})
    # uvloop kills it a moment later if the caller was cancelled while the script started.
    await until(lambda: not is_alive(int(pid_file.read_text())))


async def test_the_signal_that_stops_a_process_group_does_not_end_its_scripts(tmp_path: Path) -> None:
    """`up` sends SIGTERM to the group of a process, which still answers the requests that it has begun."""
    sandbox = program(tmp_path, "sys.stdin.read()", "print(os.getpgrp(), end='')")
    assert int(await sandbox.run(b"", LONG_S, "acme")) != os.getpgrp()


@pytest.mark.parametrize("line", ["sys.exit(3)", "1 / 0", "os.kill(os.getpid(), 9)", "import nothing_of_the_kind"])
async def test_a_script_that_fails_has_no_output(tmp_path: Path, line: str) -> None:
    sandbox = program(tmp_path, "sys.stdout.write('half')", "sys.stdout.flush()", line)
    with pytest.raises(SandboxFailed, match="status"):
        await sandbox.run(b"", LONG_S, "acme")


async def test_exceeding_the_cpu_limit_is_reported(tmp_path: Path) -> None:
    """CPU time, unlike wall time, does not depend on the load of the machine."""
    sandbox = program(
        tmp_path, "import resource", "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))", "while True: pass"
    )
    with pytest.raises(SandboxFailed, match="CPU time"):
        await sandbox.run(b"", LONG_S, "acme")


async def test_the_script_has_an_empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the process's secrets nor Tailrace's modules are visible to it."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    sandbox = program(tmp_path, "sys.stdin.read()", "sys.stdout.write(repr(dict(os.environ)) + repr(sys.path))")
    output = (await sandbox.run(b"", LONG_S, "acme")).decode()
    assert "sk-secret" not in output
    assert str(Path.cwd()) not in output.replace(f"{Path.cwd()}/.venv", "")


async def test_a_subprocess_that_ended_before_it_read_its_input_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = asyncio.create_subprocess_exec

    async def create_late(*command: Any, **given: Any) -> asyncio.subprocess.Process:
        process = await create(*command, **given)
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_late)
    with pytest.raises(SandboxFailed, match="ended before it read its input"):
        await program(tmp_path, "sys.exit(0)").run(b"{}", LONG_S, "acme")


@pytest.mark.parametrize(("tenants", "most"), [(8, PROCESSES_MAX), (1, PROCESSES_TENANT_MAX)])
async def test_subprocesses_are_limited_in_all_and_per_tenant(tmp_path: Path, tenants: int, most: int) -> None:
    sandbox = program(
        tmp_path,
        "sys.stdin.read()",
        f"mine = {str(tmp_path)!r} + '/running-' + str(os.getpid())",
        "open(mine, 'w').close()",
        "time.sleep(0.05)",
        f"running = [name for name in os.listdir({str(tmp_path)!r}) if name.startswith('running-')]",
        "os.remove(mine)",
        "print(len(running))",
    )
    counts = await asyncio.gather(*(sandbox.run(b"", LONG_S, f"tenant-{number % tenants}") for number in range(8)))
    assert max(map(int, counts)) <= most


@pytest.mark.parametrize(("tenants", "most"), [(8, PROCESSES_MAX), (1, PROCESSES_TENANT_MAX)])
async def test_waiting_for_a_subprocess_times_out(tmp_path: Path, tenants: int, most: int) -> None:
    sandbox = program(
        tmp_path,
        f"open({str(tmp_path)!r} + '/begun-' + str(os.getpid()), 'w').close()",
        "sys.stdin.read() or time.sleep(3600)",
        wait_s=0.2,
    )
    slow = [asyncio.create_task(sandbox.run(b"", LONG_S, f"tenant-{number % tenants}")) for number in range(most)]
    await until(lambda: count_started(tmp_path) == most)
    for number in range(tenants):
        with pytest.raises(SandboxBusy, match="no subprocess was free"):
            await sandbox.run(b"quick", LONG_S, f"tenant-{number}")
    assert count_started(tmp_path) == most
    for one in slow:
        one.cancel()
    await asyncio.wait(slow)
    assert await sandbox.run(b"quick", LONG_S, "tenant-0") == b""
