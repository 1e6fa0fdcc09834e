"""Restart of processes that hang: alive for the kernel, but not doing their work.

Each process is asked over HTTP. The metrics of a service are served by a thread of its own, so they also tell when the
event loop last ran.
"""

import re
import time
from collections.abc import Mapping
from signal import SIGKILL

from tailrace.deploy.local.readiness import HealthCheck, Response, http_get
from tailrace.deploy.local.supervisor import Supervisor
from tailrace.proto.service import BEAT_LATE_S

SILENT_S_MAX = BEAT_LATE_S
BEAT = re.compile(r"^tailrace_event_loop_seconds ([0-9.e+]+)$", re.MULTILINE)


class Liveness:
    """The last time at which each process answered; from its first answer on, because a start may take long."""

    def __init__(self, checks: Mapping[str, HealthCheck], supervisor: Supervisor) -> None:
        self._checks = checks
        self._supervisor = supervisor
        self._seen: dict[tuple[str, int], float] = {}

    async def restart_hanging(self) -> None:
        """Asks every process once, and kills those that worked before and have not for `SILENT_S_MAX` seconds."""
        for name, check in self._checks.items():
            pid = self._supervisor.children[name].pid
            if pid is None:
                continue
            response, now = await http_get("127.0.0.1", check.port, check.path), time.monotonic()
            if is_working(response, now):
                self._seen[name, pid] = now
            elif now - self._seen.get((name, pid), now) > SILENT_S_MAX:
                self._supervisor.console.log(
                    f"{name} has not answered for {SILENT_S_MAX:g} s; killing it, pid {pid}, to start it again"
                )
                # A process that hangs does not handle SIGTERM. What the log acknowledged is safe.
                self._supervisor.restart(name, SIGKILL)
                del self._seen[name, pid]


def is_working(response: Response, now: float) -> bool:
    """Returns whether a process answered at `now` on the monotonic clock, and its event loop ran shortly before."""
    beat = BEAT.search(response.body)
    return response.status == 200 and (beat is None or now - float(beat[1]) < SILENT_S_MAX)
