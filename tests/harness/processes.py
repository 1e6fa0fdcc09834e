"""A part of the system as a process of its own: started with its settings, ready, signalled, gone. Judges nothing."""

import os
import re
import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any, Self

import msgspec

from tailrace.deploy.local.nats_server import ROOT_USER
from tailrace.deploy.local.spawn import signal_group, spawn
from tailrace.proto.nats.permissions import GATEWAY
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.harness.until import until

CHECKOUT = Path(__file__).parents[2]
# Two cores are shared: an interpreter that imports the SDK has been seen to take three seconds.
START_S_MAX = 30.0
STOP_S_MAX = 15.0


class Process:
    """`async with Process("generators", folder, TAILRACE_CONCURRENCY=1) as generator:`; at the end it is killed.

    It can be stopped and started again. What it says stands in `printed`, over all of its lives.
    """

    def __init__(self, module: str, folder: Path, *arguments: str, **environ: object) -> None:
        self.printed = folder / f"{module}-{os.urandom(4).hex()}.txt"
        name = module if module.startswith("tests.") else f"tailrace.{module}"
        self._command = [sys.executable, "-m", name, *arguments]
        inherited = {
            name: text for name, text in os.environ.items() if not name.startswith(("ANTHROPIC_", "TAILRACE_"))
        }
        self._environ = inherited | {
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1",
            **{name: str(value) for name, value in environ.items()},
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(SIGKILL)

    async def start(self) -> None:
        """Returns when it says that it is ready."""
        self._begin = self.printed.stat().st_size if self.printed.exists() else 0
        with self.printed.open("ab") as printed:
            self._process = await spawn(self._command, self._environ, printed.fileno())
        await until(lambda: self.is_gone or self._ready, START_S_MAX)
        assert not self.is_gone, self._said

    async def stop(self, number: Signals = SIGTERM) -> int:
        """Its exit status, once it is gone."""
        self.signal(number)
        await until(lambda: self.is_gone, STOP_S_MAX)
        return self._process.returncode or 0

    def signal(self, number: Signals) -> None:
        if not self.is_gone:
            signal_group(self._process, number)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        return self._process.returncode is not None

    @property
    def url(self) -> str:
        """Where it listens, as it said when it was ready."""
        return self._ready

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Its log lines, over all of its lives."""
        lines = [line for line in self.printed.read_bytes().splitlines() if line.startswith(b"{")]
        return [msgspec.json.decode(line) for line in lines]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines with that event."""
        return [fact for fact in self.facts if fact["event"] == event]

    @property
    def _said(self) -> str:
        return self.printed.read_bytes()[self._begin :].decode()

    @property
    def _ready(self) -> str:
        """The line that says so, or the address in it."""
        found = re.search(r'^(\{.*"event": ?"ready".*|simulated Claude .*)$', self._said, re.MULTILINE)
        address = re.search(r"http://[0-9.:]+", found[1]) if found else None
        return address[0] if address else found[1] if found else ""


def as_user(nats_url: str, user: str) -> str:
    """The same server, with a role's rights: a NatsServer's users have one password."""
    return nats_url.replace(f"//{ROOT_USER}:", f"//{user}:")


def generator(folder: Path, nats_url: str, claude_url: str, **environ: object) -> Process:
    """A generator that waits little between calls: what it waits for is simulated."""
    settings: dict[str, object] = {
        "TAILRACE_NATS_URL": as_user(nats_url, GENERATORS),
        "ANTHROPIC_BASE_URL": claude_url,
        "ANTHROPIC_API_KEY": "sk-test",
        "TAILRACE_CALL_WAIT_S": 0.02,
    }
    return Process("generators", folder, **settings | environ)


def gateway(folder: Path, nats_url: str, **environ: object) -> Process:
    settings: dict[str, object] = {"TAILRACE_NATS_URL": as_user(nats_url, GATEWAY), "TAILRACE_PORT": 0}
    return Process("gateway", folder, **settings | environ)


def persistence(folder: Path, nats_url: str, **environ: object) -> Process:
    settings: dict[str, object] = {
        "TAILRACE_NATS_URL": as_user(nats_url, PERSISTENCE),
        "TAILRACE_DATABASE": folder / "tailrace.db",
    }
    return Process("persistence", folder, **settings | environ)


def simulated_claude(folder: Path) -> Process:
    return Process("deploy.simulated_claude", folder)
