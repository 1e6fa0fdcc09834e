"""VirtualLoop: an asyncio event loop on virtual time. It never waits; time jumps to the next timer.

Not looptime or async-solipsism: they change the clock of asyncio's own loop. This loop can also hold back the callbacks
of one simulated process (`postpone`), and it iterates sets of tasks in the same order in each run.
"""

import asyncio

# Their names are private, and documented for event loops. https://docs.python.org/3/library/asyncio-extending.html
from asyncio import _get_running_loop as get_running_loop
from asyncio import _set_running_loop as set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

HANDLES_MAX = 1_000_000


class Handle(asyncio.TimerHandle):
    """A callback with its arguments and context; `due_s` is its time."""

    __slots__ = ("args", "call", "context", "due_s")

    def __init__(self, due_s: float, call: Callable[..., Any], args: tuple[Any, ...], context: Context) -> None:
        self.due_s = due_s
        self.call: Callable[..., Any] | None = call
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.call = None

    def cancelled(self) -> bool:
        return self.call is None

    def when(self) -> float:
        return self.due_s


class _Task(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks are iterated in the same order in each run."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class _Loop(asyncio.BaseEventLoop if TYPE_CHECKING else asyncio.AbstractEventLoop):  # type: ignore[misc]
    """The abstract loop. To a type checker it is a loop that can be made: it has many more methods than are needed."""


class VirtualLoop(_Loop):
    """Runs callbacks in the order of their time. An exception in a callback ends the run.

    It has no I/O, threads, signals or subprocesses.
    """

    def __init__(self) -> None:
        self.handled = 0
        """How many callbacks have run."""
        self._now_s = 0.0
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        """A heap. Handles of the same time are in the order of their creation."""
        self._numbers = count(1)

    def run_while(self, is_running: Callable[[], bool], handles_max: int = HANDLES_MAX) -> bool:
        """Runs callbacks until `is_running` returns False; it is asked when no callback is ready.

        Returns False when no callback is left, or after `handles_max` callbacks.
        """
        before = get_running_loop()
        set_running_loop(self)
        try:
            while is_running():
                if self.handled >= handles_max or not self._run_once():
                    return False
            return True
        finally:
            set_running_loop(before)

    def _run_once(self) -> bool:
        """Moves time to the next timer and runs all callbacks that are ready then; False when there are none."""
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2].call is None:
                heappop(timers)
            if not timers:
                return False
            self._now_s, _, timer = heappop(timers)
            ready.append(timer)
        while ready:
            handle = ready.popleft()
            if handle.call is None:
                continue
            if (wait_s := self.postpone(handle.context)) > 0:
                heappush(timers, (self._now_s + wait_s, next(self._numbers), handle))
                continue
            self.handled += 1
            handle.context.run(handle.call, *handle.args)
        return True

    def postpone(self, context: Context) -> float:  # noqa: ARG002  # for subclasses
        """Returns for how many seconds callbacks of `context` must wait now."""
        return 0.0

    def time(self) -> float:
        return self._now_s

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        handle = Handle(self._now_s, callback, args, context or copy_context())
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        handle = Handle(max(when, self._now_s), callback, args, context or copy_context())
        heappush(self._timers, (handle.due_s, next(self._numbers), handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task = _Task.__new__(_Task)
        task.number = next(self._numbers)
        task.__init__(coro, loop=self, name=name or "", context=context)  # type: ignore[misc]
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return get_running_loop() is self

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Ignores reports of tasks and futures that are not awaited: see `run_while` for exceptions."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Required by asyncio; a cancelled handle is skipped when it is due."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs `coroutine` on a virtual loop and returns its result; raises TimeoutError when it waits for ever."""
    loop = VirtualLoop()
    task = loop.create_task(coroutine)
    if not loop.run_while(lambda: not task.done()):
        raise TimeoutError(f"nothing will wake {task!r}")
    result: T = task.result()
    return result
