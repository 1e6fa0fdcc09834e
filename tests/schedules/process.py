"""Process: a simulated operating-system process, whose tasks are frozen or killed together."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from tests.schedules.world import World

P = ParamSpec("P")
T = TypeVar("T")

PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)
"""The process that the running code belongs to."""


class Process:
    """Has tasks. After a kill, its code still runs to the end of each task, but sends nothing: see `require_alive`."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.is_dead = False
        self.frozen_until_s = 0.0
        self._tasks: list[asyncio.Task[Any]] = []
        world.processes.append(self)

    @property
    def is_busy(self) -> bool:
        return any(not task.done() for task in self._tasks)

    @property
    def is_frozen(self) -> bool:
        return self.frozen_until_s > self.world.time()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `coroutine` as a task of this process. An exception that leaves it is a failure of the schedule."""
        task = self.world.create_task(coroutine, context=self._context())
        task.add_done_callback(self._note_failure)
        self._tasks.append(task)
        return task

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.failures.append(error)

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `call` as code of this process: tasks that it creates belong to it."""
        return self._context().run(call, *args, **kwargs)

    def _context(self) -> Context:
        context = copy_context()
        context.run(PROCESS.set, self)
        return context

    def freeze(self, wait_s: float) -> None:
        """Stops all of its tasks for `wait_s` seconds, as SIGSTOP and SIGCONT do."""
        self.frozen_until_s = max(self.frozen_until_s, self.world.time() + wait_s)
        self.world.frozen_until_s = max(self.world.frozen_until_s, self.frozen_until_s)
        self.world.record(self.name, f"is frozen for {wait_s:.2f} s")

    def kill(self) -> None:
        """Ends all of its tasks. A request that it has sent is served all the same."""
        self.is_dead = True
        self.frozen_until_s = 0.0
        for task in self._tasks:
            task.cancel()

    def require_alive(self) -> None:
        """Raises CancelledError in a process that was killed: it sends nothing any more."""
        if self.is_dead:
            raise asyncio.CancelledError
