"""Freezes a process that a test started; SIGCONT continues it."""

import time
from contextlib import suppress
from pathlib import Path
from signal import SIGSTOP, Signals
from typing import Protocol

# Stopped, or a process that has ended.
STOPPED = "TtZX"


class Part(Protocol):
    """A started process: the tests' own `Process`, a `NatsServer`."""

    @property
    def pid(self) -> int: ...

    def signal(self, number: Signals) -> None: ...


def freeze(part: Part) -> None:
    """Sends SIGSTOP and waits until the kernel reports that all threads have stopped.

    kill(2) returns earlier: on a busy machine a server answered one more request after it.
    """
    part.signal(SIGSTOP)
    while any(state not in STOPPED for state in thread_states(part.pid)):
        time.sleep(0.001)


def frozen_threads(part: Part) -> int:
    return thread_states(part.pid).count("T")


def thread_states(pid: int) -> list[str]:
    """Returns the state of each thread of a process, as in proc_pid_stat(5); an empty list if there is no process."""
    states = []
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        # A thread may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            states.append(path.read_text().rpartition(") ")[2][0])
    return states
