"""Ends a test at its timeout, and its clean-up at another one.

pytest-timeout raises in a signal handler, wherever the process is. In an event loop that is often a callback, such as
the timer of a sleep: the exception ends the callback and not the test, and what waits for the callback waits forever.
So while a loop runs, the test's task is cancelled instead. After a failure, pytest and pytest-timeout switch all their
timers off, also those for the clean-up.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import pytest
import pytest_timeout

# Coroutines that pytest-asyncio runs: tests, and the beginnings and ends of fixtures.
ENDED = ("test_", "setup", "async_finalizer")
# How long a task may take to end after it was cancelled. Then it is cancelled again.
END_S = 10.0
# The settings of pytest-timeout for a test, from the command line, the configuration and its marks.
SETTINGS = pytest.StashKey[Any]()


class Timer:
    """The timer of a test, or of its clean-up, in the main thread."""

    def __init__(self, timeout_s: float, fail: Callable[[], None]) -> None:
        """`fail` raises, and ends what runs without a loop."""
        self._timeout_s = timeout_s
        self._fail = fail
        self._is_cancelling = False
        self._has_cancelled = False

    def start(self) -> None:
        """Starts the timer, instead of any other."""
        signal.signal(signal.SIGALRM, self._end)
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s, END_S)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _end(self, _: int, __: FrameType | None) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # After a cancellation, pytest has the test's failure already.
            if not self._has_cancelled:
                self.stop()
                self._fail()
            return
        if self._is_cancelling:
            # A callback has not returned since then.
            self.stop()
            self._fail()
        self._is_cancelling = self._has_cancelled = True
        loop.call_soon_threadsafe(self._cancel, loop)

    def _cancel(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancels the test in `loop`, or a fixture, and not the tasks of fixtures that others share."""
        self._is_cancelling = False
        tasks = asyncio.all_tasks(loop)
        of_pytest = {task for task in tasks if getattr(task.get_coro(), "__name__", "").startswith(ENDED)}
        # Otherwise the test has started the loop itself.
        for task in of_pytest or tasks:
            task.print_stack(file=sys.stderr)
            task.cancel(f"the timeout of {self._timeout_s} s is reached")


class Timeouts:
    """A plugin of pytest that replaces the timers of pytest-timeout."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        item.stash[SETTINGS] = settings
        timer = Timer(settings.timeout, lambda: pytest_timeout.timeout_sigalrm(item, settings))
        item.cancel_timeout = timer.stop  # type: ignore[attr-defined]  # pytest-timeout calls it
        timer.start()
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Starts the timer anew for the clean-up."""
        if SETTINGS in item.stash:
            self.pytest_timeout_set_timer(item, item.stash[SETTINGS])
        return (yield)
