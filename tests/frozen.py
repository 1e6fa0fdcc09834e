"""Freezing a process that the tests started: returns when it stands still. Never wakes it; SIGCONT does."""

import os
from signal import SIGSTOP, Signals
from typing import Protocol


class Part(Protocol):
    """A started process: the tests' own `Process`, a `NatsServer`."""

    @property
    def pid(self) -> int: ...

    def signal(self, number: Signals) -> None: ...


def freeze(part: Part) -> None:
    """SIGSTOP, and wait for the kernel's word that all its threads obeyed.

    kill(2) returns before that: on a busy machine a server has been seen to answer one more request after it.
    """
    part.signal(SIGSTOP)
    # WNOWAIT leaves an exit to asyncio, which waits for it; WEXITED is there so that a dead process hangs nobody.
    os.waitid(os.P_PID, part.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
