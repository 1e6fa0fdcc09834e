"""A process for strangers' work: it has an end, in time and in what it sees. The programs here are a few lines."""

import asyncio
import os
from pathlib import Path

import pytest

from tailrace.proto.errors import SandboxBusy, SandboxFailed
from tailrace.proto.runtime.sandbox import PROCESSES_MAX, PROCESSES_TENANT_MAX, Sandbox
from tests.until import until

LONG_S = 60.0


def program(folder: Path, *lines: str, wait_s: float = LONG_S) -> Sandbox:
    file = folder / f"program-{os.urandom(4).hex()}.py"
    file.write_text("\n".join(["import os, sys, time", *lines]))
    return Sandbox(file, wait_s=wait_s)


def begun(folder: Path) -> int:
    """How many programs have said that they run."""
    return len([*folder.glob("begun-*")])


async def test_what_it_says_is_the_answer(tmp_path: Path) -> None:
    """It is told something, and says something."""
    child = program(tmp_path, "sys.stdout.write(sys.stdin.read().upper())")
    assert await child.run(b"tell", LONG_S, "acme") == b"TELL"


async def test_it_is_told_how_long_it_may_compute(tmp_path: Path) -> None:
    """In seconds; it sets the limit itself, before it reads what a stranger has written."""
    child = program(tmp_path, "print(sys.argv[1:], end='')")
    assert await child.run(b"", LONG_S, "acme") == b"['3']"


async def test_one_that_does_nothing_is_killed(tmp_path: Path) -> None:
    """Also one that costs no CPU, has not read what it was told, and whose pid is known."""
    said = tmp_path / "pid"
    child = program(tmp_path, f"open({str(said)!r}, 'w').write(str(os.getpid()))", "time.sleep(3600)")
    with pytest.raises(SandboxFailed, match="more than"):
        await child.run(b"x" * 10_000_000, 1.0, "acme")
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), 0)


async def test_one_that_nobody_waits_for_is_killed(tmp_path: Path) -> None:
    """Whoever asked has gone away."""
    said = tmp_path / "pid"
    child = program(
        tmp_path, f"open({str(said)!r}, 'w').write(str(os.getpid()))", "print(flush=True)", "time.sleep(3600)"
    )
    asking = asyncio.create_task(child.run(b"", LONG_S, "acme"))
    await until(lambda: said.exists() and said.read_text())
    asking.cancel()
    await asyncio.wait({asking})
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), 0)


@pytest.mark.parametrize("line", ["sys.exit(3)", "1 / 0", "os.kill(os.getpid(), 9)", "import nothing_of_the_kind"])
async def test_one_that_breaks_has_said_nothing(tmp_path: Path, line: str) -> None:
    """Half an answer is none."""
    child = program(tmp_path, "sys.stdout.write('half')", "sys.stdout.flush()", line)
    with pytest.raises(SandboxFailed, match="status"):
        await child.run(b"", LONG_S, "acme")


async def test_one_that_computes_too_long_says_so(tmp_path: Path) -> None:
    """By its own limit, which does not count what others on the machine compute."""
    child = program(tmp_path, "import resource", "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))", "while True: pass")
    with pytest.raises(SandboxFailed, match="computing"):
        await child.run(b"", LONG_S, "acme")


async def test_it_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a generator are in its environment; nothing of Tailrace is on its path."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    child = program(tmp_path, "sys.stdout.write(repr(dict(os.environ)) + repr(sys.path))")
    said = (await child.run(b"", LONG_S, "acme")).decode()
    assert "sk-secret" not in said
    assert str(Path.cwd()) not in said.replace(f"{Path.cwd()}/.venv", "")


@pytest.mark.parametrize(("tenants", "most"), [(8, PROCESSES_MAX), (1, PROCESSES_TENANT_MAX)])
async def test_there_are_only_so_many_at_once(tmp_path: Path, tenants: int, most: int) -> None:
    """Others wait, and have their turn; one tenant's before they take all of the room."""
    child = program(
        tmp_path,
        f"mine = {str(tmp_path)!r} + '/running-' + str(os.getpid())",
        "open(mine, 'w').close()",
        "time.sleep(0.05)",
        f"running = [name for name in os.listdir({str(tmp_path)!r}) if name.startswith('running-')]",
        "os.remove(mine)",
        "print(len(running))",
    )
    counts = await asyncio.gather(*(child.run(b"", LONG_S, f"tenant-{number % tenants}") for number in range(8)))
    assert max(map(int, counts)) <= most


@pytest.mark.parametrize(("tenants", "most"), [(8, PROCESSES_MAX), (1, PROCESSES_TENANT_MAX)])
async def test_who_waits_for_a_place_does_not_wait_for_ever(tmp_path: Path, tenants: int, most: int) -> None:
    """Whoever has none in time is told so, and nothing was begun for it; the place that is free next is another's."""
    child = program(
        tmp_path,
        f"open({str(tmp_path)!r} + '/begun-' + str(os.getpid()), 'w').close()",
        "sys.stdin.read() or time.sleep(3600)",
        wait_s=0.2,
    )
    slow = [asyncio.create_task(child.run(b"", LONG_S, f"tenant-{number % tenants}")) for number in range(most)]
    await until(lambda: begun(tmp_path) == most)
    for number in range(tenants):
        with pytest.raises(SandboxBusy, match="in the way"):
            await child.run(b"quick", LONG_S, f"tenant-{number}")
    assert begun(tmp_path) == most
    for one in slow:
        one.cancel()
    await asyncio.wait(slow)
    assert await child.run(b"quick", LONG_S, "tenant-0") == b""
