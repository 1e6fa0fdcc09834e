"""How each of the three processes starts, tells about itself, and stops. What it does in between it brings along."""

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Literal, TypeVar

import msgspec
import prometheus_client
import structlog
import uvloop
from msgspec import Meta

from tailrace.proto import nats
from tailrace.proto.errors import LogUnavailable, SettingsInvalid, TailraceError
from tailrace.proto.nats import Connection
from tailrace.proto.runtime import logging_setup as logging
from tailrace.proto.runtime import settings as environment

logger = structlog.get_logger()

READY = prometheus_client.Gauge("tailrace_ready", "1 as soon as this process does its work, 0 while it starts")

EXIT_TROUBLE = 1
EXIT_USAGE = 2


class ProcessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every process can be told by its environment."""

    nats_url: Annotated[
        str,
        Meta(description="where the log is: nats://USER:PASSWORD@HOST:PORT, several joined by commas"),
    ] = "nats://127.0.0.1:4222"
    metrics_port: Annotated[
        int, Meta(ge=0, le=65535, description="Prometheus on this loopback port; 0: none, and of `up` free ones")
    ] = 0
    log_format: Annotated[
        logging.LogFormat, Meta(description="one line a fact, as json or for a console; on a terminal: console")
    ] = "json"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="what is less than this is not said")
    ] = "info"


S = TypeVar("S", bound=ProcessSettings)

Preflight = Callable[[S], Awaitable[None]]
"""Raises what the settings alone are wrong about."""
Probe = Callable[[S], Awaitable[None]]
"""Raises what is wrong with what only a request would tell; `--check` makes it."""
Serve = Callable[[S, Connection, asyncio.Event], Awaitable[None]]
"""Does the work until the event is set."""


def mark_ready(**facts: object) -> None:
    """Said by each `serve`, once it does its work: to who reads the lines, and to who asks for the metrics."""
    logger.info("ready", **facts)
    READY.set(1)


async def no_probe(_: object) -> None:
    """The probe of who needs nothing but the log."""


def main(
    role: str,
    about: str,
    settings_type: type[S],
    preflight: Preflight[S],
    serve: Serve[S],
    probe: Probe[S] = no_probe,
) -> int:
    """Runs a process until SIGTERM or SIGINT; the exit status comes back.

    0 when it was told to stop, 1 when something it needs is away or it broke, 2 when a setting is wrong.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tailrace.{role}", description=about)
    parser.add_argument("--env", action="store_true", help="print every setting: type, default, meaning")
    parser.add_argument("--check", action="store_true", help="check settings and connections, then leave")
    asked = parser.parse_args()
    if asked.env:
        sys.stdout.write(environment.render(settings_type) + "\n")
        return 0
    try:
        settings = environment.read(settings_type, {**_of_the_terminal(), **os.environ})
        logging.configure(role, settings.log_format, settings.log_level)
        uvloop.run(_check(role, settings, preflight, probe) if asked.check else _run(role, settings, preflight, serve))
    except SettingsInvalid as error:
        sys.stderr.write(f"{role}: {error}\n")
        return EXIT_USAGE
    except TailraceError as error:
        # What we raise ourselves is a sentence that says what to do; a traceback would hide it.
        logger.error("stopped", error=str(error))  # noqa: TRY400
        return EXIT_TROUBLE
    finally:
        # No garbage is looked for in what is thrown away as a whole: with the SDK that took 0.3 s of every stop.
        gc.freeze()
    if asked.check:
        sys.stdout.write(f"{role}: settings and connections are fine\n")
    return 0


def _of_the_terminal() -> dict[str, str]:
    """What a person at a terminal need not ask for; what is asked for goes before it."""
    return {environment.env_name("log_format"): "console"} if sys.stderr.isatty() else {}


async def _check(role: str, settings: S, preflight: Preflight[S], probe: Probe[S]) -> None:
    async with _connected(role, settings, preflight):
        await probe(settings)


async def _run(role: str, settings: S, preflight: Preflight[S], serve: Serve[S]) -> None:
    async with _connected(role, settings, preflight) as connection:
        if settings.metrics_port:
            prometheus_client.start_http_server(settings.metrics_port, addr="127.0.0.1")
        await _until_stopped(settings, connection, serve)


@asynccontextmanager
async def _connected(role: str, settings: S, preflight: Preflight[S]) -> AsyncIterator[Connection]:
    await preflight(settings)
    connection = await Connection.open(settings.nats_url, f"tailrace-{role}", role)
    try:
        await nats.check(connection)
        yield connection
    finally:
        await connection.close()


async def _until_stopped(settings: S, connection: Connection, serve: Serve[S]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A connection that is closed for good ends the process in order; its supervisor starts another (ADR 7).
    closing = asyncio.create_task(_set_when_closed(connection, stop))
    try:
        await serve(settings, connection, stop)
    finally:
        closing.cancel()
    if connection.closed.is_set():
        raise LogUnavailable("NATS closed the connection for good")


async def _set_when_closed(connection: Connection, stop: asyncio.Event) -> None:
    await connection.closed.wait()
    stop.set()
