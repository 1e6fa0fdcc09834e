"""World: virtual time, the dice of one seed, and the trace of one schedule."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import Any

from tests.harness.virtual_time import Handle, VirtualLoop
from tests.schedules.process import PROCESS, Process

# Sleeps take up to so much longer than asked for, as on a busy machine.
OVERSLEPT_MAX = 0.25


class World(VirtualLoop):
    """The event loop of one schedule. Callbacks of a frozen process wait until it is thawed."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        super().__init__()
        self.seed = seed
        self.chance = Random(seed).random
        """Returns a number from 0 up to but not including 1."""
        self.trace: list[str] | None = [] if is_traced else None
        self.processes: list[Process] = []
        """All processes, also those that were killed."""
        self.failures: list[BaseException] = []
        """Unexpected exceptions: those that the product has logged, and those that ended a task of a process."""
        self.frozen_until_s = 0.0
        """Until then at least one process is frozen."""
        self.never = asyncio.Event()
        """Is never set."""
        self._context = Context()

    def below(self, end: int) -> int:
        """Returns an integer from 0 up to but not including `end`."""
        return int(self.chance() * end)

    def record(self, name: str, what: str) -> None:
        """Adds a line to the trace, if there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.time():9.4f}  {name:10} {what}")

    def call_after(self, wait_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Calls `call` in `wait_s` seconds, on behalf of no process."""
        self.call_at(self.time() + wait_s, call, *args, context=self._context)

    async def wait(self, wait_s: float) -> None:
        """Waits exactly `wait_s` seconds."""
        over = self.create_future()
        self.call_after(wait_s, _finish, over)
        await over

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        if delay > 0:
            delay *= 1 + self.chance() * OVERSLEPT_MAX
        return super().call_later(delay, callback, *args, context=context)

    def postpone(self, context: Context) -> float:
        if self.frozen_until_s <= self.time():
            return 0.0
        process = context.get(PROCESS)
        return process.frozen_until_s - self.time() if process is not None else 0.0


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
