"""One process that cannot outlive us: its own session, its lines in one pipe; never starts it a second time."""

import asyncio
import ctypes
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Loaded before any fork: what runs between fork and exec should do as little as it can.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


async def spawn(command: Sequence[str], environ: Mapping[str, str], output: int, fds: Sequence[int] = ()) -> Process:
    """Start `command`, its standard output and error both going to the descriptor `output`.

    Its own session keeps the terminal's Ctrl-C away from it: the supervisor alone says when and in which order.
    On Linux the kernel kills it when we die, however we die. SIGKILL and not SIGTERM: a process that hangs would
    stay, and what the log acknowledged is safe. Elsewhere (macOS) there is no such call, and a supervisor killed
    by SIGKILL leaves its children: end them by the pids that it printed.
    """
    parent = os.getpid()

    def tether() -> None:
        if LIBC is not None:
            LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            # We may have died before that call: then the kernel has nothing to tell any more.
            if os.getppid() != parent:
                os._exit(1)

    return await asyncio.create_subprocess_exec(
        *command,
        env=dict(environ),
        stdin=DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(fds),
        start_new_session=True,
        preexec_fn=tether,
    )


def signal_group(process: Process, number: signal.Signals) -> None:
    """Signal the process and all that it started in its session; one that is gone is no error."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def describe(status: int) -> str:
    """How a process ended, in words, from asyncio's return code."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
