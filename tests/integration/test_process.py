"""What the three processes have in common, as processes: what they say when something is away, and how they leave."""

import asyncio
import os
import pty
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.system import System

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
TOKEN = "the-token-of-nats"


@pytest.fixture
def nobody() -> Iterator[str]:
    """Where nobody listens, as host and port."""
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


async def run(role: str, *arguments: str, stderr: int = subprocess.PIPE, **environ: str) -> tuple[int, str, str]:
    """Status, standard output and error of a process that ends by itself."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("ANTHROPIC_", "TAILRACE_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tailrace.{role}",
        *arguments,
        cwd=processes.CHECKOUT,
        env=inherited | {"NO_PROXY": "127.0.0.1"} | environ,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    said, complained = await asyncio.wait_for(process.communicate(), processes.START_S_MAX)
    return process.returncode or 0, said.decode(), (complained or b"").decode()


async def on_a_terminal(role: str, *arguments: str, **environ: str) -> tuple[int, str]:
    """Status of a process that ends by itself, and what it wrote on its terminal."""
    ours, its = pty.openpty()
    try:
        status, _, _ = await run(role, *arguments, stderr=its, **environ)
        return status, os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(its)


async def test_a_process_without_nats_says_where_it_looked_and_what_to_do(nobody: str) -> None:
    """One sentence for the person at the terminal, without the token."""
    where = f"nats://{TOKEN}@{nobody}"
    status, shown = await on_a_terminal("gateway", TAILRACE_NATS_URL=where)
    assert (status, shown.count("\n")) == (1, 1)
    assert f"no NATS server answers at {nobody}: start one, or set TAILRACE_NATS_URL" in shown
    assert TOKEN not in shown
    assert "{" not in shown


async def test_what_is_asked_for_counts_more_than_the_terminal(tmp_path: Path) -> None:
    """A person may want to see what the machines will read; here of a database in a folder that is a file."""
    (tmp_path / "file").touch()
    where = str(tmp_path / "file" / "tailrace.db")
    _, shown = await on_a_terminal("persistence", TAILRACE_DATABASE=where, TAILRACE_LOG_FORMAT="json")
    assert shown.startswith('{"error": ')


@pytest.mark.parametrize(
    ("role", "environ", "says"),
    [
        ("gateway", {"TAILRACE_HOST": "256.0.0.1"}, "TAILRACE_HOST: '256.0.0.1' is not an address of this machine"),
        (
            "gateway",
            {"TAILRACE_CACHE": "9m"},
            "TAILRACE_CACHE: Invalid enum value '9m'; expected one of auto, 5m, 1h, off",
        ),
        (
            "generators",
            {"TAILRACE_NATS_URL": "nats://TOKEN@h:port", "ANTHROPIC_API_KEY": "k"},
            "TAILRACE_NATS_URL: expected nats://",
        ),
        ("persistence", {"TAILRACE_WEBHOOK_PRIVATE_HOSTS": "http://h"}, "TAILRACE_WEBHOOK_PRIVATE_HOSTS: 'http://h'"),
    ],
)
async def test_a_check_refuses_a_setting_that_cannot_be_meant(
    tmp_path: Path, role: str, environ: dict[str, str], says: str
) -> None:
    """One sentence and status 2, as the process itself would say; all settings are in test_every_setting.py."""
    for arguments in ((role,), (role, "--check")):
        given = {"TAILRACE_DATABASE": str(tmp_path / "x.db"), **environ}
        status, said, complained = await run(*arguments, stderr=subprocess.PIPE, **given)
        assert (status, said, complained.count("\n")) == (2, "", 1)
        assert complained.startswith(f"{role}: {says}")
        assert "TOKEN@h" not in complained


async def test_a_check_asks_the_model_for_its_models(system: System, claude: str) -> None:
    """What it says is fine was tried."""
    status, said, complained = await check(system, claude, "sk-test")
    assert (status, said, complained) == (0, "generators: settings and connections are valid\n", "")


async def test_a_check_names_the_address_where_nobody_answers(system: System, nobody: str) -> None:
    """An address that is mistyped is found before the first turn fails by it."""
    status, said, complained = await check(system, f"http://{nobody}", "sk-test")
    assert (status, said) == (1, "")
    assert f"http://{nobody}: no connection to the model (backend_unreachable)" in complained


async def test_a_check_says_that_a_key_is_refused(system: System, claude: str) -> None:
    """In the model's own words, and with our code, which docs/ERRORS.md explains; the key is not said."""
    status, said, complained = await check(system, claude, "bad-key")
    assert (status, said) == (1, "")
    assert f"{claude}: invalid x-api-key (backend_refused_key)" in complained
    assert "bad-key" not in complained


async def check(system: System, claude_url: str, key: str) -> tuple[int, str, str]:
    return await run(
        "generators",
        "--check",
        TAILRACE_NATS_URL=system.nats_url,
        ANTHROPIC_BASE_URL=claude_url,
        ANTHROPIC_API_KEY=key,
    )


async def test_a_generator_leaves_without_tidying_up(system: System, claude: str) -> None:
    """Whoever stops a system waits for this: it is CPU that is counted, a busy machine does not matter."""
    async with processes.generator(system.folder, system.nats_url, claude) as generator:
        begun_s, reaped_s = cpu_s(generator.pid), children_cpu_s()
        assert await generator.stop() == 0
        assert children_cpu_s() - reaped_s - begun_s < 0.15


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def children_cpu_s() -> float:
    """Of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
