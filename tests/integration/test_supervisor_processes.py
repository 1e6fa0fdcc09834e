"""The supervisor with real child processes that die, hang or report."""

import asyncio
import io
import sys
from asyncio import TaskGroup
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tailrace.deploy.local.console import Console
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tests.harness.until import until
from tests.harness.up import is_alive

# Prints its pid, waits, and ignores SIGTERM.
STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid(), flush=True)
while True: signal.pause()
"""
# Leaves a child process behind that holds its pipe.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.alarm(60); signal.pause()"])
print("pid", child.pid, flush=True)
sys.exit(3)
"""


class Watch:
    """A supervisor, and the output that it has shown so far."""

    def __init__(self, supervisor: Supervisor, out: io.StringIO) -> None:
        self.supervisor = supervisor
        self.out = out

    def start(self, name: str, code: str, *, grace_s: float = 8.0) -> None:
        self.supervisor.start(ProcessSpec(name, name, (sys.executable, "-c", code), {}, grace_s=grace_s))

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()

    def pids(self) -> list[int]:
        """Returns the pids that the children have printed, oldest first."""
        return [int(line.rpartition(" ")[2]) for line in self.lines() if line.partition("| ")[2].startswith("pid ")]


@asynccontextmanager
async def watched_supervisor() -> AsyncIterator[Watch]:
    out = io.StringIO()
    async with TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Console(out, width=4, coloured=False))
        try:
            yield Watch(supervisor, out)
        finally:
            await supervisor.stop()


@pytest.mark.rule("F30")
async def test_a_child_that_ends_is_restarted_with_a_growing_delay() -> None:
    """One line has its name, its status and the delay; another its new pid."""
    async with watched_supervisor() as watch:
        watch.start("a", "import os; print('pid', os.getpid()); raise SystemExit(3)")
        await until(lambda: len(watch.lines()) >= 8)
        first, second, third = watch.pids()[:3]
        assert watch.lines()[:8] == [
            f"a    | pid {first}",
            "up   | a exited with status 3; next start in 0.1 s",
            f"up   | a runs again, pid {second}",
            f"a    | pid {second}",
            "up   | a exited with status 3; next start in 0.2 s",
            f"up   | a runs again, pid {third}",
            f"a    | pid {third}",
            "up   | a exited with status 3; next start in 0.4 s",
        ]


async def test_a_start_that_fails_is_repeated() -> None:
    """The machine may have no free process for a moment."""
    async with watched_supervisor() as watch:
        watch.supervisor.start(ProcessSpec("a", "a", ("/nowhere/at/all",), {}))
        await until(lambda: len(watch.lines()) >= 4)
        assert "a cannot be started: [Errno 2]" in watch.lines()[2]
        assert watch.lines()[3].endswith("next start in 0.2 s")


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace_period() -> None:
    async with watched_supervisor() as watch:
        watch.start("a", STUBBORN, grace_s=0.1)
        await until(watch.pids)
    assert watch.lines()[1:] == ["up   | a did not stop within 3.1 s", "up   | a stopped, but was killed by SIGKILL"]


async def test_a_child_that_ignores_sigterm_is_killed_and_started_again_at_a_restart() -> None:
    """Its event loop may run, so the check of hanging processes does not find it."""
    async with watched_supervisor() as watch:
        watch.start("a", STUBBORN, grace_s=0.1)
        [first] = await until(watch.pids)
        await asyncio.wait_for(watch.supervisor.end("a", 0.1), timeout=10)
        _, second = await until(lambda: watch.pids() if len(watch.pids()) == 2 else [])
    assert watch.lines()[1:5] == [
        f"up   | a has not ended 0.1 s after SIGTERM; killing it, pid {first}",
        "up   | a was killed by SIGKILL; next start in 0.1 s",
        f"up   | a runs again, pid {second}",
        f"a    | pid {second}",
    ]


async def test_child_processes_of_a_child_end_with_it() -> None:
    """They do not delay its restart."""
    async with watched_supervisor() as watch:
        watch.start("a", PARENT)
        [grandchild] = await until(watch.pids)
        await until(lambda: not is_alive(grandchild))
        await until(lambda: "up   | a exited with status 3; next start in 0.1 s" in watch.lines())


async def test_nothing_is_started_after_a_stop() -> None:
    """Nor a child that waits for its restart."""
    async with watched_supervisor() as watch:
        watch.start("a", "raise SystemExit(3)")
        await until(lambda: watch.lines()[-1:] == ["up   | a exited with status 3; next start in 0.8 s"])
        began = len(watch.lines())
        await watch.supervisor.stop()
        watch.start("late", "print()")
        assert "late" not in watch.supervisor.children
    assert len(watch.lines()) == began


async def test_a_child_has_its_own_session_and_no_input() -> None:
    """The terminal sends Ctrl-C to the supervisor only, which knows the order."""
    async with watched_supervisor() as watch:
        watch.start("a", "import os, sys; print(os.getsid(0) == os.getpid(), repr(sys.stdin.read()))")
        await until(watch.lines)
        assert watch.lines()[0] == "a    | True ''"
