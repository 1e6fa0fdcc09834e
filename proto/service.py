"""Start and stop of the three services: arguments, settings, logging, signals, exit status."""

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import prometheus_client
import structlog
import uvloop
from msgspec import Meta

from tailrace.proto import nats
from tailrace.proto.errors import (
    LogIncomplete,
    LogMisconfigured,
    LogRefused,
    LogUnavailable,
    SettingsInvalid,
    StoreTooNew,
    TailraceError,
)
from tailrace.proto.nats import Connection, certificates, setup_state
from tailrace.proto.runtime import logging_setup as logging
from tailrace.proto.runtime import metrics_server, systemd, tracing
from tailrace.proto.runtime import settings as environment
from tailrace.proto.runtime.certificates import require_certificates
from tailrace.proto.runtime.exit_status import EXIT_ERROR, EXIT_USAGE
from tailrace.proto.runtime.malloc import collect_less_often, return_large_memory
from tailrace.proto.waiting import HEALTH, wait_for

logger = structlog.get_logger()

READY = prometheus_client.Gauge(
    "tailrace_ready", "1 from the end of the start on, also while NATS is away; 0 while the process starts"
)
LOOP_BEAT = prometheus_client.Gauge(
    "tailrace_event_loop_seconds", "Monotonic clock at the last beat of the event loop, which beats once a second"
)
BEAT_EVERY_S = 1.0
EXPECTED = prometheus_client.Gauge(
    "tailrace_expected_processes", "How many processes of a role TAILRACE_EXPECTED states at least", ["role"]
)


class ExpectedProcesses(msgspec.Struct, frozen=True, kw_only=True):
    """How many processes an operator expects at least. The commands `status` and `doctor` read it, too."""

    expected: Annotated[
        str,
        Meta(
            pattern=r"^((gateway|generators|persistence)=[0-9]{1,3}(,(?!$)|$))*$",
            description="number of processes below which `status`, `doctor` and an alert name a role, such as "
            "gateway=2,generators=3,persistence=1",
        ),
    ] = ""

    def by_role(self) -> dict[str, int]:
        """Returns the numbers by role, without roles of which the setting says nothing."""
        pairs = (pair.split("=") for pair in self.expected.split(",") if pair)
        return {role: int(count) for role, count in pairs}


class ProcessSettings(ExpectedProcesses, frozen=True, kw_only=True):
    """The settings of every process."""

    nats_url: Annotated[
        str,
        Meta(description="URLs of the NATS servers: nats://USER:PASSWORD@HOST:PORT, separated by commas"),
    ] = "nats://127.0.0.1:4222"
    metrics_port: Annotated[
        int, Meta(ge=0, le=65535, description="port for Prometheus metrics; 0: no metrics (`up`: a free port)")
    ] = 0
    metrics_host: Annotated[
        str,
        Meta(
            pattern=r"^([0-9.]+|[0-9a-fA-F:]+)$",
            description="IP address of the metrics; 0.0.0.0 for a Prometheus on another machine",
        ),
    ] = "127.0.0.1"
    metrics_targets: Annotated[
        str,
        Meta(
            description="file with the metrics addresses of all processes, which `GET /targets` on the metrics port "
            "returns to Prometheus (`up` writes it)"
        ),
    ] = ""
    log_format: Annotated[
        logging.LogFormat,
        Meta(
            description="format of log lines; on a terminal the default is colour, or console if NO_COLOR is set; "
            "`up` writes console to a file"
        ),
    ] = "json"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="lowest level of log lines")
    ] = "info"


class ModelSettings(ProcessSettings, frozen=True, kw_only=True):
    """The settings of the processes that use the table of models."""

    models_file: Annotated[
        str,
        Meta(
            description="JSON file with further models, their limits and prices, for gateways and generators alike: "
            "docs/BACKENDS.md"
        ),
    ] = ""


# Without authentication: the answers contain nothing but the status. The gateway has the same paths.
HEALTH_CHECKS = {"/healthz": HEALTH.liveness_fault, "/readyz": HEALTH.readiness_fault}

S = TypeVar("S", bound=ProcessSettings)

Preflight = Callable[[S], Coroutine[Any, Any, None]]
"""Checks the settings. Raises SettingsInvalid."""
Probe = Callable[[S], Awaitable[object]]
"""Checks by a request what the settings alone do not show. Runs with `--check`."""


class Stop(asyncio.Event):
    """Set by the first SIGTERM or SIGINT: the process finishes what it runs. `now` is set by the second signal."""

    def __init__(self) -> None:
        super().__init__()
        self.now = asyncio.Event()
        """Set when this process must hand over at once what still runs."""

    def signal(self) -> None:
        """Handles SIGTERM or SIGINT: the first sets this event, the second also sets `now`."""
        if self.is_set():
            self.now.set()
        self.set()


Serve = Callable[[S, Connection, Stop], Awaitable[None]]
"""Does the process's work until the event is set."""
Meanwhile = Callable[[S, asyncio.Event], Coroutine[Any, Any, None]]
"""Answers clients while the start waits (waiting.py), until the event is set."""


def mark_ready(**facts: object) -> None:
    """Logs `ready` and sets the metric `tailrace_ready`. Each `serve` calls it when it begins to work."""
    logger.info("ready", **facts)
    READY.set(1)
    HEALTH.is_ready = True
    systemd.notify_status("ready", "READY=1")


async def skip_probe(_: object) -> None:
    """The probe of processes that need only the log."""


async def answer_nobody(_: object, __: asyncio.Event) -> None:
    """The `meanwhile` of processes without clients."""


def main(
    role: str,
    about: str,
    settings_type: type[S],
    preflight: Preflight[S],
    serve: Serve[S],
    probe: Probe[S] = skip_probe,
    meanwhile: Meanwhile[S] = answer_nobody,
) -> int:
    """Runs a process until SIGTERM or SIGINT and returns its exit status.

    0: stopped by a signal. 1: a dependency is unavailable, or an error. 2: a setting, a password or a version is
    invalid.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tailrace.{role}", description=about)
    parser.add_argument("--env", action="store_true", help="print all settings with type, default and meaning")
    parser.add_argument("--check", action="store_true", help="check settings and connections, then exit")
    arguments = parser.parse_args()
    if arguments.env:
        sys.stdout.write(environment.render(settings_type) + "\n")
        return 0
    try:
        settings = environment.read(settings_type, {**_terminal_defaults(), **os.environ})
        require_certificates(os.environ)
        logging.configure(role, settings.log_format, settings.log_level)
        for name, meant in environment.find_mistyped(settings_type, os.environ).items():
            logger.warning("unknown setting", variable=name, did_you_mean=meant)
        for name, why in environment.find_removed(os.environ).items():
            logger.warning("setting without effect", variable=name, why=why)
        if tracing.configure(role):
            logging.add_trace_ids()
        return_large_memory()
        collect_less_often()
        # The time of creation of each series: nothing uses it, and it would be one line in ten of a scrape.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        uvloop.run(
            _check(role, settings, preflight, probe)
            if arguments.check
            else _run(role, settings, preflight, serve, meanwhile)
        )
    except SettingsInvalid as error:
        sys.stderr.write(f"{role}: {error}\n")
        return EXIT_USAGE
    except TailraceError as error:
        # The message of our own errors says what to do; a traceback would hide it.
        logger.error("stopped", error=str(error))  # noqa: TRY400
        return EXIT_USAGE if _is_invalid(error) else EXIT_ERROR
    finally:
        tracing.shutdown()
        # Skips the garbage collection at exit, which took 0.3 s with the SDK loaded.
        gc.freeze()
    if arguments.check:
        sys.stdout.write(f"{role}: settings and connections are valid\n")
    return 0


def _terminal_defaults() -> dict[str, str]:
    """Returns settings for a terminal on standard error. The environment overrides them."""
    if not sys.stderr.isatty():
        return {}
    form = "colour" if logging.is_coloured(sys.stderr, os.environ) else "console"
    return {environment.env_name("log_format"): form}


def _is_invalid(error: TailraceError) -> bool:
    """Returns whether only a change of a password, a version or a configuration ends `error`."""
    return isinstance(error, LogRefused | LogMisconfigured | StoreTooNew) and not isinstance(error, LogIncomplete)


async def _check(role: str, settings: S, preflight: Preflight[S], probe: Probe[S]) -> None:
    await preflight(settings)
    connection = await _connect(role, settings)
    try:
        await probe(settings)
    finally:
        await connection.close()


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs an error of a callback of the event loop: without a traceback if memory was lacking."""
    if isinstance(context.get("exception"), MemoryError):
        logger.error("no memory", where=context["message"].partition("\n")[0])
    else:
        loop.default_exception_handler(context)


async def _run(role: str, settings: S, preflight: Preflight[S], serve: Serve[S], meanwhile: Meanwhile[S]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_error)
    stop = Stop()
    # From here on, because the kernel ignores SIGTERM without a handler for the first process of a container.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signal)
    for part, count in settings.by_role().items():
        EXPECTED.labels(part).set(count)
    if settings.metrics_port:
        metrics_server.serve(settings.metrics_host, settings.metrics_port, HEALTH_CHECKS, settings.metrics_targets)
    beating = asyncio.create_task(_beat())
    try:
        answering = partial(meanwhile, settings)
        await wait_for(partial(preflight, settings), stop, answering)
        connection = await wait_for(partial(_connect, role, settings), stop, answering)
        if connection is not None:
            await _run_until_stopped(settings, connection, stop, serve)
    finally:
        beating.cancel()


async def _connect(role: str, settings: S) -> Connection:
    """Returns a connection to a NATS that has what this version needs. Raises SettingsInvalid, LogError."""
    connection = await Connection.open(settings.nats_url, f"tailrace-{role}", role)
    try:
        await nats.check(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _run_until_stopped(settings: S, connection: Connection, stop: Stop, serve: Serve[S]) -> None:
    # When NATS closes the connection for good, the process stops, and its supervisor restarts it (ADR 7).
    beside = [asyncio.create_task(_set_when_closed(connection, stop)), asyncio.create_task(_notify_stop(stop))]
    beside.append(asyncio.create_task(setup_state.watch(connection)))
    beside.append(asyncio.create_task(certificates.watch(settings.nats_url)))
    try:
        await serve(settings, connection, stop)
        if connection.closed.is_set():
            raise LogUnavailable("NATS closed the connection for good: restart this process")
    finally:
        for task in beside:
            task.cancel()
        await connection.close()


async def _set_when_closed(connection: Connection, stop: Stop) -> None:
    await connection.closed.wait()
    stop.set()
    stop.now.set()  # no turn can store its answer


async def _notify_stop(stop: Stop) -> None:
    await stop.wait()
    systemd.notify_status("stopping: finishes what it runs", "STOPPING=1")


async def _beat() -> None:
    """Sets the metric by which `tailrace up` sees that the event loop runs: a thread of its own serves the metrics.

    Tells the same to the watchdog of systemd.
    """
    while True:
        HEALTH.beat_at = time.monotonic()
        LOOP_BEAT.set(HEALTH.beat_at)
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(BEAT_EVERY_S)
