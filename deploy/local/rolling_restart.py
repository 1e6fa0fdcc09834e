"""`tailrace restart`: starts the processes of a running `up` again, one after the other, on the installed version.

With numbers, it only starts missing processes, and stops surplus ones.

Persistence is restarted first, without a spare: SQLite has one writer. Generators and gateways have a spare, a further
process of the role, which takes new turns and connections while a process finishes its own. If a spare does not become
ready, no process of its role is stopped. First of all, the installed version checks the database and the streams.
"""

import asyncio
import os
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGUSR1
from typing import Literal

import msgspec

from tailrace.deploy.local import ports, status_file
from tailrace.deploy.local.data_dir import read_own, write_private
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.processes import GRACE, build_spare
from tailrace.deploy.local.readiness import wait_ready
from tailrace.deploy.local.status_file import Restart, StatusFile, UpStatus
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.runtime.race import run_until
from tailrace.proto.version import VERSION

SIGNAL = SIGUSR1
# An older process must not read entries of a newer process: docs/RUNBOOK.md, Separate processes.
ROLES = ("persistence", "generators", "gateway")
# SQLite has one writer.
WITHOUT_SPARE = "persistence"
# A process that was asked to end needs some seconds; a generator also up to TAILRACE_GRACE_S, to finish its turns.
CLOSE_S_MAX = 60.0
POLL_S = 0.1
# In the data directory: the request of the command that sends SIGNAL.
REQUEST = "restart.json"
REMIND_S = 10.0


class LogLine(msgspec.Struct):
    """The last log line of a process that has failed."""

    error: str


class Numbers(msgspec.Struct, frozen=True):
    """How many processes of a role run after the restart."""

    generators: int
    gateways: int


class Request(msgspec.Struct, frozen=True):
    """The content of the file REQUEST: new numbers of processes (None: unchanged); without both, a restart.

    `version` is the installed version.
    """

    generators: int | None = None
    gateways: int | None = None
    version: str = ""


RESTART_ALL = Request(version=VERSION)


class RollingRestart:
    """Restarts all services of an `up`, or changes their numbers, each time that `requested` is set.

    `scale` returns the specs for other numbers of processes. `scale` gets the metrics ports of the running processes,
    by name, and raises UpRefused.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        supervisor: Supervisor,
        status: StatusFile,
        folder: Path,
        scale: Callable[[Numbers, Mapping[str, int]], Sequence[ProcessSpec]],
    ) -> None:
        self._running = {role: [spec for spec in specs if spec.role == role] for role in ROLES}
        self._folder = folder
        self._scale_specs = scale
        self._supervisor = supervisor
        self._status = status
        # The version of the processes, which may differ from that of `up` after a restart.
        self._version = VERSION
        self.requested = asyncio.Event()

    async def run(self) -> None:
        """Serves one request after another, until it is cancelled."""
        while True:
            await self.requested.wait()
            failure = ""
            try:
                request = self._take_request()
                if request.generators or request.gateways:
                    await self._scale(request)
                else:
                    await self._restart_all(request.version)
            except (UpRefused, OSError) as error:
                failure = str(error)
                self._supervisor.console.log(f"restart: {failure}")
            self.requested.clear()
            self._report(Restart(self._status.restart.ended + 1, failure=failure))

    def _take_request(self) -> Request:
        """Returns the signal's request, and removes its file. Raises OSError."""
        try:
            request = msgspec.json.decode(read_own(self._folder, REQUEST), type=Request)
        except (FileNotFoundError, *DECODE_ERRORS):
            request = Request()
        (self._folder / REQUEST).unlink(missing_ok=True)
        return request

    async def _restart_all(self, version: str) -> None:
        try:
            await check(self._running[WITHOUT_SPARE][0])
            for role in ROLES:
                if role == WITHOUT_SPARE:
                    await self._restart(self._running[role][0])
                elif specs := self._running[role]:
                    await self._restart_with_spare(specs)
        except UpRefused as error:
            raise UpRefused(f"{error}. The processes that were not yet restarted continue") from error
        self._version = version or self._version

    async def _scale(self, request: Request) -> None:
        """Starts missing processes, then stops surplus ones. All other processes keep running.

        Raises UpRefused if a process does not start; then no number has changed.
        """
        if request.version not in ("", self._version):
            raise UpRefused(
                f"version {request.version} is installed, and the processes are of {self._version}: run"
                " `tailrace restart` first, then change the numbers"
            )
        numbers = Numbers(
            request.generators or len(self._running["generators"]), request.gateways or len(self._running["gateway"])
        )
        before = {spec.name: spec for of_role in self._running.values() for spec in of_role}
        ports_before = {name: spec.readiness.port for name, spec in before.items() if spec.readiness}
        try:
            # The simulated Claude is no service.
            wanted = {spec.name: spec for spec in self._scale_specs(numbers, ports_before) if spec.role in ROLES}
            if further := [spec for name, spec in wanted.items() if name not in before]:
                await self._start(further)
        except UpRefused as error:
            raise UpRefused(
                f"{error}. No number of processes has changed, and those that ran before continue: correct the cause"
                " and run the command again"
            ) from error
        surplus = [spec for name, spec in before.items() if name not in wanted]
        remaining = [before.get(name, spec) for name, spec in wanted.items()]
        self._running = {role: [spec for spec in remaining if spec.role == role] for role in ROLES}
        if surplus:
            await self._stop(surplus)

    async def _start(self, specs: Sequence[ProcessSpec]) -> None:
        """Returns when all `specs` are ready. Raises UpRefused if one does not start; then none of these runs."""
        self._report_now(specs, "starting")
        for spec in specs:
            self._supervisor.start(spec, is_trial=True)
        try:
            for spec in specs:
                await self._wait_ready(spec)
            for spec in specs:
                self._supervisor.end_trial(spec.name)
        except UpRefused:
            await self._stop(specs)
            raise

    async def _stop(self, specs: Sequence[ProcessSpec]) -> None:
        """Stops processes for good, all at once. Each process finishes its work first."""
        self._report_now(specs, "stopping")
        await asyncio.gather(*(self._supervisor.retire(spec.name, end_s_max(spec)) for spec in specs))

    def _report_now(self, specs: Sequence[ProcessSpec], action: Literal["starting", "stopping"]) -> None:
        names = ", ".join(spec.name for spec in specs)
        self._report(Restart(self._status.restart.ended, names, action=action))

    async def _restart_with_spare(self, specs: Sequence[ProcessSpec]) -> None:
        [port] = ports.find_free(1)
        further = build_spare(specs[0], port)
        self._supervisor.start(further)
        try:
            await self._wait_ready(further)
            for spec in specs:
                await self._restart(spec)
        finally:
            self._report(Restart(self._status.restart.ended, further.name))
            await self._supervisor.retire(further.name, end_s_max(further))

    async def _restart(self, spec: ProcessSpec) -> None:
        self._report(Restart(self._status.restart.ended, spec.name))
        await self._supervisor.end(spec.name, end_s_max(spec))
        await self._wait_ready(spec)

    async def _wait_ready(self, spec: ProcessSpec) -> None:
        """Raises UpRefused if the process does not become ready, or if it ends and is new or a spare."""
        assert spec.readiness is not None  # noqa: S101  # all services have one
        waiting = wait_ready({spec.name: spec.readiness}, self._supervisor.console.log)
        waited = await run_until(waiting, self._supervisor.runs[spec.name])
        if waited.cancelled():
            why = self._supervisor.console.last_lines.get(spec.name, "see the lines that `up` printed")
            raise UpRefused(f"{spec.name} does not start: {why}")
        waited.result()

    def _report(self, restart: Restart) -> None:
        self._status.restart = restart
        try:
            self._status.write()
        except OSError as error:
            # `watch` writes the file again. The restart and `up` continue.
            self._supervisor.console.log(f"restart: status.json cannot be written ({error.strerror})")


def end_s_max(spec: ProcessSpec) -> float:
    """Returns the seconds after which a process that was asked to end is killed."""
    return CLOSE_S_MAX + (float(spec.environ[GRACE]) if spec.role == "generators" else 0.0)


async def check(spec: ProcessSpec) -> None:
    """Checks the database and the streams with the installed version, and changes nothing. Raises UpRefused."""
    environ = {**spec.environ, "TAILRACE_LOG_FORMAT": "json"}
    checking = await asyncio.create_subprocess_exec(
        *spec.command, "--check", env=environ, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    printed, _ = await checking.communicate()
    if checking.returncode:
        last = printed.strip().rpartition(b"\n")[2]
        try:
            why = msgspec.json.decode(last, type=LogLine).error
        except DECODE_ERRORS:
            why = last.decode(errors="replace")
        raise UpRefused(f"the installed version cannot be started: {why}")


def restart(folder: Path, show: Callable[[Restart, float], None], request: Request = RESTART_ALL) -> UpStatus:
    """Requests a restart or other numbers from the `up` in `folder`, and waits until that is done. Raises UpRefused.

    Calls `show` with each state and 0; then every `REMIND_S` with the state and the seconds waited so far. Returns the
    status after the restart.
    """
    status = status_file.read(folder)
    if status is None:
        raise UpRefused(status_file.explain_absence(folder))
    if status.restart.now:
        raise UpRefused("a restart is running already: wait until it has ended")
    write_private(folder / REQUEST, msgspec.json.encode(request).decode())
    os.kill(status.pid, SIGNAL)
    pid, before, shown = status.pid, status.restart.ended, Restart()
    since = reminded = time.monotonic()
    while True:
        status = status_file.read(folder)
        # A service manager may have started another `up` since.
        if status is None or status.pid != pid:
            raise UpRefused("`up` has ended: see its output")
        if status.restart.ended > before:
            break
        if status.restart.now and status.restart != shown:
            shown, since, reminded = status.restart, time.monotonic(), time.monotonic()
            show(shown, 0.0)
        elif shown.now and time.monotonic() - reminded >= REMIND_S:
            reminded = time.monotonic()
            show(shown, reminded - since)
        time.sleep(POLL_S)
    if status.restart.failure:
        raise UpRefused(status.restart.failure)
    for prefix, number in (("generator-", request.generators), ("gateway-", request.gateways)):
        if number and number != sum(one.name.startswith(prefix) for one in status.processes):
            raise UpRefused("the running `up` is of a version that cannot change the numbers: stop it and start it")
    return status
