"""The compared systems (arms): starts each of them, and finds its processes."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.clients.node import NODE
from tests.harness.otlp_receiver import otlp_receiver

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVERS = HERE / "servers"
VENV = ROOT / ".venv-bench"
PYTHON = VENV / "bin/python"
START_S = 60
# All readers come from one address, of which the default is 1,000 streams.
STREAM_LIMITS = {"TAILRACE_STREAMS_ADDRESS_MAX": "5000"}
_ROLES = {"nats-server": "NATS", "gateway": "gateway", "generators": "generator", "persistence": "persistence"}


class Arm(NamedTuple):
    """A running system: the port and path for POSTs, and its processes by role."""

    name: str
    port: int
    path: str
    processes: dict[str, list[int]]

    def cpu_s(self) -> dict[str, float]:
        """Returns the CPU time of each role in seconds."""
        return {role: sum(map(_cpu_s, pids)) for role, pids in self.processes.items()}


def _cpu_s(pid: int) -> float:
    # The id of a process's CPU clock, from ~pid and CPUCLOCK_SCHED (<linux/posix-timers.h>).
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


class Missing(Exception):
    """An arm cannot start, because a part is not installed or printed no address."""


class Process(NamedTuple):
    """A started process, and the file of its output. It is not a pipe, because a full pipe would block the process."""

    pid: int
    output: Path

    def find(self, pattern: str) -> str:
        """Waits for output that matches, and returns the first group. Raises `Missing` with the output."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.output.read_text(), re.MULTILINE):
                return match[1]
            time.sleep(0.05)
        raise Missing(f"process {self.pid} printed no line with {pattern!r}: {self.output.read_text()[-2000:]}")


@contextlib.contextmanager
def process(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> Iterator[Process]:
    """Starts a process, and stops it with SIGTERM at the end."""
    with tempfile.NamedTemporaryFile() as output:
        started = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Process(started.pid, Path(output.name))
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(timeout=20)
            except subprocess.TimeoutExpired:
                started.kill()


def port_of(started: Process, pattern: str = r"http://127\.0\.0\.1:(\d+)") -> int:
    return int(started.find(pattern))


@contextlib.contextmanager
def floor(model: str) -> Iterator[Arm]:
    with process(sys.executable, "-m", "benchmarks.compare.servers.floor", env=_model(model)) as started:
        yield Arm("floor", port_of(started), "/chat", {"server": [started.pid]})


def _uvicorn(name: str, app: str) -> Callable[[str], contextlib.AbstractContextManager[Arm]]:
    @contextlib.contextmanager
    def run(model: str) -> Iterator[Arm]:
        options = ("--port", "0", "--backlog", "2048")
        with process(PYTHON, "-m", "uvicorn", f"{app}:app", *options, env=_model(model), cwd=SERVERS) as started:
            port = port_of(started, r"running on http://127\.0\.0\.1:(\d+)")
            yield Arm(name, port, "/chat", {"server": [started.pid]})

    return run


def _model(url: str) -> dict[str, str]:
    return {"ANTHROPIC_API_KEY": "bench", "ANTHROPIC_BASE_URL": url}


@contextlib.contextmanager
def resumable(model: str) -> Iterator[Arm]:
    server = shutil.which("redis-server")
    if server is None:
        raise Missing("redis-server is not on the PATH")
    with tempfile.TemporaryDirectory() as data:
        socket = Path(data, "redis.sock")
        starting = process(server, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", data)
        with starting as redis:
            env = {**_model(model), "REDIS_URL": f"unix://{socket}"}
            while not socket.exists():
                time.sleep(0.05)
            with process(NODE, "resumable.mjs", env=env, cwd=SERVERS) as node:
                yield Arm("resumable-stream", port_of(node), "/chat", {"server": [node.pid], "Redis": [redis.pid]})


def tailrace(
    name: str, *options: str, checkout: Path = ROOT, environ: dict[str, str] | None = None
) -> Callable[[str], contextlib.AbstractContextManager[Arm]]:
    """Returns the arm of a checkout of Tailrace, which runs `tailrace up` with `options`."""

    @contextlib.contextmanager
    def run(model: str) -> Iterator[Arm]:
        env = _model(model) | STREAM_LIMITS | (environ or {})
        with tempfile.TemporaryDirectory() as data:
            command = (sys.executable, "-m", "tailrace", "up", "--port", "0", "--data", data, "--generators", "1")
            with process(*command, *options, env=env, cwd=checkout) as up:
                port = port_of(up, r"^ready http://127\.0\.0\.1:(\d+)")
                yield Arm(name, port, "/v1/turns", _children(up.pid))

    return run


@contextlib.contextmanager
def tailrace_with_traces(model: str) -> Iterator[Arm]:
    with otlp_receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        with tailrace("tailrace-traced", "--sync", "default", environ=environ)(model) as arm:
            yield arm


def _children(parent: int) -> dict[str, list[int]]:
    """Returns the processes that `tailrace up` has started, by role."""
    found: dict[str, list[int]] = {role: [] for role in _ROLES.values()}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(") ")[2].split()[1]) != parent:
                continue
            words = (status.parent / "cmdline").read_text().replace("/", " ").replace(".", " ").split("\0")
            role = next((_ROLES[one] for text in words for one in text.split() if one in _ROLES), None)
            if role is not None:
                found[role].append(int(status.parent.name))
    return found


ARMS = {
    "floor": floor,
    "tuned": _uvicorn("tuned", "tuned"),
    "tutorial": _uvicorn("tutorial", "tutorial"),
    "sse-starlette": _uvicorn("sse-starlette", "sse_starlette_app"),
    "resumable-stream": resumable,
    "tailrace": tailrace("tailrace", "--sync", "default"),
    "tailrace-always": tailrace("tailrace-always", "--sync", "always"),
    "tailrace-traced": tailrace_with_traces,
}
