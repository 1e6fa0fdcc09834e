"""Runs a program so that it and all its children end when the parent process ends, however that ends.

`python process_reaper.py PID FD FOLDER COMMAND…` runs COMMAND in a session of its own, with the file descriptor FD.
All processes below it are ended at SIGTERM, when the process PID is gone, or when COMMAND has ended: SIGTERM first,
SIGKILL after GRACE_S. Processes that left the group (a background shell) are adopted through Linux's subreaper; on
other systems only the group is ended. FOLDER, which contains the prompt, is deleted when all have ended.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

GRACE_S = 2.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
HANDLED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def command(words: Sequence[str], passed: int, folder: Path) -> list[str]:
    """Returns the command that runs `words` below this process, with the file descriptor `passed`.

    `folder` is deleted when the program has ended.
    """
    return [sys.executable, "-I", __file__, str(os.getpid()), str(passed), str(folder), *words]


def main(parent: int, passed: int, folder: str, words: Sequence[str]) -> int:
    """Runs the program and returns its exit status. Deletes `folder` after it."""
    try:
        return run(parent, passed, words)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(parent: int, passed: int, words: Sequence[str]) -> int:
    """Runs `words` until it or the parent ends; returns its exit status, or 1 if it was killed."""
    # Blocked signals wait for sigwait, so none is handled between two lines.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if os.getppid() != parent:
            return 1  # the parent ended before prctl, so no signal will come
    child = subprocess.Popen(  # noqa: S603
        words,
        pass_fds=(passed,),
        start_new_session=True,
        preexec_fn=set_up_child,  # noqa: PLW1509
    )
    os.close(passed)
    while child.poll() is None and signal.sigwait(HANDLED) == signal.SIGCHLD:
        pass
    if child.returncode is None:
        signal_group(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    status = child.returncode
    signal_group(child.pid, signal.SIGKILL)
    kill_orphans()
    return 1 if status is None or status < 0 else status


def set_up_child() -> None:
    """Runs between fork and exec: ends the child if this process is killed, and unblocks its signals."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def kill_orphans() -> None:
    """Kills adopted processes until none is left: the children of each that ends are adopted in turn."""
    while True:
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def children() -> list[int]:
    """Returns the pids of this process's children; none where Linux's `/proc` is missing."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listed:  # noqa: PTH123
            return [int(pid) for pid in listed.read().split()]
    except OSError:
        return []


def signal_group(pid: int, number: signal.Signals) -> None:
    """Sends a signal to the process group of `pid`, if it still exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
