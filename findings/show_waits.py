"""Prints at SIGUSR2, which setup.sh sends at the time limit, where each thread and each asyncio task waits."""

import asyncio
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any


def print_waits(_: int, frame: FrameType | None) -> None:
    """Prints the stacks of all threads, and of the tasks of the event loop that runs in this one."""
    for number, stack in {**sys._current_frames(), threading.get_ident(): frame}.items():  # noqa: SLF001  # no public name
        sys.stderr.write(f"Thread {number}:\n")
        traceback.print_stack(stack)
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return
    for task in sorted(tasks, key=asyncio.Task.get_name):
        sys.stderr.write(f"{task.get_name()}:\n")
        traceback.print_list(traceback.StackSummary.extract((one, one.f_lineno) for one in frames_of(task.get_coro())))


def frames_of(awaitable: Any) -> Iterator[FrameType]:
    """Yields the frames of a suspended coroutine and of those that it awaits, the innermost last."""
    while frame := getattr(awaitable, "cr_frame", None):
        yield frame
        awaitable = awaitable.cr_await


signal.signal(signal.SIGUSR2, print_waits)
