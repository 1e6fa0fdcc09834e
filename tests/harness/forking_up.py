"""`tailrace up` with forks of itself as its Python processes, which need no seconds for imports.

A fork has the same standard output, sockets and parent as the process that `up` would start, and a session of its own.
"""

import asyncio
import contextvars
import os
import signal
import sys
import traceback
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from tailrace.deploy.cli.main import main
from tailrace.deploy.local import supervisor
from tailrace.deploy.local.spawn import die_with
from tailrace.deploy.local.spawn import spawn as spawn_program
from tests.harness import forks


async def spawn(command: Sequence[str], environ: Mapping[str, str], output: int, fds: Sequence[int] = ()) -> Process:
    """Like the product's `spawn`, but the forked child runs a Python module itself and never executes a new Python."""
    if command[:2] != (sys.executable, "-m"):
        return await spawn_program(command, environ, output, fds)
    _, _, module, *arguments = command
    parent = os.getpid()
    _note(module, command, environ)

    def run() -> None:
        die_with(parent)
        # An empty context, as in a new process.
        contextvars.Context().run(_run_and_exit, module, arguments, environ, fds)

    return await asyncio.create_subprocess_exec(
        *command,
        stdin=DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(fds),
        start_new_session=True,
        preexec_fn=run,
    )


def _note(*spawned: object) -> None:
    """Notes what /proc would show of a new process."""
    with Path(os.environ[forks.SPAWNED]).open("ab") as noted:
        noted.write(msgspec.json.encode(spawned) + b"\n")


def _run_and_exit(module: str, arguments: Sequence[str], environ: Mapping[str, str], fds: Sequence[int]) -> NoReturn:
    """Runs the module and exits. It never returns, so no object of `up` is freed and then closes a descriptor."""
    status = 1
    try:
        asyncio._set_running_loop(None)  # noqa: SLF001  # documented for event loops
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # As Python does at its start; libuv has reset it. A write to a closed connection would kill the process.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        # Close the descriptors of `up`, except the standard streams and `fds`.
        first = 3
        for kept in [*sorted(fds), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(first, kept)
            first = kept + 1
        forks.run(module, arguments, environ)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  # Python, too, prints the traceback and exits with 1
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    vars(supervisor)["spawn"] = spawn
    sys.exit(main())
