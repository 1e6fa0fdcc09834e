"""Child processes in a session of their own that end with their parent."""

import asyncio
import ctypes
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Loaded before any fork: the code between fork and exec should do as little as possible.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


async def spawn(command: Sequence[str], environ: Mapping[str, str], output: int, fds: Sequence[int] = ()) -> Process:
    """Starts `command`, with standard output and error going to the file descriptor `output`.

    In a session of its own, the child does not get the terminal's Ctrl-C: only the supervisor decides when and in which
    order processes stop. On Linux the kernel kills the child when this process dies for any reason. The signal is
    SIGKILL: a process that hangs would survive SIGTERM, and SIGKILL loses nothing that the log acknowledged. macOS has
    no such call: there, a supervisor that is killed by SIGKILL leaves its children running. Stop them by their printed
    pids.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        env=dict(environ),
        stdin=DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(fds),
        start_new_session=True,
        preexec_fn=partial(die_with, os.getpid()),
    )


def die_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent, the process `parent`, dies. Does nothing on macOS."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        # If the parent died before that call, the kernel sends no signal.
        if os.getppid() != parent:
            os._exit(1)


def signal_group(process: Process, number: signal.Signals) -> None:
    """Signals the process and all processes of its session. A process that has ended is not an error."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def describe(status: int) -> str:
    """Returns in words how a process ended; `status` is asyncio's return code."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
