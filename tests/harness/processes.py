"""One process of the system with its settings: start, stop, signals, log lines."""

import asyncio
import os
import re
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any, Self

import msgspec

from tailrace.deploy.local.nats_server import ROOT_USER
from tailrace.deploy.local.spawn import spawn
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.harness.forks import Fork, fork
from tests.harness.until import until

CHECKOUT = Path(__file__).parents[2]
# On two busy cores, the imports of the SDK took three seconds.
START_S_MAX = 30.0
STOP_S_MAX = 15.0
QUICK_RETRY: dict[str, object] = {"TAILRACE_CALL_WAIT_S": 0.02}


class Process:
    """`async with Process("generators", folder, TAILRACE_CONCURRENCY=1) as generator:`; leaving the context kills it.

    It can be stopped and started again. Its output, of all its starts, is in the file `printed`.
    """

    _process: asyncio.subprocess.Process | Fork | None = None

    def __init__(self, module: str, folder: Path, *arguments: str, **environ: object) -> None:
        self.printed = folder / f"{module}-{os.urandom(4).hex()}.txt"
        self._module = module if module.startswith("tests.") else f"tailrace.{module}"
        self.command = [sys.executable, "-m", self._module, *arguments]
        self._environ = inherited_environ() | {
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1",
            **{name: str(value) for name, value in environ.items()},
        }

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(self)
            await self.start()
            stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(SIGKILL)

    async def start(self) -> None:
        """Starts it; returns when it has logged that it is ready."""
        await self.launch()
        await self.wait_ready()

    async def launch(self) -> None:
        """Starts it, and does not wait until it is ready."""
        self.printed.touch()
        self._begin = self.printed.stat().st_size
        self._process = await self._launch()

    async def wait_ready(self) -> None:
        """Returns when it has logged that it is ready."""
        await until(lambda: self.is_gone or self._ready, START_S_MAX)
        assert not self.is_gone, self._output

    async def _launch(self) -> asyncio.subprocess.Process | Fork:
        with self.printed.open("ab") as printed:
            return await spawn(self.command, self._environ, printed.fileno())

    async def stop(self, number: Signals = SIGTERM) -> int:
        """Sends the signal; returns the exit status when it has ended. 0 if it was never started."""
        self.signal(number)
        await until(lambda: self.is_gone, STOP_S_MAX)
        return (self._process and self._process.returncode) or 0

    def signal(self, number: Signals) -> None:
        if self._process is not None and not self.is_gone:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def is_gone(self) -> bool:
        return self._process is None or self._process.returncode is not None

    @property
    def url(self) -> str:
        """The address in its last `ready` line."""
        return self._ready

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """Its log lines, of all its starts."""
        lines = [line for line in self.printed.read_bytes().splitlines() if line.startswith(b"{")]
        return [msgspec.json.decode(line) for line in lines]

    def find_lines(self, event: str) -> list[dict[str, Any]]:
        """Its log lines with this event."""
        return [fact for fact in self.log_lines if fact["event"] == event]

    @property
    def _output(self) -> str:
        return self.printed.read_bytes()[self._begin :].decode()

    @property
    def _ready(self) -> str:
        """The address in the line that says that it is ready, or the line itself."""
        found = re.search(r'^(\{.*"event": ?"ready".*|simulated Claude .*)$', self._output, re.MULTILINE)
        address = re.search(r"http://[0-9.:]+", found[1]) if found else None
        return address[0] if address else found[1] if found else ""


class ForkedProcess(Process):
    """A process that has all imports from its start: see tests/harness/forks.py.

    Not for other interpreters and other versions of the product, nor for libraries that are loaded before it.
    """

    async def _launch(self) -> Fork:
        return await fork(self._module, self.command[3:], self._environ, self.printed)


def inherited_environ() -> dict[str, str]:
    """Returns the environment of the tests without settings of Tailrace and of Anthropic's SDK."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("ANTHROPIC_", "TAILRACE_"))}


def as_user(nats_url: str, user: str) -> str:
    """Returns the URL with a role's user; all users of a NatsServer have the same password."""
    return nats_url.replace(f"//{ROOT_USER}:", f"//{user}:")


def generator_environ(nats_url: str, claude_url: str) -> dict[str, object]:
    return {
        "TAILRACE_NATS_URL": as_user(nats_url, GENERATORS),
        "ANTHROPIC_BASE_URL": claude_url,
        "ANTHROPIC_API_KEY": "sk-test",
    }


def generator(folder: Path, nats_url: str, claude_url: str, **environ: object) -> Process:
    """Returns a generator that waits little between two calls of the simulated Claude."""
    settings = generator_environ(nats_url, claude_url) | QUICK_RETRY
    return ForkedProcess("generators", folder, **settings | environ)


def gateway(folder: Path, nats_url: str, **environ: object) -> Process:
    settings: dict[str, object] = {"TAILRACE_NATS_URL": as_user(nats_url, GATEWAY), "TAILRACE_PORT": 0}
    return ForkedProcess("gateway", folder, **settings | environ)


def persistence(folder: Path, nats_url: str, **environ: object) -> Process:
    settings: dict[str, object] = {
        "TAILRACE_NATS_URL": as_user(nats_url, PERSISTENCE),
        "TAILRACE_DATABASE": folder / "tailrace.db",
    }
    return ForkedProcess("persistence", folder, **settings | environ)


def simulated_claude(folder: Path, *arguments: str) -> Process:
    return ForkedProcess("deploy.simulated_claude", folder, "--show-calls", *arguments)
