"""Processes as forks of one server process that has imported the product: they start within milliseconds.

The imports of a generator take 1.6 s of CPU, most of it for Anthropic's SDK.
"""

import asyncio
import gc
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from tailrace.deploy.local.spawn import die_with
from tailrace.proto.runtime.fast_metrics import FastMetric

FORKS = multiprocessing.get_context("forkserver")
FORKING_UP = "tests.harness.forking_up"
PROCESSES = ("gateway", "generators", "persistence", "deploy.simulated_claude")
FORKS.set_forkserver_preload(
    [
        *(f"tailrace.{name}.__main__" for name in PROCESSES),
        "tests.harness.killable_generator",
        "tests.checker.recorded_process",
        "tests.kills.paused_process",
        FORKING_UP,
    ]
)

COMMAND_S_MAX = 30.0
# The environment variable with the path of the file to which a forked `up` appends what it spawns.
SPAWNED = "SPAWNED_BY_UP"

_lock = Lock()


class Fork:
    """A running fork, with the attributes of asyncio's Process that tests use."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        self.pid = process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits until the fork has ended; returns its exit status, or None after `timeout` seconds."""
        self._process.join(timeout)
        return self.returncode


class CommandResult(NamedTuple):
    """The exit status of a command, and its output."""

    status: int
    out: str
    err: str


async def run_command(*arguments: str, **environ: str) -> CommandResult:
    """Runs the command `tailrace` until it ends. `environ` is its whole environment."""
    return await run_module("tailrace", *arguments, **environ)


async def run_module(module: str, *arguments: str, **environ: str) -> CommandResult:
    """Runs a module as `python -m` does, until it ends. `environ` is its whole environment."""
    return await asyncio.to_thread(run_to_end, module, arguments, environ)


def run_to_end(
    module: str, arguments: Sequence[str], environ: Mapping[str, str], timeout_s: float = COMMAND_S_MAX
) -> CommandResult:
    """Like `run_module`, and blocks. A module that does not end in time is killed, and is an AssertionError."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        started = start_fork(module, arguments, environ, out, err)
        status = started.wait(timeout_s)
        if status is None:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, SIGKILL)
        assert status is not None, f"{module} {arguments} did not end: {err.read_text()}"
        return CommandResult(status, out.read_text(), err.read_text())


async def fork(module: str, arguments: Sequence[str], environ: Mapping[str, str], output: Path) -> Fork:
    """Like `start_fork`, in a thread: the first call waits until the server process has imported the product."""
    return await asyncio.to_thread(start_fork, module, arguments, environ, output)


def start_fork(
    module: str, arguments: Sequence[str], environ: Mapping[str, str], output: Path, errors: Path | None = None
) -> Fork:
    """Runs a module as `python -m` does, in a new session.

    Appends its standard output to `output` and its standard error to `errors`, or to `output` as well. The fork is
    killed when its parent, the server process, ends, and that ends with this process.
    """
    given = (module, list(arguments), dict(environ), (output, errors or output))
    process = FORKS.Process(target=_start, args=given, daemon=True)
    with _lock:
        process.start()
    return Fork(process)


def _start(module: str, arguments: Sequence[str], environ: Mapping[str, str], outputs: tuple[Path, Path]) -> None:
    os.setsid()
    die_with(os.getppid())
    for number, output in enumerate(outputs, 1):
        with output.open("ab") as printed:
            os.dup2(printed.fileno(), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    run(module, arguments, environ)


def run(module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Runs a module as `__main__` in this fork."""
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = [module, *arguments]
    # runpy warns if the module that it runs was imported before.
    programs = [name for name in sys.modules if name.startswith("tailrace.") and name.endswith(".__main__")]
    for name in [*programs, FORKING_UP]:
        sys.modules.pop(name, None)
    # The forks of `up` need the metrics of all parts.
    if module != FORKING_UP:
        _forget_metrics({module, *arguments})
    # The imported modules are never freed: garbage collections need not visit them.
    gc.freeze()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _forget_metrics(names: set[str]) -> None:
    """Unregisters the metrics of the parts that are not in `names`, because a new process would not import them.

    `names` are the module and its arguments: a recorded process has the name of its part as an argument.
    """
    for part in ("gateway", "generators", "persistence"):
        if not names & {f"tailrace.{part}", part}:
            for one in vars(sys.modules[f"tailrace.{part}.metrics"]).values():
                if isinstance(one, Counter | Gauge | Histogram | FastMetric):
                    REGISTRY.unregister(one)
