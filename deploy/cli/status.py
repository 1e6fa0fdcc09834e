"""`tailrace status`: the processes of a local `up`, the queue, the log and the last problems."""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from tailrace.deploy.cli.arguments import add_data, add_json
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local import nats_server, status_file
from tailrace.deploy.local.console import Problem
from tailrace.deploy.local.readiness import find_unready, passes
from tailrace.deploy.local.status_file import ProcessEntry
from tailrace.deploy.local.terminal_text import has_cursor, make_printable, table
from tailrace.persistence.health import PersistenceHealth
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.generator_health import GeneratorHealth
from tailrace.proto.ids import LOCAL, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Rpc, stream_size
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.nats.setup_state import REDUNDANCY_LOST, read_setup_state
from tailrace.proto.nats.users import ADMIN, GATEWAY
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.exit_status import EXIT_ERROR
from tailrace.proto.service import ExpectedProcesses
from tailrace.proto.subjects import BODIES, GENERATORS, PERSISTENCE, STREAM
from tailrace.proto.version import VERSION

DESCRIPTION = "Show whether everything works."
EXAMPLES = """\
examples:
  tailrace status
  tailrace status --watch          repeat it every two seconds
  tailrace status --json | jq .nats.queued

It shows the `tailrace up` with this data directory (--data): processes, pids, addresses, the last errors in its
output, and what /readyz of the gateway reports. For your own NATS, set TAILRACE_NATS_URL with the user admin: it then
shows what NATS, the generators and persistence report. Exit status 1: something is not ready. A system whose new
answers fail, as while the model refuses the key, is ready: "state" is "degraded", as in /readyz and /health.
"""
WATCH_EVERY_S = 2.0
# A healthy process answers sooner.
WAIT_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="repeat it until Ctrl-C")
    add_json(parser)
    add_data(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the status once, or with `--watch` every WATCH_EVERY_S seconds.

    Returns EXIT_ERROR if a part is not ready. Raises SettingsInvalid if there is no system.
    """
    while True:
        found = asyncio.run(fetch(args.data, environ))
        if args.json:
            print_json(found)
        else:
            # On a terminal, each output replaces the previous output.
            clear = "\x1b[H\x1b[2J" if args.watch and has_cursor(sys.stdout) else ""
            print(clear + render(found), flush=True)
        if not args.watch:
            return 0 if found.ok else EXIT_ERROR
        time.sleep(WATCH_EVERY_S)


class ProcessStatus(msgspec.Struct, frozen=True):
    """A process of the local `up`. `pid` is None while it is not running; `where` are its addresses."""

    name: str
    pid: int | None
    is_ready: bool
    where: list[str]


class NatsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The reports of nats-server, the generators and persistence.

    `leader`: the nats-server that leads the log; empty with one server, or while an election runs.

    `behind`: nats-servers that are away, or far behind, with their copy of a stream.

    `processes_missing`: roles of which fewer processes answer than TAILRACE_EXPECTED states, as text.

    `is_degraded`: a generator works but its turns fail, for the reason in `generators_detail`.

    `queued`: turns that wait for a slot; `running`: turns that generators run.

    `unrecorded`: requests and ends that are not in the database yet.
    """

    version: str
    leader: str
    missing: list[str]
    behind: list[str]
    processes_missing: list[str]
    log_fullness: float
    blobs_fullness: float
    queued: int
    running: int
    unrecorded: int
    generators: int
    generator_slots_free: int
    generators_detail: str
    is_degraded: bool
    persistence: bool
    persistence_detail: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a system.

    `state` is the status of the gateway's `/health`. `ok` is false if that is `unhealthy`.

    `version` is the version of this command. `up_version`, `url` and `processes` are empty without a local `up`.
    `problems` ends with the parts that the gateway's `/readyz` reports as not ready.
    """

    ok: bool
    state: Literal["healthy", "degraded", "unhealthy"]
    version: str
    up_version: str
    url: str
    processes: list[ProcessStatus]
    nats: NatsStatus | None
    nats_error: str
    problems: list[Problem]


async def fetch(data_dir: Path, environ: Mapping[str, str]) -> Status:
    """Returns the status. Raises SettingsInvalid if there is neither a local `up` nor TAILRACE_NATS_URL."""
    url = nats_server.url(data_dir, environ)
    # TAILRACE_NATS_URL may be of another system than this data directory.
    up = None if environ.get("TAILRACE_NATS_URL") else status_file.read(data_dir)
    nats, error = None, ""
    processes = await asyncio.gather(*(_process(entry) for entry in up.processes)) if up is not None else []
    unready = await find_unready(up.url) if up is not None else {}
    try:
        connection = await Connection.open(url, "tailrace-status", ADMIN)
        try:
            nats = await read_nats(connection, environ)
        finally:
            await connection.close()
    except LogUnavailable as unavailable:
        error = str(unavailable)
    is_served = nats is not None and not nats.missing and nats.generators > 0 and nats.persistence
    is_ok = is_served and not unready and all(process.is_ready for process in processes)
    return Status(
        ok=is_ok,
        state="unhealthy" if not is_ok else "degraded" if nats is not None and nats.is_degraded else "healthy",
        version=VERSION,
        up_version=up.version if up is not None else "",
        url=up.url if up is not None else "",
        processes=list(processes),
        nats=nats,
        nats_error=error,
        problems=[
            *(up.problems if up is not None else []),
            *(Problem(datetime.now(UTC), name, f"not ready: {detail}") for name, detail in unready.items()),
        ],
    )


async def _process(entry: ProcessEntry) -> ProcessStatus:
    is_ready = entry.pid is not None and (entry.check is None or await passes(entry.check))
    return ProcessStatus(entry.name, entry.pid, is_ready, list(entry.where))


async def read_nats(connection: Connection, environ: Mapping[str, str]) -> NatsStatus:
    """Returns what NATS, and the generators and persistence over it, report to the user admin.

    Raises SettingsInvalid, LogUnavailable.
    """
    expected = settings.read(ExpectedProcesses, environ).by_role()
    rpc = Rpc(connection)
    setup = await read_setup_state(connection)
    generators, persistence = await asyncio.gather(
        rpc.every_health(GENERATORS, wait_s=WAIT_S), rpc.every_health(PERSISTENCE, wait_s=WAIT_S)
    )
    gateways = list[bytes]()
    if GATEWAY in expected:
        # Every gateway reports the readers of a turn, also of one that does not exist.
        gateways = await rpc.collect_readers_as_admin(TurnKey(LOCAL, TurnId(new_id())), wait_s=WAIT_S)
    log, blobs, queued, records = 0.0, 0.0, 0, 0
    # A missing stream or consumer has no figures.
    with suppress(LogUnavailable):
        log, blobs = (await stream_size(connection, STREAM)).ratio, (await stream_size(connection, BODIES)).ratio
        queued = (await consumer_backlog(connection, GENERATORS)).waiting
        backlog = await consumer_backlog(connection, PERSISTENCE)
        records = backlog.waiting + backlog.leased
    reports = [msgspec.json.decode(report, type=GeneratorHealth) for report in generators]
    health = [msgspec.json.decode(report, type=PersistenceHealth) for report in persistence]
    databases = {report.database_id: report.database for report in health}
    # Each database would have a part of the turns, and lack the others.
    names = ", ".join(sorted(databases.values()))
    conflict = f"its processes use different databases: {names}" if len(databases) > 1 else ""
    waiting = sum(sum(report.waiting.values()) for report in reports)
    answering = {GATEWAY: len(gateways), GENERATORS: len(reports), PERSISTENCE: len(health)}
    return NatsStatus(
        version=".".join(map(str, connection.server_version or ())),
        leader=setup.leader,
        missing=setup.missing,
        behind=setup.behind,
        processes_missing=[
            f"{role}: {answering[role]} of {least}" for role, least in expected.items() if answering[role] < least
        ],
        log_fullness=log,
        blobs_fullness=blobs,
        queued=queued + waiting,
        running=sum(report.held for report in reports) - waiting,
        unrecorded=records,
        generators=len(reports),
        generator_slots_free=sum(report.free for report in reports),
        generators_detail=next((report.detail for report in reports if report.detail), ""),
        is_degraded=any(report.state == "degraded" for report in reports),
        persistence=bool(health) and all(report.ok for report in health) and not conflict,
        persistence_detail=conflict or next((report.detail for report in health if report.detail), ""),
    )


def render(status: Status) -> str:
    parts = [f"tailrace {status.version}" + (f", `up` {status.up_version} at {status.url}" if status.url else "")]
    if status.processes:
        rows = [
            (one.name, str(one.pid or "-"), "ready" if one.is_ready else "NOT READY", *one.where)
            for one in status.processes
        ]
        parts.append(table(rows))
    parts.append(_render_nats(status.nats) if status.nats is not None else f"  {status.nats_error}")
    if status.problems:
        rows = [(f"{one.at.astimezone():%m-%d %H:%M:%S}", one.name, one.text) for one in status.problems]
        parts.append("Last problems\n" + table(rows))
    return make_printable("\n\n".join(parts))


def _render_nats(nats: NatsStatus) -> str:
    persistence = "ready" if nats.persistence else nats.persistence_detail or "no process answers"
    detail = f": {nats.generators_detail}" if nats.generators_detail else ""
    detail = f"; degraded, new answers fail{detail}" if nats.is_degraded else detail
    leader = f", {nats.leader} leads the log" if nats.leader else ""
    missing = f", lacks {', '.join(nats.missing)}: run `tailrace streams`" if nats.missing else ""
    rows = [
        ("NATS", nats.version + leader + missing),
        *([("Copies", f"{', '.join(nats.behind)} has no current copy: {REDUNDANCY_LOST}")] if nats.behind else []),
        *([("Processes", f"too few answer: {', '.join(nats.processes_missing)}")] if nats.processes_missing else []),
        ("Log", f"{nats.log_fullness:.1%} full; blobs {nats.blobs_fullness:.1%}"),
        ("Turns", f"{nats.running} running, {nats.queued} queued"),
        ("Generators", f"{nats.generators} answer, {nats.generator_slots_free} slots free{detail}"),
        ("Persistence", f"{persistence}, {nats.unrecorded} entries to record"),
    ]
    return table(rows)
