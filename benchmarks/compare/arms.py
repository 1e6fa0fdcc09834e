"""The compared systems (arms): starts each of them, and finds its processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.process_usage import cpu_s
from tailrace.deploy.local.nats_server import NAME, go_runtime
from tailrace.deploy.local.ports import find_free
from tests.clients.node import NODE
from tests.harness.otlp_receiver import otlp_receiver

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVERS = HERE / "servers"
VENV = ROOT / ".venv-bench"
PYTHON = VENV / "bin/python"
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
START_S = 60
# All turns run at once and are one tenant's, and all readers have one address. By default a generator runs 72 turns of
# one tenant, and an address may have 1,000 streams.
LIMITS = {
    "TAILRACE_CONCURRENCY": "1000",
    "TAILRACE_TENANT_SHARE": "1",
    "TAILRACE_STREAMS_ADDRESS_MAX": "5000",
}
# Prices are not fetched from the network, and requests need no key.
LITELLM = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
_ROLES = {"nats-server": "NATS", "gateway": "gateway", "generators": "generator", "persistence": "persistence"}


class Arm(NamedTuple):
    """A running system: its processes by role, and how to send it a question."""

    name: str
    port: int
    path: str
    processes: dict[str, list[int]]
    body: Callable[[str], dict[str, object]] = lambda question: {"message": question}
    method: str = "POST"
    is_tailrace: bool = False

    def cpu_s(self) -> dict[str, float]:
        """Returns the CPU time of each role in seconds."""
        return {role: sum(map(cpu_s, pids)) for role, pids in self.processes.items()}


class Missing(Exception):
    """An arm cannot start, because a part is not installed or printed no address."""


class Process(NamedTuple):
    """A started process, and the file of its output. The output goes to a file, because a full pipe would block the
    process."""

    started: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        return self.started.pid

    def find(self, pattern: str) -> str:
        """Waits for output that matches, and returns the first group. Raises `Missing` with the output."""
        deadline, is_running = time.monotonic() + START_S, True
        while is_running and time.monotonic() < deadline:
            is_running = self.started.poll() is None
            if match := re.search(pattern, self.output.read_text(), re.MULTILINE):
                return match[1]
            time.sleep(0.05)
        raise Missing(f"process {self.pid} printed no line with {pattern!r}: {self.output.read_text()[-2000:]}")


@contextlib.contextmanager
def process(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> Iterator[Process]:
    """Starts a process, and stops it with SIGTERM at the end. Raises `Missing` if its program is not installed."""
    with tempfile.NamedTemporaryFile() as output:
        try:
            started = subprocess.Popen(
                list(map(str, command)),
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except FileNotFoundError as error:
            raise Missing(f"{error.filename} does not exist") from error
        try:
            yield Process(started, Path(output.name))
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(timeout=20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


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
        path = Path(data, "redis.sock")
        starting = process(server, "--port", "0", "--unixsocket", path, "--save", "", "--dir", data)
        with starting as redis:
            env = {**_model(model), "REDIS_URL": f"unix://{path}"}
            wait_until(path.exists, f"Redis has made no socket: {redis.output.read_text()[-500:]}")
            with process(NODE, "resumable.mjs", env=env, cwd=SERVERS) as node:
                yield Arm("resumable-stream", port_of(node), "/chat", {"server": [node.pid], "Redis": [redis.pid]})


@contextlib.contextmanager
def nchan(model: str) -> Iterator[Arm]:
    if not NCHAN.exists():
        raise Missing("nchan is not installed (Debian: apt install libnginx-mod-nchan)")
    (port,) = find_free(1)
    options = ("--port", "0", "--backlog", "2048")
    env = _model(model) | {"NCHAN_URL": f"http://127.0.0.1:{port}"}
    with (
        tempfile.TemporaryDirectory() as folder,
        process(PYTHON, "-m", "uvicorn", "nchan_app:app", *options, env=env, cwd=SERVERS) as app,
    ):
        config = (SERVERS / "nchan.conf").read_text()
        given = {"MODULES": NCHAN.parent, "FOLDER": folder, "PORT": port}
        given["APP"] = port_of(app, r"running on http://127\.0\.0\.1:(\d+)")
        for name, value in given.items():
            config = re.sub(rf"\b{name}\b", str(value), config)
        path = Path(folder, "nginx.conf")
        path.write_text(config)
        with process("nginx", "-p", folder, "-c", path) as nginx:
            wait_until_listening(port)
            # nginx listens before it starts its worker.
            wait_until(lambda: _children(nginx.pid), "nginx has started no worker")
            roles = {"server": [app.pid], "nginx": [nginx.pid, *_children(nginx.pid)]}
            # nchan refuses a POST that is redirected to a subscriber.
            yield Arm("nchan", port, "/chat", roles, method="GET")


@contextlib.contextmanager
def litellm(model: str) -> Iterator[Arm]:
    (port,) = find_free(1)
    options = ("--config", SERVERS / "litellm.yaml", "--host", "127.0.0.1", "--port", str(port))
    env = _model(model) | LITELLM
    with process(VENV / "bin/litellm", *options, env=env) as started:
        wait_until_listening(port)
        yield Arm("litellm", port, "/v1/chat/completions", {"server": [started.pid]}, _chat_completion)


def _chat_completion(question: str) -> dict[str, object]:
    return {"model": "claude-sonnet-5-5", "stream": True, "messages": [{"role": "user", "content": question}]}


def wait_until_listening(port: int) -> None:
    """Waits until a process accepts connections at `port`. Raises as `wait_until` does."""

    def is_listening() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    wait_until(is_listening, f"no process listens on port {port}")


def wait_until(is_so: Callable[[], object], otherwise: str) -> None:
    """Waits for a condition. Raises `Missing` with the text `otherwise` after START_S."""
    deadline = time.monotonic() + START_S
    while not is_so():
        if time.monotonic() > deadline:
            raise Missing(otherwise)
        time.sleep(0.05)


def tailrace(
    name: str, *options: str, checkout: Path = ROOT, environ: dict[str, str] | None = None
) -> Callable[[str], contextlib.AbstractContextManager[Arm]]:
    """Returns the arm of a checkout of Tailrace, which runs `tailrace up` with `options`."""

    @contextlib.contextmanager
    def run(model: str) -> Iterator[Arm]:
        env = _model(model) | LIMITS | (environ or {})
        with tempfile.TemporaryDirectory() as data:
            command = (sys.executable, "-m", "tailrace", "up", "--port", "0", "--data", data, "--generators", "1")
            with process(*command, *options, env=env, cwd=checkout) as up:
                port = port_of(up, r"^ready http://127\.0\.0\.1:(\d+)")
                yield Arm(name, port, "/v1/turns", _roles(up.pid), is_tailrace=True)

    return run


@contextlib.contextmanager
def tailrace_with_traces(model: str) -> Iterator[Arm]:
    with otlp_receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        with tailrace("tailrace-traced", "--sync", "default", environ=environ)(model) as arm:
            yield arm


@contextlib.contextmanager
def bare(model: str) -> Iterator[Arm]:
    (port,) = find_free(1)
    with tempfile.TemporaryDirectory() as data:
        path = Path(data, "nats.conf")
        path.write_text(json.dumps({"listen": f"127.0.0.1:{port}", "jetstream": {"store_dir": data}}))
        with process(Path(sys.executable).parent / NAME, "-c", path, env=go_runtime(os.environ)) as server:
            wait_until_listening(port)
            role = "benchmarks.compare.servers.bare_{}".format
            with (
                process(sys.executable, "-m", role("generator"), str(port), env=_model(model)) as generator,
                process(sys.executable, "-m", role("gateway"), str(port), env=_model(model)) as gateway,
            ):
                generator.find("(ready)")
                roles = {"NATS": [server.pid], "gateway": [gateway.pid], "generator": [generator.pid]}
                yield Arm("bare", port_of(gateway), "/chat", roles)


def _roles(parent: int) -> dict[str, list[int]]:
    """Returns `tailrace up`, which relays log lines, and the processes that it has started, by role."""
    found: dict[str, list[int]] = {role: [] for role in _ROLES.values()} | {"up": [parent]}
    for pid in _children(parent):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().replace("/", " ").replace(".", " ").split("\0")
            role = next((_ROLES[one] for text in words for one in text.split() if one in _ROLES), None)
            if role is not None:
                found[role].append(pid)
    return found


def _children(parent: int) -> list[int]:
    """Returns the processes that a process has started."""
    threads = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for thread in threads for pid in thread.read_text().split()]


ARMS = {
    "floor": floor,
    "tuned": _uvicorn("tuned", "tuned"),
    "tutorial": _uvicorn("tutorial", "tutorial"),
    "sse-starlette": _uvicorn("sse-starlette", "sse_starlette_app"),
    "resumable-stream": resumable,
    "nchan": nchan,
    "litellm": litellm,
    "bare": bare,
    "tailrace": tailrace("tailrace", "--sync", "default"),
    "tailrace-always": tailrace("tailrace-always", "--sync", "always"),
    "tailrace-cluster": tailrace("tailrace-cluster", "--cluster", "--sync", "default"),
    "tailrace-traced": tailrace_with_traces,
}
