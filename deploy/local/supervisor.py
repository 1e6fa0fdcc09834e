"""Keeps parts running: starts again what died, stops all in order; never knows what a part is for.

What is decided here is two pure functions, `next_delay_s` and `stop_order`; the rest waits and signals. One
coroutine is the whole life of a child, so that "is it running, and who acts next" has one answer.
"""

import asyncio
import os
import time
from asyncio import Event, Future, TaskGroup
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from signal import SIGKILL, SIGTERM

import msgspec

from tailrace.deploy.local.console import Console
from tailrace.deploy.local.readiness import HealthCheck
from tailrace.deploy.local.spawn import describe, signal_group, spawn
from tailrace.proto.runtime.main import EXIT_USAGE

DELAY_S_MIN = 0.1
DELAY_S_MAX = 5.0
# Who lived this long was not in a crash loop: its next death counts as a first one.
LIFE_S_MIN = 10.0
# For the last words of a dead process, when something that it started still holds the pipe.
LAST_WORDS_S = 1.0
# Both are an orderly end: uvicorn, when it has closed everything, dies of the signal that it was sent.
STOPPED = (0, -SIGTERM)
EXIT_NOT_STARTED = 127  # as a shell says it


def always(_: str) -> bool:
    return True


class ProcessSpec(msgspec.Struct, frozen=True):
    """One process to keep: `gateway-2` is the second of the role `gateway`."""

    name: str
    role: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    where: tuple[str, ...] = ()  # its addresses, for the person who looks for it
    fds: tuple[int, ...] = ()  # sockets that it inherits
    grace_s: float = 8.0  # from SIGTERM to SIGKILL
    is_told: Callable[[str], bool] = always  # of each line that it says: whether a person is
    readiness: HealthCheck | None = None  # None: it is known otherwise


def next_delay_s(delay_s: float, lived_s: float) -> float:
    """The wait before the next start, when the one before was `delay_s` (0 before the first)."""
    if delay_s == 0 or lived_s >= LIFE_S_MIN:
        return DELAY_S_MIN
    return min(2 * delay_s, DELAY_S_MAX)


def stop_order(parts: Sequence[ProcessSpec]) -> list[list[ProcessSpec]]:
    """The start backwards; neighbours of one role stop together."""
    return [list(rank) for _, rank in groupby(reversed(parts), key=lambda part: part.role)]


class Child:
    """One part, and the process that plays it now."""

    def __init__(self, part: ProcessSpec, screen: Console, hopeless: Future[str]) -> None:
        self.part = part
        self.screen = screen
        self.hopeless = hopeless
        self.process: Process | None = None
        self.stopping = Event()

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None

    async def keep(self) -> None:
        """Run the part again and again, until `stopping` is set or its settings are wrong."""
        name, delay_s = self.part.name, 0.0
        while not self.stopping.is_set():
            started_s = time.monotonic()
            status = await self.live(is_again=delay_s > 0)
            how = describe(status)
            if self.stopping.is_set():
                self.screen.say(f"{name} stopped" if status in STOPPED else f"{name} stopped, but {how}")
                return
            if status == EXIT_USAGE:
                self.screen.say(f"{name} {how}")
                if not self.hopeless.done():
                    self.hopeless.set_result(name)
                return
            delay_s = next_delay_s(delay_s, time.monotonic() - started_s)
            self.screen.say(f"{name} {how}; next start in {delay_s:g} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self.stopping.wait()

    async def live(self, *, is_again: bool) -> int:
        """One life of the process, from its start to its last line; its status."""
        listening, speaking = os.pipe()
        voice = asyncio.create_task(self.screen.follow(self.part.name, listening, self.part.is_told))
        try:
            self.process = await spawn(self.part.command, self.part.environ, speaking, self.part.fds)
        except OSError as error:
            self.screen.say(f"{self.part.name} cannot be started: {error}")
            return EXIT_NOT_STARTED
        finally:
            os.close(speaking)
        if is_again:  # the first pid stands in the table that `up` prints
            self.screen.say(f"{self.part.name} runs again, pid {self.process.pid}")
        try:
            return await self.end(self.process)
        finally:
            signal_group(self.process, SIGKILL)  # what it started goes with it
            await asyncio.wait([voice], timeout=LAST_WORDS_S)
            voice.cancel()

    async def end(self, process: Process) -> int:
        """Its status: wait for it to end by itself, and end it when `stopping` is set."""
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        if not ended.done():
            process.terminate()
            await asyncio.wait([ended], timeout=self.part.grace_s)
        if not ended.done():
            self.screen.say(f"{self.part.name} did not stop within {self.part.grace_s:g} s")
            signal_group(process, SIGKILL)
        return await ended

    def kill(self) -> None:
        self.stopping.set()
        if self.process and self.pid:
            signal_group(self.process, SIGKILL)


class Supervisor:
    """The children, each kept by a task of `tasks`.

    `hopeless` gets the name of the first that found a setting of its own wrong: no start will cure that.
    """

    def __init__(self, tasks: TaskGroup, screen: Console) -> None:
        self.tasks = tasks
        self.screen = screen
        self.hopeless: Future[str] = asyncio.get_running_loop().create_future()
        self.children: dict[str, Child] = {}
        self.lives: dict[str, asyncio.Task[None]] = {}
        self.is_stopping = False

    def start(self, part: ProcessSpec) -> None:
        """Nothing, once `stop` was called: who did not hear of it yet must not start what nobody would stop."""
        if self.is_stopping:
            return
        child = Child(part, self.screen, self.hopeless)
        self.children[part.name] = child
        self.lives[part.name] = self.tasks.create_task(child.keep())

    async def stop(self) -> None:
        """Stop rank after rank, each part within its grace; returns when no process is left."""
        self.is_stopping = True
        for rank in stop_order([child.part for child in self.children.values()]):
            for part in rank:
                self.children[part.name].stopping.set()
            await asyncio.wait([self.lives[part.name] for part in rank])

    def restart(self, name: str) -> None:
        """Asks a part to end; it is started again like one that ended by itself."""
        process = self.children[name].process
        if process and self.children[name].pid and not self.is_stopping:
            process.terminate()

    def kill(self) -> None:
        for child in self.children.values():
            child.kill()
