"""`tailrace doctor`: checks what `tailrace up` and the processes need, and says what to do about each problem."""

import argparse
import asyncio
import errno
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx2
import msgspec

import tailrace.features.backends
import tailrace.gateway.settings
from tailrace.deploy.cli.arguments import add_address, add_data, add_json
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.cli.status import NatsStatus, read_nats
from tailrace.deploy.local import (
    check_environment,
    nats_cluster,
    nats_server,
    ports,
    running,
    shadowing_copy,
    status_file,
)
from tailrace.deploy.local.data_dir import exists
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.processes import is_simulated
from tailrace.deploy.local.readiness import http_get
from tailrace.deploy.local.terminal_text import table
from tailrace.deploy.monitoring.rules import CERTIFICATE_DAYS_MIN, CLOCK_OFFSET_S_MAX
from tailrace.features.persistence import DATABASES
from tailrace.gateway.http import fd_limit
from tailrace.gateway.log.fullness import disk_shortage
from tailrace.persistence.sqlite import find_moved_aside
from tailrace.proto.errors import SettingsInvalid, TailraceError
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Connection, TurnLog, certificates, check
from tailrace.proto.nats.connection import RENEW, parse_servers, user_of
from tailrace.proto.nats.setup_state import REDUNDANCY_LOST, read_clock_offset_s, read_setup_state
from tailrace.proto.nats.users import ADMIN, USERS
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.exit_status import EXIT_ERROR

DESCRIPTION = "Check what `tailrace up` needs, and say what to do about each problem."
EXAMPLES = """\
examples:
  tailrace doctor
  tailrace doctor --port 9000 --data try     for a `tailrace up` with these options
  tailrace doctor --json

It checks Python, the settings, the port, the disk, the file limit, the database, NATS with its version and setup, the
log, what the generators and persistence report, and the model key with one request that is free of charge. It changes
nothing. For your own NATS, set TAILRACE_NATS_URL with the user admin: the port and the data directory of an `up` are
then not checked. Exit status 1: something does not work.
"""
Level = Literal["ok", "warning", "error"]
SKEW_S_MAX = 5.0
CLOCK_TIMEOUT_S = 5.0
BUSY_TIMEOUT_S = 2.0
DAMAGED_NAMED_MAX = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    add_data(parser, "data directory", finds_running=False)
    add_json(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the findings. Returns EXIT_ERROR if a finding is an error; warnings do not count."""
    options = Options(host=args.host, port=args.port, data_dir=args.data)
    findings = asyncio.run(examine(options, environ))
    if args.json:
        print_json(findings)
    else:
        print(render(findings))
    return EXIT_ERROR if any(one.level == "error" for one in findings) else 0


class Finding(msgspec.Struct, frozen=True):
    """The result of one check; `action` says what to do if it is not `ok`."""

    name: str
    level: Level
    detail: str
    action: str = ""


async def examine(options: Options, environ: Mapping[str, str]) -> list[Finding]:
    """Runs all checks. Starts nothing and costs nothing: the model key is checked with a request for `/v1/models`."""
    # With your own NATS, no `up` uses the port and the data directory.
    of_up = not environ.get("TAILRACE_NATS_URL")
    database = environ.get("TAILRACE_DATABASE") or (str(options.data_dir / "tailrace.db") if of_up else "")
    folder = (
        options.data_dir if of_up else Path(database).parent if database and not DATABASES.is_url(database) else None
    )
    return [
        Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}"),
        *check_copy(),
        await _settings(environ),
        *([await _port(options)] if of_up else []),
        *([_disk(folder)] if folder else []),
        _files(environ),
        *([await _database(database)] if database else []),
        *await _nats(options.data_dir, environ),
        *await _model(environ),
    ]


def check_copy() -> Sequence[Finding]:
    """Returns a finding if the venv of a checkout has a copy of the checkout; none otherwise."""
    if (copy := shadowing_copy.find()) is None:
        return []
    detail = f"{copy} is a copy of the checkout and may run in its place: changes of the checkout have no effect"
    return [Finding("Checkout", "warning", detail, f"in the checkout: {shadowing_copy.ACTION}")]


async def _settings(environ: Mapping[str, str]) -> Finding:
    # Only `up` refuses these variables. Processes that are started without `up` need them.
    inherited = {name: text for name, text in environ.items() if name not in check_environment.CHOSEN}
    try:
        await check_environment.check(inherited)
    except SettingsInvalid as error:
        return Finding("Settings", "error", str(error), "correct the variable: see `tailrace explain settings`")
    if mistyped := check_environment.find_mistyped(environ):
        return Finding("Settings", "warning", "; ".join(mistyped), "correct the name of the variable")
    if removed := settings.find_removed(environ):
        detail = "; ".join(f"{name} has no effect: {why}" for name, why in removed.items())
        return Finding("Settings", "warning", detail, "remove the variable")
    return Finding("Settings", "ok", "all TAILRACE_… variables are valid")


async def _port(options: Options) -> Finding:
    up = status_file.read(options.data_dir)
    if up is None:
        try:
            ports.listen(options.host, options.port).close()
        except UpRefused as error:
            # If the address cannot be bound for another reason, an `up` that runs on this port does not matter.
            is_in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if not is_in_use or (up := running.find_at(options.port)) is None:
                return Finding("Port", "error", *_split_message(error))
        else:
            return Finding("Port", "ok", f"{options.port} on {options.host} is free")
    where, url = f"in use by the running `up` (pid {up.pid}) at {up.url}", urlsplit(up.url)
    if (await http_get(url.hostname or "", url.port or 0)).status == 200:
        return Finding("Port", "ok", f"{where}, which is ready")
    return Finding("Port", "error", f"{where}, which is not ready", "see `tailrace status`")


def _disk(data_dir: Path) -> Finding:
    try:
        existing = next(path for path in (data_dir.absolute(), *data_dir.absolute().parents) if exists(path))
        for store in (data_dir / nats_server.STORE, data_dir / nats_cluster.DIRECTORY):
            if exists(store):
                os.scandir(store).close()
    except PermissionError as error:
        return _not_permitted("Disk", error)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "cannot be written" if existing.is_dir() else "is not a directory"
        return Finding("Disk", "error", f"{existing} {why}", "correct it, or choose another with --data")
    if shortage := disk_shortage(existing):
        return Finding("Disk", "error", shortage, "make space: docs/RUNBOOK.md, The log is full")
    return Finding("Disk", "ok", f"{existing} can be written and has space")


def _files(environ: Mapping[str, str]) -> Finding:
    try:
        wanted = settings.read(tailrace.gateway.settings.Settings, environ).streams_max
    except SettingsInvalid:
        wanted = tailrace.gateway.settings.Settings().streams_max
    # Each gateway does this at its start.
    limit = fd_limit.raise_soft_limit()
    detail = f"{limit} file descriptors allow {fd_limit.streams_max()} streams of a gateway"
    if fd_limit.streams_max() < wanted:
        return Finding("File limit", "warning", detail, f"raise `ulimit -Hn` for TAILRACE_STREAMS_MAX={wanted}")
    return Finding("File limit", "ok", detail)


async def _database(where: str) -> Finding:
    try:
        if not DATABASES.is_url(where) and not await asyncio.to_thread(exists, Path(where)):
            return Finding("Database", "ok", f"{where} does not exist yet; persistence creates it")
        await (await DATABASES.open(where, busy_timeout_s=BUSY_TIMEOUT_S)).close()
    except PermissionError as error:
        return _not_permitted("Database", error)
    except TailraceError as error:
        return Finding("Database", "error", str(error), "see docs/RUNBOOK.md, The database fails")
    if not DATABASES.is_url(where) and (damaged := await asyncio.to_thread(find_moved_aside, Path(where))):
        return Finding(
            "Database",
            "warning",
            f"{damaged[-1]} was damaged, and {where} was made from the log: it may lack older turns",
            "restore them (docs/RUNBOOK.md, The database fails), then move the damaged file away",
        )
    return Finding("Database", "ok", DATABASES.display(where))


async def _nats(data_dir: Path, environ: Mapping[str, str]) -> Sequence[Finding]:
    try:
        url = nats_server.url(data_dir, environ)
    except SettingsInvalid:
        url = ""
    if url and (environ.get("TAILRACE_NATS_URL") or status_file.read(data_dir) is not None):
        return await _nats_setup(url, environ)
    return [await asyncio.to_thread(_nats_binary)]


def _nats_binary() -> Finding:
    binary = Path(sys.executable).parent / nats_server.NAME
    try:
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return Finding("NATS", "error", f"{binary} does not run", "install Tailrace again; in a checkout: `make setup`")
    return Finding("NATS", "ok", f"{version.strip()}; `tailrace up` starts it")


async def _nats_setup(url: str, environ: Mapping[str, str]) -> Sequence[Finding]:
    try:
        connection = await Connection.open(url, "tailrace-doctor")
        try:
            await check(connection)
            version = ".".join(map(str, connection.server_version or ()))
            behind, offset_s = (await read_setup_state(connection)).behind, await read_clock_offset_s(connection)
            damaged = await TurnLog(connection).damaged_turns()
            # NATS lets no other role ask all processes.
            may_ask = user_of(parse_servers(url)) not in {*USERS} - {ADMIN}
            processes = _processes(await read_nats(connection, environ)) if may_ask else NOT_ASKED
        finally:
            await connection.close()
    except TailraceError as error:
        return [Finding("NATS", "error", *_split_message(error)), *await _certificates(url)]
    setup = f"{version} runs, with all streams, consumers and buckets as this version needs them"
    return [
        Finding("NATS", "ok", setup),
        *_redundancy(behind),
        _compare_clocks(offset_s),
        _damage(damaged),
        *processes,
        *await _certificates(url),
    ]


NOT_ASKED = (Finding("Processes", "ok", "not checked: TAILRACE_NATS_URL needs the user admin"),)


def _processes(found: NatsStatus) -> Sequence[Finding]:
    """Returns what the generators and persistence report: the data directory of this command may not be theirs."""
    action = "see docs/RUNBOOK.md, A part is not ready"
    none = "no process answers"
    generators, persistence = (
        f"{found.generators} answer" if found.generators else none,
        found.persistence_detail or none,
    )
    if found.is_degraded:
        generators += f"; new answers fail: {found.generators_detail}"
    return [
        Finding("Generators", "ok", generators)
        if found.generators and not found.is_degraded
        else Finding("Generators", "error", generators, action),
        Finding("Persistence", "ok", "records turns")
        if found.persistence
        else Finding("Persistence", "error", persistence, action),
        *(
            Finding(
                "Processes", "warning", f"too few answer: {role}", "start them: docs/RUNBOOK.md, A process is missing"
            )
            for role in found.processes_missing
        ),
    ]


async def _certificates(url: str) -> Sequence[Finding]:
    if (expiry := await certificates.read_expiry(parse_servers(url))) is None:
        return []
    now = datetime.now(UTC)
    days = (expiry - now).days
    when = f"ends in {days} days" if days >= 0 else f"ended {(now - expiry).days} days ago"
    detail = f"the first certificate of the connection to NATS {when}, on {expiry:%Y-%m-%d}"
    if days >= CERTIFICATE_DAYS_MIN:
        return [Finding("Certificate", "ok", detail)]
    return [Finding("Certificate", "warning" if days >= 0 else "error", detail, RENEW)]


def _compare_clocks(offset_s: float) -> Finding:
    if abs(offset_s) < CLOCK_OFFSET_S_MAX:
        return Finding("NATS clock", "ok", "agrees with the clock of this machine")
    detail = (
        f"the clock of this machine is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} nats-server's"
    )
    return Finding("NATS clock", "warning", detail, "set both with NTP: docs/RUNBOOK.md, A clock is wrong")


def _redundancy(behind: Sequence[str]) -> Sequence[Finding]:
    if not behind:
        return []
    detail = f"{', '.join(behind)} has no current copy of a stream: {REDUNDANCY_LOST}"
    return [Finding("Copies", "warning", detail, "start it: docs/RUNBOOK.md, A nats-server is missing")]


def _damage(damaged: Sequence[TurnKey]) -> Finding:
    if not damaged:
        return Finding("Log", "ok", "no process has found a damaged turn")
    named = ", ".join(f"{key.turn} of {key.tenant}" for key in damaged[:DAMAGED_NAMED_MAX])
    more = f" and {len(damaged) - DAMAGED_NAMED_MAX} more" if len(damaged) > DAMAGED_NAMED_MAX else ""
    detail = f"it has lost entries of {named}{more}"
    return Finding("Log", "warning", detail, "check the disk: docs/RUNBOOK.md, A file of the log is damaged")


async def _model(environ: Mapping[str, str]) -> Sequence[Finding]:
    if is_simulated(environ):
        if environ.get("TAILRACE_NATS_URL"):
            # With that setting no `up` starts a simulated Claude, and generators have their own environment.
            why = "not checked: ANTHROPIC_API_KEY is not set here. To check it, set it as for the generators"
            return [Finding("Model key", "ok", why)]
        return [Finding("Model key", "ok", "ANTHROPIC_API_KEY is not set: a simulated Claude answers")]
    try:
        chosen = settings.read(tailrace.features.backends.Settings, environ)
        # The SDK takes 1 s to load, so it is imported only when it is needed.
        from tailrace.features.generators import FEATURES  # noqa: PLC0415
        from tailrace.generators.serve import probe  # noqa: PLC0415

        is_checked = await probe(chosen, features=FEATURES)
    except TailraceError as error:
        return [Finding("Model key", "error", str(error), "check ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL")]
    if not is_checked:
        return [Finding("Model key", "ok", f"not checked: {chosen.backends} has no request that is free of charge")]
    key = Finding("Model key", "ok", f"{chosen.anthropic_base_url} accepts it")
    return [key, await _clock(chosen.anthropic_base_url)]


async def _clock(url: str) -> Finding:
    """Compares the clock with the `Date` of the model's server."""
    try:
        async with httpx2.AsyncClient(timeout=CLOCK_TIMEOUT_S) as client:
            date = (await client.head(url)).headers.get("date", "")
        skew_s = abs((datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds())
    except (ValueError, TypeError):
        return Finding("Clock", "ok", f"not checked: {url} sends no Date header")
    except (httpx2.HTTPError, ImportError) as error:
        return Finding("Clock", "ok", f"not checked: {url} does not answer ({type(error).__name__})")
    if skew_s > SKEW_S_MAX:
        detail = f"differs by {skew_s:.0f} s from that of {url}"
        return Finding("Clock", "warning", detail, "set it with NTP: JWTs, tickets and limits depend on it")
    return Finding("Clock", "ok", f"agrees with that of {url}")


def _not_permitted(name: str, error: PermissionError) -> Finding:
    action = "run it as the user of `up`, correct the permissions, or choose --data"
    return Finding(name, "error", f"{error.filename}: {error.strerror}", action)


def _split_message(error: TailraceError) -> tuple[str, str]:
    """Returns the two parts of a message `what is wrong: what to do`."""
    what, _, action = str(error).rpartition(": ")
    return (what, action) if what else (action, "see docs/RUNBOOK.md")


def render(findings: Sequence[Finding]) -> str:
    rows = []
    for one in findings:
        rows.append((one.level.upper() if one.level != "ok" else "ok", one.name, one.detail))
        if one.action:
            rows.append(("", "", f"→ {one.action}"))
    return table(rows)
