"""A nats-server beside us: how it is configured, started and ended; never speaks NATS beyond the greeting."""

import asyncio
import json
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Self

import msgspec

from tailrace.deploy.local import ports as port
from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_log import FILE
from tailrace.deploy.local.options import Sync
from tailrace.deploy.local.spawn import describe, signal_group, spawn
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.nats.permissions import ACCOUNTS, ADMIN, LOG, RIGHTS, Import, account, has_many_replies, imports_of

GIB = 1024**3
FILE_BYTES_MAX = 10 * GIB
# A disk that is really full is silence until the server is restarted, so the server must say "full" before.
DISK_SHARE_MAX = 0.8
# The server's default: acknowledged and on the disk are then two minutes apart.
SYNC_DEFAULT = "2m"
START_S_MAX = 10.0
STOP_S_MAX = 10.0
# It answers within 20 to 50 ms: asking more often than it can matter costs a connect on loopback.
ASK_EVERY_S = 0.01

NAME = "nats-server"
# Where `up` says what a command of the same folder connects to.
URL_FILE = "nats.url"
PID_FILE = "nats.pid"
STORE = "nats"
# A planned stop: the server hands over what it leads, then sends its clients away one by one, and leaves.
LAME_DUCK = """\
lame_duck_duration: "30s"
lame_duck_grace_period: "1s"
"""

# The way back of a question that may have many answers stays open for so long after the last one, and twice as long at
# most: nobody waits longer. The server's default is two minutes, and a busy gateway asks a hundred such in a second.
ANSWER_S_MAX = 30

# nats-server's own name for the one account that there is where none is named.
SHARED = "$G"
# Who has a server of its own.
EVERYBODY = "everybody"


class Membership(msgspec.Struct, frozen=True):
    """A server's place in a cluster: the loopback port for its fellows, theirs, and the password among them."""

    port: int
    others: tuple[int, ...]
    password: str


class Site(msgspec.Struct, frozen=True):
    """Where one server lives: chosen once, so that after a restart it is found where it was."""

    folder: Path
    port: int
    monitor_port: int
    # By user: each of proto/nats/permissions.py has one, and whoever else may do everything where the log is.
    passwords: Mapping[str, str]
    sync: Sync
    file_bytes_max: int
    # Its copies of the log are known by it: it stays when ports change.
    name: str = NAME
    membership: Membership | None = None
    # As it was before there were accounts: all users are of one, which has the log.
    is_shared: bool = False

    @property
    def store(self) -> Path:
        return self.folder / STORE

    @property
    def account(self) -> str:
        """Whose the log is."""
        return SHARED if self.is_shared else LOG

    def url(self, user: str) -> str:
        return f"nats://{user}:{self.passwords[user]}@127.0.0.1:{self.port}"


def choose(folder: Path, *, sync: Sync, file_bytes_max: int) -> Site:
    """A site in `folder` on free ports, with passwords that nobody knows."""
    own, monitor = port.free(2)
    return Site(folder, own, monitor, new_passwords(), sync, file_bytes_max)


def new_passwords() -> dict[str, str]:
    return {user: secrets.token_hex(16) for user in RIGHTS}


def config(site: Site) -> str:
    """One server on loopback with JetStream. 8 MB a message: a request with pictures is one entry."""
    return f"""\
server_name: {site.name}
listen: "127.0.0.1:{site.port}"
http: "127.0.0.1:{site.monitor_port}"
{shared_config(site) if site.is_shared else own_config(site)}max_payload: 8MB
jetstream {{
  store_dir: {quote(str(site.store))}
  sync_interval: {SYNC_DEFAULT if site.sync == "default" else site.sync}
  max_file_store: {site.file_bytes_max}
}}
{cluster_config(site, site.membership) if site.membership else ""}"""


def shared_config(site: Site) -> str:
    """For who reads what was stored before there were accounts."""
    return f"authorization {{ user: {EVERYBODY}, password: {quote(site.passwords[EVERYBODY])} }}\n"


def own_config(site: Site) -> str:
    return f"accounts {{\n{accounts_config({user: quote(password) for user, password in site.passwords.items()})}}}\n"


def accounts_config(passwords: Mapping[str, str]) -> str:
    """An account and a user for each role. A password is written as it is given: in quotes, or a variable's name."""
    return "".join(account_config(name, passwords) for name in ACCOUNTS)


def account_config(name: str, passwords: Mapping[str, str]) -> str:
    users = {user: password for user, password in passwords.items() if account(user) == name}
    ways = {user: imports_of(user) for user in RIGHTS}
    asked_by: dict[Import, list[str]] = {}
    for user, out in ways.items():
        for way in out:
            if way.account == name:
                asked_by.setdefault(way, []).append(account(user))
    lines = (
        *(("jetstream: enabled",) if name == LOG else ()),
        block("users", [f"user: {user}, password: {users[user]}{permissions(user)}" for user in users]),
        block("exports", [export(way, importers) for way, importers in asked_by.items()]),
        block("imports", [imported(way) for user, out in ways.items() if account(user) == name for way in out]),
    )
    return f"  {name} {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"


def block(name: str, rows: Sequence[str]) -> str:
    return f"{name}: [\n" + "".join(f"      {{ {row} }}\n" for row in rows) + "    ]"


def permissions(user: str) -> str:
    """Of whoever is of no role, none: it may do everything in the account that it is of."""
    if (rights := RIGHTS.get(user)) is None:
        return ""
    lines = (
        f"publish: {{ allow: {listed(rights.publish)} }}",
        f"subscribe: {{ allow: {listed((*rights.subscribe, *rights.serves))} }}",
        *(("allow_responses: true",) if rights.can_reply else ()),
    )
    return ", permissions: {\n" + "".join(f"        {line}\n" for line in lines) + "      }"


def export(way: Import, importers: Sequence[str]) -> str:
    kind = "stream" if way.is_stream else "service"
    many = f', response_type: stream, response_threshold: "{ANSWER_S_MAX}s"' if has_many_replies(way.subject) else ""
    return f"{kind}: {quote(way.subject)}{many}, accounts: [{', '.join(importers)}]"


def imported(way: Import) -> str:
    kind = "stream" if way.is_stream else "service"
    return f"{kind}: {{ account: {way.account}, subject: {quote(way.subject)} }}"


def listed(subjects: Sequence[str]) -> str:
    return "[" + ", ".join(map(quote, subjects)) + "]"


def cluster_config(site: Site, membership: Membership) -> str:
    """Clients know all addresses by their setting, and are told no others: ports of a start that is over, say."""
    user = f"tailrace:{membership.password}"
    routes = ", ".join(quote(f"nats://{user}@127.0.0.1:{other}") for other in membership.others)
    return f"""\
pid_file: {quote(str(site.folder / PID_FILE))}
{LAME_DUCK}cluster {{
  name: tailrace
  listen: "127.0.0.1:{membership.port}"
  authorization {{ user: tailrace, password: {quote(membership.password)} }}
  no_advertise: true
  routes: [{routes}]
}}
"""


def stored(store: Path, name: str) -> Path:
    """Where a server keeps what the account of that name has."""
    return store / "jetstream" / name


def url(folder: Path, environ: Mapping[str, str]) -> str:
    """Where the NATS is that a command is about: TAILRACE_NATS_URL, or that of the `up` in `folder`.

    Raises SettingsInvalid when neither is there.
    """
    given = environ.get("TAILRACE_NATS_URL")
    if given:
        return given
    try:
        return (folder / URL_FILE).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsInvalid(
            f"there is no `up` in {folder}: name its folder with --data, or a NATS with TAILRACE_NATS_URL"
        ) from error


def quote(text: str) -> str:
    """A string of the server's configuration language, which knows JSON's short escapes but not \\u."""
    return json.dumps(text, ensure_ascii=False)


def command(site: Site) -> tuple[str, ...]:
    """Write the configuration, which holds the passwords, and say how to start the server on it.

    The binary is the one of the venv that runs us: Debian's own is too old, and stands first on some paths.
    """
    binary = Path(sys.executable).parent / "nats-server"
    if not binary.exists():
        raise UpRefused(f"{binary} is missing: run `make setup`, which installs it")
    site.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(site.folder / "nats.conf", config(site))
    return (str(binary), "-c", str(site.folder / "nats.conf"))


def room_bytes(store: Path, servers: int = 1) -> int:
    """What each of `servers` may store on this disk, counting what is there already."""
    store.mkdir(exist_ok=True)
    held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return min(FILE_BYTES_MAX, int(DISK_SHARE_MAX * (shutil.disk_usage(store).free + held) / servers))


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

    It can be paused, stopped or killed, and started again; its port, passwords and store stay. What it says stands in
    `folder/nats.log`. Who has one plays every part: `url` is of a user without limits, and all users have its password.
    """

    def __init__(
        self, folder: Path, *, sync: Sync = "default", file_bytes_max: int = GIB, site: Site | None = None
    ) -> None:
        site = site or choose(folder, sync=sync, file_bytes_max=file_bytes_max)
        password = site.passwords[ADMIN]
        self.site = msgspec.structs.replace(site, passwords=dict.fromkeys((EVERYBODY, *site.passwords), password))
        self.url = self.site.url(EVERYBODY)
        self.log = folder / FILE

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
