"""Freezes a process that a test started; SIGCONT continues it."""

import os
from signal import SIGSTOP, Signals
from typing import Protocol


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
    # WNOWAIT leaves an exit status to asyncio; WEXITED keeps a dead process from blocking this call.
    os.waitid(os.P_PID, part.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
