"""Configuration, start and stop of a local nats-server."""

import asyncio
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any, Self

import msgspec

from tailrace.deploy.local import ports, running
from tailrace.deploy.local.data_dir import URL_FILE, read_own, write_private
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_log import FILE
from tailrace.deploy.local.options import Sync
from tailrace.deploy.local.spawn import describe, signal_group, spawn
from tailrace.deploy.nats.permissions import ACCOUNTS, LOG, RIGHTS, Import, account, has_many_replies, imports_of
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.nats import streams
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.runtime.race import run_until

GIB = 1024**3
FILE_BYTES_MAX = 10 * GIB
# On a full disk the server stops storing until it is restarted, so its limit must be reached before the disk is full.
# The database stores every turn a second time, and longer.
DISK_SHARE_MAX = 0.4
# The file that names this process's cgroup, and the root of cgroup v2 (man cgroups).
OWN_CGROUP, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Settings of Go's runtime, which nats-server inherits from `up`.
GO_RUNTIME = ("GOGC", "GOMAXPROCS", "GOMEMLIMIT")
# The server's default: an acknowledged message is on the disk up to two minutes later.
SYNC_DEFAULT = "2m"
# The server reads its store first: after a crash, gigabytes take minutes.
START_S_MAX = 600.0
STOP_S_MAX = 10.0
# A server starts in 20 to 50 ms. A check costs one connection on loopback.
POLL_S = 0.01

NAME = "nats-server"
# A server of a cluster writes its process id to this file, for `tailrace restart-node`.
PID_FILE = "nats.pid"
STORE = "nats"
# By default, a server that has lost another one's packets notices it after a minute. If they come back earlier, old and
# new connections disturb each other, and the log stops a second time, for up to 16 s (docs/FAULTS.md, F13).
ROUTES = {"ping_interval": "2s", "ping_max": 3, "write_deadline": "3s"}
# A planned stop: the server hands over its leaderships, then disconnects its clients one by one, and exits.
LAME_DUCK = {"lame_duck_duration": "30s", "lame_duck_grace_period": "1s"}
# A request with pictures is one entry.
PAYLOAD_BYTES_MAX = streams.PAYLOAD_BYTES
# nats-server closes a connection that has more unsent bytes, 64 MB by default. A process reads 16 requests of turns at
# once (FEW_PER_READ and READS_MAX in direct_get.py), and each may be as large as a payload.
PENDING_BYTES_MAX = 32 * PAYLOAD_BYTES_MAX

# The reply subject of a request with many responses stays open for this long after the last one, and at most twice as
# long; no client waits longer. The server's default is two minutes, and a busy gateway makes a hundred such requests a
# second.
RESPONSE_S_MAX = 30

# The user without limits of `NatsServer`.
ROOT_USER = "everybody"


class ClusterMember(msgspec.Struct, frozen=True):
    """A server's cluster settings: its route port on loopback, the other servers' ports, and the shared password."""

    port: int
    others: tuple[int, ...]
    password: str


class ServerSpec(msgspec.Struct, frozen=True):
    """Directory, ports, passwords and limits of one server. All stay the same when the server is restarted."""

    directory: Path
    port: int
    monitor_port: int
    # By the users of deploy/nats/permissions.py. Any other user may do everything in the log's account.
    passwords: Mapping[str, str]
    sync: Sync
    file_bytes_max: int
    # Identifies the server's copies of the log in a cluster, so it must not change.
    name: str = NAME
    member: ClusterMember | None = None

    @property
    def store(self) -> Path:
        return self.directory / STORE

    def url(self, user: str) -> str:
        """Returns the URL with the user's password. Do not print it."""
        return f"nats://{user}:{self.passwords[user]}@127.0.0.1:{self.port}"


def new_spec(directory: Path, *, sync: Sync, file_bytes_max: int) -> ServerSpec:
    """Returns a server in `directory` with free ports and new random passwords."""
    own, monitor = ports.find_free(2)
    return ServerSpec(directory, own, monitor, new_passwords(), sync, file_bytes_max)


def new_passwords() -> dict[str, str]:
    """Returns a random password for each NATS user."""
    return {user: secrets.token_hex(16) for user in RIGHTS}


def config(spec: ServerSpec) -> str:
    """Returns the configuration of one server on loopback with JetStream, as JSON, which nats-server reads."""
    settings: dict[str, Any] = {
        "server_name": spec.name,
        "listen": f"127.0.0.1:{spec.port}",
        "http": f"127.0.0.1:{spec.monitor_port}",
        "max_payload": PAYLOAD_BYTES_MAX,
        "max_pending": PENDING_BYTES_MAX,
        "jetstream": {
            "store_dir": str(spec.store),
            "sync_interval": SYNC_DEFAULT if spec.sync == "default" else spec.sync,
            "max_file_store": spec.file_bytes_max,
        },
        "accounts": accounts(spec.passwords),
    }
    if spec.member is not None:
        settings |= cluster(spec, spec.member)
    return render(settings)


def render(settings: Mapping[str, Any]) -> str:
    """Returns `settings` as JSON. nats-server does not know JSON's `\\u` escapes, so other characters are unescaped."""
    return json.dumps(settings, indent=1, ensure_ascii=False) + "\n"


def accounts(passwords: Mapping[str, str]) -> dict[str, Any]:
    """Returns the account of each role, with its users, exports and imports."""
    return {name: _account(name, passwords) for name in ACCOUNTS}


def _account(name: str, passwords: Mapping[str, str]) -> dict[str, Any]:
    imports = {user: imports_of(user) for user in RIGHTS}
    importers: dict[Import, list[str]] = {}
    for user, imported in imports.items():
        for one in imported:
            if one.account == name:
                importers.setdefault(one, []).append(account(user))
    return ({"jetstream": "enabled"} if name == LOG else {}) | {
        "users": [_user(user, password) for user, password in passwords.items() if account(user) == name],
        "exports": [_export(one, accounts) for one, accounts in importers.items()],
        "imports": [_import(one) for user in RIGHTS if account(user) == name for one in imports[user]],
    }


def _user(user: str, password: str) -> dict[str, Any]:
    """A user without a role has no permissions block, and may do everything in its account."""
    found: dict[str, Any] = {"user": user, "password": password}
    if (rights := RIGHTS.get(user)) is not None:
        found["permissions"] = {
            "publish": {"allow": list(rights.publish)},
            "subscribe": {"allow": [*rights.subscribe, *rights.serves]},
        }
        if rights.can_reply:
            found["permissions"]["allow_responses"] = True
    return found


def _export(one: Import, importers: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"stream" if one.is_stream else "service": one.subject}
    if has_many_replies(one.subject):
        found |= {"response_type": "stream", "response_threshold": f"{RESPONSE_S_MAX}s"}
    return found | {"accounts": list(importers)}


def _import(one: Import) -> dict[str, Any]:
    return {"stream" if one.is_stream else "service": {"account": one.account, "subject": one.subject}}


def cluster(spec: ServerSpec, member: ClusterMember) -> dict[str, Any]:
    """Returns the settings of a cluster's server. Without `no_advertise` clients would also learn old addresses."""
    user = f"tailrace:{member.password}"
    return {
        "pid_file": str(spec.directory / PID_FILE),
        **LAME_DUCK,
        "cluster": {
            "name": "tailrace",
            "listen": f"127.0.0.1:{member.port}",
            "authorization": {"user": "tailrace", "password": member.password},
            "no_advertise": True,
            "routes": [f"nats://{user}@127.0.0.1:{other}" for other in member.others],
            **ROUTES,
        },
    }


def streams_dir(store: Path) -> Path:
    """Returns the directory in which a server stores all streams and Raft logs."""
    return store / "jetstream"


def is_of_single_server(store: Path) -> bool:
    """Returns whether a store has streams and no metadata of a cluster, whose server would delete these streams."""
    jetstream = streams_dir(store)
    return any(jetstream.glob("*/streams/*")) and not (jetstream / "$SYS/_js_/_meta_").exists()


def url(data_dir: Path, environ: Mapping[str, str]) -> str:
    """Returns the NATS URL for a command: TAILRACE_NATS_URL, or the URL of the `up` with this data directory.

    Raises SettingsInvalid if there is neither, or if the directory belongs to another user.
    """
    configured = environ.get("TAILRACE_NATS_URL")
    if configured:
        return configured
    try:
        return read_own(data_dir, URL_FILE).decode().strip()
    except PermissionError as error:
        raise SettingsInvalid(
            f"{data_dir / URL_FILE} is not used ({error.strerror}): "
            "run the command as its owner, choose another directory with --data, or set TAILRACE_NATS_URL to your NATS"
        ) from error
    except OSError as error:
        raise SettingsInvalid(
            f"{data_dir} is not the data directory of a `tailrace up`: "
            "start one, name its data directory with --data, or set TAILRACE_NATS_URL to your NATS"
        ) from error


def find_url(data_dir: Path, environ: Mapping[str, str], *, is_change: bool = False) -> str:
    """Returns `url`; says which system of several it is. A change needs a named system. Raises SettingsInvalid."""
    if not environ.get("TAILRACE_NATS_URL"):
        if is_change:
            running.require_named(data_dir)
        running.say_which(data_dir, "--data")
    return url(data_dir, environ)


def command(spec: ServerSpec) -> tuple[str, ...]:
    """Writes the configuration file, which contains the passwords, and returns the command that starts the server.

    The binary belongs to the running virtual environment: Debian's is too old, and is first in some PATHs.
    """
    binary = Path(sys.executable).parent / "nats-server"
    if not binary.exists():
        raise UpRefused(f"{binary} is missing: install Tailrace again; in a checkout: `make setup`")
    spec.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(spec.directory / "nats.conf", config(spec))
    return (str(binary), "-c", str(spec.directory / "nats.conf"))


def go_runtime(environ: Mapping[str, str], servers: int = 1) -> dict[str, str]:
    """Returns the environment of each of `servers`: the variables of GO_RUNTIME in `environ`, and a GOMAXPROCS.

    The default of GOMAXPROCS is half of the cores for all servers together, and at least 1. With a thread for each
    core, idle threads of Go search for work and wake each other; on two cores, the server then needs a quarter more CPU
    time for a delta (docs/SIZING.md).
    """
    default = {"GOMAXPROCS": str(max(1, _count_cores() // (2 * servers)))}
    return default | {name: environ[name] for name in GO_RUNTIME if name in environ}


def _count_cores() -> int:
    """Returns how many cores this process may use: by CPU affinity, and by the quotas of its cgroups (version 2)."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    names = OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.exists() else []
    group = CGROUP_ROOT / next((name.removeprefix("0::/") for name in names if name.startswith("0::/")), "")
    # The quota may be that of its container, service or slice.
    for parent in (group, *group.parents):
        # The root of the machine has no file; without a quota, a file has "max 100000".
        with suppress(OSError, ValueError):
            quota, period = map(int, (parent / "cpu.max").read_text().split())
            cores = min(cores, math.ceil(quota / period))
    return cores


def storage_limit(store: Path, servers: int = 1) -> int:
    """Returns the bytes that each of `servers` may store on this disk, including what is stored already.

    The result is more than the sum of the limits of the existing streams, which were made when the disk had more
    space. Otherwise nats-server would create no further stream ("insufficient storage resources").
    """
    store.mkdir(exist_ok=True)
    used = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    limit = min(FILE_BYTES_MAX, int(DISK_SHARE_MAX * (shutil.disk_usage(store).free + used) / servers))
    return max(limit, _reserved_bytes(store) + 1)


class _StreamFile(msgspec.Struct):
    """The file in which a server stores the configuration of a stream."""

    name: str
    max_bytes: int = 0


def _reserved_bytes(store: Path) -> int:
    """Returns the sum of the limits of all streams in the store of a server, or in the stores of a cluster."""
    limits: dict[str, int] = {}
    for path in store.rglob("streams/*/meta.inf"):
        with suppress(OSError, *DECODE_ERRORS):
            found = msgspec.json.decode(path.read_bytes(), type=_StreamFile)
            limits[found.name] = max(0, found.max_bytes)
    return sum(limits.values())


async def wait_started(port: int) -> None:
    """Returns when the server sends INFO to a new connection, which it does after JetStream has read its store."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                if (await reader.readline()).startswith(b"INFO "):
                    return
            finally:
                writer.close()
        await asyncio.sleep(POLL_S)


class NatsServer:
    """A server for a test or a migration: `async with NatsServer(directory) as server: … server.url`.

    The server can be paused, stopped or killed, and started again with the same port, passwords and store. Its output
    is in `directory/nats.log`. `url` has a user without limits; all users have the same password.
    """

    def __init__(
        self, directory: Path, *, sync: Sync = "default", file_bytes_max: int = GIB, spec: ServerSpec | None = None
    ) -> None:
        spec = spec or new_spec(directory, sync=sync, file_bytes_max=file_bytes_max)
        password = spec.passwords[ADMIN]
        self.spec = msgspec.structs.replace(spec, passwords=dict.fromkeys((ROOT_USER, *spec.passwords), password))
        self.url = self.spec.url(ROOT_USER)
        self.log = directory / FILE

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(SIGKILL)

    async def start(self) -> None:
        """Starts the server; returns when it accepts clients. Raises UpRefused with its last line of output."""
        with self.log.open("ab") as log:
            self.process = await spawn(command(self.spec), go_runtime({}), log.fileno())
        ended = asyncio.create_task(self.process.wait())
        started = await run_until(wait_started(self.spec.port), ended, timeout_s=START_S_MAX)
        if started.cancelled():
            status = await self.stop(SIGKILL)
            last_line = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise UpRefused(f"nats-server {describe(status)}: {last_line}")

    async def stop(self, number: Signals = SIGTERM) -> int:
        """Sends the signal `number` (SIGKILL for a crash), and returns the status when the server has ended."""
        self.signal(number)
        async with asyncio.timeout(STOP_S_MAX):
            return await self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: Signals) -> None:
        """Sends a signal: SIGSTOP pauses the server, SIGCONT resumes it."""
        signal_group(self.process, number)
