"""Process supervisor: restarts processes that end, with a growing delay, and stops all processes in order.

The decisions are two pure functions, `next_delay_s` and `stop_order`. One coroutine runs each process for the whole
time, so its state has one owner.
"""

import asyncio
import os
import time
from asyncio import Event, Future, TaskGroup
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from signal import SIGKILL, SIGTERM, Signals

import msgspec

from tailrace.deploy.local.console import Console
from tailrace.deploy.local.readiness import HealthCheck
from tailrace.deploy.local.spawn import describe, signal_group, spawn
from tailrace.proto.runtime.exit_status import EXIT_USAGE
from tailrace.proto.runtime.race import is_set_within, run_until

DELAY_S_MIN = 0.1
DELAY_S_MAX = 5.0
# A process that ran this long did not fail at its start: it is started again at once. On two busy cores a generator's
# start takes up to three seconds.
LIFE_S_MIN = 3.0
# From the first SIGTERM to the second one.
GRACE_S = 5.0
# From the second SIGTERM, at which a process ends at once, to SIGKILL.
KILL_S = 3.0
# The wait for the last lines of an ended process; a process that it started may hold its pipe open.
LAST_LINES_S = 1.0
# Both mean an orderly end: uvicorn, when it has closed everything, ends itself with the signal that it got.
STOPPED = (0, -SIGTERM)
EXIT_NOT_STARTED = 127  # as in a shell


def show_all(_: str) -> bool:
    return True


class ProcessSpec(msgspec.Struct, frozen=True):
    """One process to run. `role` groups equal processes: `gateway-2` has the role `gateway`."""

    name: str
    role: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    where: tuple[str, ...] = ()  # its addresses, for the process table
    fds: tuple[int, ...] = ()  # sockets that it inherits
    grace_s: float = GRACE_S
    is_spare: bool = False  # not started again when it ends
    is_shown: Callable[[str], bool] = show_all  # called with each line of its output: whether to print it
    readiness: HealthCheck | None = None  # None: `up` checks it in another way
    usage_error: str = "reports an invalid setting"  # what EXIT_USAGE means at its start


def next_delay_s(delay_s: float, lived_s: float) -> float:
    """Returns the seconds to wait before the next start; `delay_s` was the previous wait, 0 before the first."""
    if lived_s >= LIFE_S_MIN:
        return 0.0
    return min(2 * delay_s, DELAY_S_MAX) if delay_s else DELAY_S_MIN


def stop_order(specs: Sequence[ProcessSpec]) -> list[list[ProcessSpec]]:
    """Returns the roles in the reverse order of their start. All processes of one role stop together."""
    roles = dict.fromkeys(spec.role for spec in specs)
    return [[spec for spec in reversed(specs) if spec.role == role] for role in reversed(roles)]


class Child:
    """A process that is restarted until it is stopped."""

    def __init__(self, spec: ProcessSpec, supervisor: "Supervisor") -> None:
        self.spec = spec
        self.supervisor = supervisor
        self.console = supervisor.console
        self.process: Process | None = None
        self.stopping = Event()
        self.is_last_run = False  # not started again when it ends

    @property
    def pid(self) -> int | None:
        """The pid while the process runs, otherwise None."""
        return self.process.pid if self.process and self.process.returncode is None else None

    async def run(self) -> None:
        """Runs the process again and again, until `stopping` is set or it reports an invalid setting at the start."""
        name, delay_s, is_restart = self.spec.name, 0.0, False
        while not self.stopping.is_set() and not (self.is_last_run and is_restart):
            started_s = time.monotonic()
            status = await self.run_once(is_restart=is_restart)
            is_restart = True
            # A process ends like this only if it was asked to: a planned restart is no problem.
            how = "has ended" if status in STOPPED else describe(status)
            if self.stopping.is_set() or self.is_last_run:
                self.console.log(f"{name} stopped" if status in STOPPED else f"{name} stopped, but {how}")
                return
            # Later, the same settings were valid.
            if status == EXIT_USAGE and not self.supervisor.has_started:
                self.console.log(f"{name} {how}")
                if not self.supervisor.fatal_config.done():
                    self.supervisor.fatal_config.set_result(f"{name} {self.spec.usage_error}")
                return
            delay_s = next_delay_s(delay_s, time.monotonic() - started_s)
            self.console.log(f"{name} {how}; next start in {delay_s:g} s")
            await is_set_within(self.stopping, delay_s)

    async def run_once(self, *, is_restart: bool) -> int:
        """Runs the process from its start to its last line; returns its status."""
        read_end, write_end = os.pipe()
        relay = asyncio.create_task(self.console.relay(self.spec.name, read_end, self.spec.is_shown))
        try:
            environ = {**self.spec.environ, **self.console.environ_of(write_end)}
            self.process = await spawn(self.spec.command, environ, write_end, self.spec.fds)
        except OSError as error:
            self.console.log(f"{self.spec.name} cannot be started: {error}")
            return EXIT_NOT_STARTED
        finally:
            os.close(write_end)
        if is_restart:  # the first pid is in the process table
            self.console.log(f"{self.spec.name} runs again, pid {self.process.pid}")
        try:
            return await self.wait_or_stop(self.process)
        finally:
            signal_group(self.process, SIGKILL)  # processes that it started
            await asyncio.wait([relay], timeout=LAST_LINES_S)
            relay.cancel()

    async def wait_or_stop(self, process: Process) -> int:
        """Waits until the process ends, and stops it when `stopping` is set; returns its status."""
        ended = asyncio.create_task(process.wait())
        await run_until(self.stopping.wait(), ended)
        for wait_s in (self.spec.grace_s, KILL_S):
            if not ended.done():
                # The process may have ended before the task knows it.
                with suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait([ended], timeout=wait_s)
        if not ended.done():
            self.console.log(f"{self.spec.name} did not stop within {self.spec.grace_s + KILL_S:g} s")
            signal_group(process, SIGKILL)
        return await ended

    def kill(self) -> None:
        """Ends the process and all below it with SIGKILL, and does not start it again."""
        self.stopping.set()
        if self.process and self.pid:
            signal_group(self.process, SIGKILL)


class Supervisor:
    """All processes, each run by a task of `tasks`.

    `fatal_config` gets the name and the `usage_error` of the first process that reported an invalid setting, which no
    restart can repair.
    `has_started` is set when all processes have been ready.
    """

    def __init__(self, tasks: TaskGroup, console: Console) -> None:
        self.tasks = tasks
        self.console = console
        self.fatal_config: Future[str] = asyncio.get_running_loop().create_future()
        self.children: dict[str, Child] = {}
        self.runs: dict[str, asyncio.Task[None]] = {}
        self.has_started = False
        self.is_stopping = False

    def start(self, spec: ProcessSpec, *, is_trial: bool = False) -> None:
        """Starts a process, unless `stop` was called: a task that still runs then must start nothing.

        If the process ends in its trial, it is not started again.
        """
        if self.is_stopping:
            return
        child = Child(spec, self)
        child.is_last_run = spec.is_spare or is_trial
        self.children[spec.name] = child
        self.runs[spec.name] = self.tasks.create_task(child.run())

    def end_trial(self, name: str) -> None:
        """From now on, the process is started again when it ends, also if it has ended already."""
        if self.runs[name].done():
            self.start(self.children[name].spec)
        else:
            self.children[name].is_last_run = False

    async def stop(self) -> None:
        """Stops role after role, each process within its grace period; returns when all have ended."""
        self.is_stopping = True
        for rank in stop_order([child.spec for child in self.children.values()]):
            for spec in rank:
                self.children[spec.name].stopping.set()
            await asyncio.wait([self.runs[spec.name] for spec in rank])

    async def retire(self, name: str, within_s: float) -> None:
        """Ends a process for good, as `end` does; returns when its task has ended, too."""
        self.children[name].is_last_run = True
        await self.end(name, within_s)
        await asyncio.wait([self.runs[name]])
        del self.children[name], self.runs[name]

    async def end(self, name: str, within_s: float) -> None:
        """Returns when a process has finished its work and ended. Kills it if that takes longer than `within_s`. The
        supervisor then starts it again, unless it is a spare.
        """
        process = self.children[name].process
        self.restart(name)
        if process is None:
            return
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            self.console.log(f"{name} has not ended {within_s:g} s after SIGTERM; killing it, pid {process.pid}")
            # No answer loses a byte: the log keeps every acknowledged entry.
            signal_group(process, SIGKILL)
            await process.wait()

    def restart(self, name: str, number: Signals = SIGTERM) -> None:
        """Sends a process a signal that ends it, after which it is started again. A process that hangs gets SIGKILL."""
        process = self.children[name].process
        if process and self.children[name].pid and not self.is_stopping:
            process.send_signal(number)

    def kill(self) -> None:
        """Ends all processes with SIGKILL."""
        for child in self.children.values():
            child.kill()
