"""The checks that `up` makes while the system runs, each with its repair.

- A nats-server whose write has failed is restarted. Until then the server stores nothing, even when the cause (a full
  disk, a data directory that was away) is gone. While the disk is full it is left running, because it still serves
  reads.
- A process that hangs (it is alive for the kernel but does not do its work) is killed and started again. Each process
  is asked over HTTP. The metrics of a service are served by a thread of its own, so they also show when the event loop
  last ran.
- A new leader of the log is reported, which is the only trace of the pause that an election causes.
- Deleted streams, buckets and consumers of NATS are made again. A new consumer continues at the first entry that was
  not acknowledged. What a deleted stream or bucket contained is lost: turns that were in the log but not in the
  database end as failed. A log that is missing after the connection to NATS was lost is only reported: the server may
  have another store, or may not have read its own.
"""

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from signal import SIGKILL

from tailrace.deploy.local.console import Console
from tailrace.deploy.local.nats_server import ServerSpec, wait_started
from tailrace.deploy.local.readiness import BEAT, HealthCheck, Response, ask, http_get
from tailrace.deploy.local.status_file import StatusFile
from tailrace.deploy.local.supervisor import Supervisor
from tailrace.deploy.nats import setup
from tailrace.deploy.nats.streams import log_bytes_max
from tailrace.proto.errors import LogError
from tailrace.proto.nats import Connection
from tailrace.proto.nats.setup_state import SetupState, read_setup_state
from tailrace.proto.nats.streams import LOG_MISSING
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.waiting import BEAT_LATE_S

INTERVAL_S = 5.0
# Free space for a restart: two of the largest messages.
FREE_BYTES_MIN = 16 * 1024**2
# Reports after a failed write: of a single server, and of one in a cluster, which disables JetStream.
FAILED_WRITE_SIGNS = "write error", "JetStream not enabled"
NATS_INFO_S_MAX = 1.0
SILENT_S_MAX = BEAT_LATE_S
LOST_WHILE_RUNNING = (
    "It is not created again, because nats-server may have another store now: stop `up`, and copy its data directory "
    "first (docs/RUNBOOK.md, The log is missing)"
)


async def watch(servers: Sequence[ServerSpec], admin_url: str, supervisor: Supervisor, status: StatusFile) -> None:
    """Checks everything every `INTERVAL_S` seconds, and writes `status`, until it is cancelled.

    A check that fails, because the data directory is away for a moment or the disk is full, is reported once and
    repeated: `up` continues as long as its processes do.
    """
    checks = {server.name: HealthCheck(server.monitor_port, "/varz") for server in servers}
    liveness = Liveness(checks, supervisor)
    repair = SetupRepair(admin_url, supervisor.console, servers)
    failure = ""
    try:
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await restart_stuck_server(servers, supervisor)
                await liveness.restart_hanging()
                await repair.check()
                status.write()
            except OSError as error:
                now = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
            else:
                now = ""
            if now and now != failure:
                supervisor.console.log(f"{now}. Waiting for it; the processes continue")
            failure = now
    finally:
        await repair.close()


async def restart_stuck_server(specs: Sequence[ServerSpec], supervisor: Supervisor) -> None:
    """Checks all servers once, and restarts at most one of them. Raises OSError if the disk cannot be read.

    A server of a cluster then gets missed messages from the others.
    """
    for spec in specs:
        health = await http_get("127.0.0.1", spec.monitor_port, "/healthz")
        has_space = shutil.disk_usage(spec.store).free >= FREE_BYTES_MIN
        if is_stuck(health) and has_space and await has_started(spec):
            supervisor.console.log(f"{spec.name} stopped storing after a failed write; restarting it")
            supervisor.restart(spec.name)
            return


def is_stuck(health: Response) -> bool:
    """Returns whether `/healthz` of the monitoring port reports a failed write. The server then tries no other write.

    A starting server may report the same.
    """
    return health.status == 503 and any(sign in health.body for sign in FAILED_WRITE_SIGNS)


async def has_started(spec: ServerSpec) -> bool:
    """Returns whether the server accepts clients, which it does after it has read its store."""
    with suppress(TimeoutError):
        async with asyncio.timeout(NATS_INFO_S_MAX):
            await wait_started(spec.port)
            return True
    return False


class Liveness:
    """The time of the last answer of each process that has answered. A start may take long, so others are not judged.

    `checks` are the health checks of processes whose spec has none.
    """

    def __init__(self, checks: Mapping[str, HealthCheck], supervisor: Supervisor) -> None:
        self._checks = checks
        self._supervisor = supervisor
        self._seen: dict[tuple[str, int], float] = {}

    async def restart_hanging(self) -> None:
        """Asks all processes at once, and kills those that worked once, but not in the last `SILENT_S_MAX` seconds.

        A process that hangs does not delay the others: its answer is awaited for seconds.
        """
        # Includes spares that were started since: `tailrace restart` waits until they end.
        children = self._supervisor.children.items()
        checks = {**self._checks, **{name: child.spec.readiness for name, child in children if child.spec.readiness}}
        await asyncio.gather(*(self._restart_if_hanging(name, check) for name, check in checks.items()))

    async def _restart_if_hanging(self, name: str, check: HealthCheck) -> None:
        # The supervisor has no child of this name any more if it was a spare that has just ended.
        child = self._supervisor.children.get(name)
        if child is None or (pid := child.pid) is None:
            return
        response, now = await ask(check), time.monotonic()
        if is_working(response, now):
            self._seen[name, pid] = now
        # A spare may have ended meanwhile.
        elif child.pid == pid and now - self._seen.get((name, pid), now) > SILENT_S_MAX:
            self._supervisor.console.log(f"{name} has not answered for {SILENT_S_MAX:g} s; killing it, pid {pid}")
            # A process that hangs does not handle SIGTERM. What the log acknowledged is safe.
            self._supervisor.restart(name, SIGKILL)
            del self._seen[name, pid]


def is_working(response: Response, now: float) -> bool:
    """Returns whether a process answered at `now` on the monotonic clock, and its event loop ran shortly before."""
    beat = BEAT.search(response.body)
    return response.status == 200 and (beat is None or now - float(beat[1]) < SILENT_S_MAX)


class SetupRepair:
    """The checks of one `up`, over a connection of the administrator's user that the first check opens."""

    def __init__(self, admin_url: str, console: Console, servers: Sequence[ServerSpec]) -> None:
        self._url = admin_url
        self._console = console
        self._replicas = len(servers)
        self._bytes_max = log_bytes_max(servers[0].file_bytes_max)
        self._connection: Connection | None = None
        self._known = SetupState()
        self._disconnects = -1
        """The number of disconnects of the connection when it last saw the log; -1 if it has not."""
        self._is_reported = False

    async def check(self) -> None:
        """Creates missing parts, and reports a new leader of the log.

        Does nothing while NATS does not answer: the processes report that.
        """
        try:
            if self._connection is None or self._connection.closed.is_set():
                self._connection, self._disconnects = await Connection.open(self._url, "tailrace-up", ADMIN), -1
            disconnects = self._connection.disconnects
            found = await read_setup_state(self._connection)
            # Without an interruption, the log was deleted in the server that is still running.
            if not found.origin and disconnects != self._disconnects:
                if not self._is_reported:
                    self._console.log(f"{LOG_MISSING}. {LOST_WHILE_RUNNING}")
                self._is_reported = True
                return
            if found.missing:
                self._console.log(f"NATS lacks {', '.join(found.missing)}: creating it again")
                await setup.apply(
                    self._connection, replicas=self._replicas, bytes_max=self._bytes_max, after=self._known
                )
                found = await read_setup_state(self._connection)
            if found.leader and found.leader != self._known.leader:
                before = f", before {self._known.leader}" if self._known.leader else ""
                self._console.log(f"{found.leader} leads the log{before}")
            self._disconnects, self._is_reported = disconnects, False
            # Between two leaders there is none.
            self._known = found._replace(leader=found.leader or self._known.leader)
        except LogError as error:
            if self._connection is not None and self._connection.is_up:
                self._console.log(f"NATS cannot be checked: {error}")

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
