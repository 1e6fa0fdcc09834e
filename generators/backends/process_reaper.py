"""A program that ends with whoever started it, and so does all that it starts itself. It reads none of what they say.

`python leash.py PID FD FOLDER COMMAND…` runs COMMAND in a session of its own, with the descriptor FD. At SIGTERM, when
the process PID is gone however it went, or when COMMAND has ended, everything below is ended: SIGTERM first, SIGKILL
after GRACE_S. What has left its group (a shell in the background, say) comes to us by Linux's subreaper; elsewhere only
the group is ended. FOLDER, which holds what was said, goes with them: whoever is killed can take nothing away any more.
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
HEARD = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def command(words: Sequence[str], passed: int, folder: Path) -> list[str]:
    """How the program `words` is started on a leash that this process holds, with the descriptor `passed`.

    `folder` is its own, and is gone when it is.
    """
    return [sys.executable, "-I", __file__, str(os.getpid()), str(passed), str(folder), *words]


def main(holder: int, passed: int, folder: str, words: Sequence[str]) -> int:
    try:
        return lead(holder, passed, words)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lead(holder: int, passed: int, words: Sequence[str]) -> int:
    """Runs `words` until one of them ends; its status, or 1."""
    # Blocked, they wait until they are asked for: none comes between two lines.
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if os.getppid() != holder:
            return 1  # it went before that call: then nobody will tell
    child = subprocess.Popen(  # noqa: S603
        words,
        pass_fds=(passed,),
        start_new_session=True,
        preexec_fn=tether,  # noqa: PLW1509
    )
    os.close(passed)
    while child.poll() is None and signal.sigwait(HEARD) == signal.SIGCHLD:
        pass
    if child.returncode is None:
        signal_group(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    status = child.returncode
    signal_group(child.pid, signal.SIGKILL)
    end_the_rest()
    return 1 if status is None or status < 0 else status


def tether() -> None:
    """Between fork and exec: ended with us, should we be killed; and deaf to nothing."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)


def end_the_rest() -> None:
    """Until nobody is left: with each that ends, its own children become ours."""
    while True:
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listed:  # noqa: PTH123
            return [int(pid) for pid in listed.read().split()]
    except OSError:
        return []


def signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
