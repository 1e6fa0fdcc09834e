"""The nats-server beside us: how it is configured, started and ended; never speaks NATS beyond the greeting."""

import asyncio
import json
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Self

import msgspec

from deploy import port
from deploy.folder import write_private
from deploy.options import Sync
from deploy.process import describe, signal_group, spawn
from deploy.refusal import UpRefused
from proto.errors import SettingsInvalid

GIB = 1024**3
FILE_BYTES_MAX = 10 * GIB
# A disk that is really full is silence until the server is restarted (FACTS), so the server must say "full" before.
DISK_SHARE_MAX = 0.8
# The server's default: acknowledged and on the disk are then two minutes apart.
SYNC_DEFAULT = "2m"
START_S_MAX = 10.0
STOP_S_MAX = 10.0
# It answers within 20 to 50 ms: asking more often than it can matter costs a connect on loopback.
ASK_EVERY_S = 0.01


LISTEN = re.compile(r'^listen: "127\.0\.0\.1:([0-9]+)"$', re.MULTILINE)
TOKEN = re.compile(r'^authorization { token: (".*") }$', re.MULTILINE)


class Site(msgspec.Struct, frozen=True):
    """Where one server lives: chosen once, so that after a restart it is found where it was."""

    folder: Path
    port: int
    monitor_port: int
    token: str
    sync: Sync
    file_bytes_max: int

    @property
    def store(self) -> Path:
        return self.folder / "nats"

    @property
    def url(self) -> str:
        return f"nats://{self.token}@127.0.0.1:{self.port}"


def choose(folder: Path, *, sync: Sync, file_bytes_max: int) -> Site:
    """A site in `folder` on free ports, with a token that nobody knows."""
    own, monitor = port.free(2)
    return Site(folder, own, monitor, secrets.token_hex(16), sync, file_bytes_max)


def config(site: Site) -> str:
    """One server on loopback with JetStream. 8 MB a message: a request with pictures is one entry."""
    return f"""\
server_name: tailrace
listen: "127.0.0.1:{site.port}"
http: "127.0.0.1:{site.monitor_port}"
authorization {{ token: {quote(site.token)} }}
max_payload: 8MB
jetstream {{
  store_dir: {quote(str(site.store))}
  sync_interval: {SYNC_DEFAULT if site.sync == "default" else site.sync}
  max_file_store: {site.file_bytes_max}
}}
"""


def url(folder: Path, environ: Mapping[str, str]) -> str:
    """Where the NATS is that a command is about: TAILRACE_NATS_URL, or that of the `up` in `folder`.

    Raises SettingsInvalid when neither is there.
    """
    given = environ.get("TAILRACE_NATS_URL")
    if given:
        return given
    try:
        text = (folder / "nats.conf").read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsInvalid(
            f"there is no `up` in {folder}: name its folder with --data, or a NATS with TAILRACE_NATS_URL"
        ) from error
    port, token = LISTEN.search(text), TOKEN.search(text)
    if port is None or token is None:
        raise SettingsInvalid(f"{folder / 'nats.conf'} is not as `up` writes it")
    return f"nats://{json.loads(token[1])}@127.0.0.1:{port[1]}"


def quote(text: str) -> str:
    """A string of the server's configuration language, which knows JSON's short escapes but not \\u."""
    return json.dumps(text, ensure_ascii=False)


def command(site: Site) -> tuple[str, ...]:
    """Write the configuration, which holds the token, and say how to start the server on it.

    The binary is the one of the venv that runs us: Debian's own is too old, and stands first on some paths.
    """
    binary = Path(sys.executable).parent / "nats-server"
    if not binary.exists():
        raise UpRefused(f"{binary} is missing: run `make setup`, which installs it")
    write_private(site.folder / "nats.conf", config(site))
    return (str(binary), "-c", str(site.folder / "nats.conf"))


def room_bytes(store: Path) -> int:
    """What the log may grow to on this disk, counting what it already holds."""
    store.mkdir(exist_ok=True)
    held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return min(FILE_BYTES_MAX, int(DISK_SHARE_MAX * (shutil.disk_usage(store).free + held)))


async def answers(port: int) -> None:
    """Returns when the server greets. It does so only after JetStream has read its store."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                if (await reader.readline()).startswith(b"INFO "):
                    return
            finally:
                writer.close()
        await asyncio.sleep(ASK_EVERY_S)


class NatsServer:
    """A server of one's own in `folder`: `async with NatsServer(folder) as server: ... server.url`.

    It can be paused, stopped or killed, and started again; its port, token and store stay. What it says stands in
    `folder/nats.log`.
    """

    def __init__(self, folder: Path, *, sync: Sync = "default", file_bytes_max: int = GIB) -> None:
        self.site = choose(folder, sync=sync, file_bytes_max=file_bytes_max)
        self.url = self.site.url
        self.log = folder / "nats.log"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(SIGKILL)

    async def start(self) -> None:
        """Returns when it answers; raises UpRefused with its last line when it does not."""
        with self.log.open("ab") as log:
            self.process = await spawn(command(self.site), {}, log.fileno())
        try:
            async with asyncio.timeout(START_S_MAX):
                await answers(self.site.port)
        except TimeoutError as error:
            status = await self.stop(SIGKILL)
            last_line = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise UpRefused(f"nats-server {describe(status)}: {last_line}") from error

    async def stop(self, number: Signals = SIGTERM) -> int:
        """End it by `number`, SIGKILL for a crash; returns its status when it is gone."""
        self.signal(number)
        async with asyncio.timeout(STOP_S_MAX):
            return await self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: Signals) -> None:
        """SIGSTOP freezes it, SIGCONT wakes it."""
        signal_group(self.process, number)
