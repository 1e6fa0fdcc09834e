"""The health of this process, and the wait at its start for NATS, its streams, the database or the first API key."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, Self, TypeVar

import prometheus_client
import structlog

from tailrace.proto.errors import (
    CredentialMissing,
    LogIncomplete,
    LogRefused,
    LogUnavailable,
    StoreBusy,
    StoreUnwritable,
    TailraceError,
)
from tailrace.proto.runtime import systemd
from tailrace.proto.runtime.race import is_set_within, run_until

logger = structlog.get_logger()

T = TypeVar("T")

# Far longer than a busy machine needs: a killed generator costs a model call for each of its turns.
BEAT_LATE_S = 20.0
RETRY_S = 1.0
LOG_EVERY_S = 30.0
# The cause of a wait, by the error of an attempt. All other errors end the process: no later attempt can succeed.
AWAITED: tuple[tuple[type[TailraceError], str], ...] = (
    (LogIncomplete, "the streams in NATS"),
    (LogUnavailable, "nats-server"),
    (StoreBusy, "the database"),
    (StoreUnwritable, "the database"),
    (CredentialMissing, "an API key"),
)
WAITING = prometheus_client.Gauge(
    "tailrace_waiting",
    "1 while the process waits at its start for NATS, its streams, the database or the first API key",
)


class ProcessHealth:
    """The health of this process, as the port of its metrics reports it. Set by the event loop, read by a thread."""

    def __init__(self) -> None:
        self.is_ready = False
        self.awaited = ""
        """The cause of the wait, without names of hosts: clients read it, too."""
        self.beat_at = time.monotonic()

    def liveness_fault(self) -> str:
        """Returns why a supervisor should restart this process; empty if its event loop runs."""
        return "" if time.monotonic() - self.beat_at < BEAT_LATE_S else "the event loop hangs"

    def readiness_fault(self) -> str:
        """Returns why this process does not work yet; empty from the end of its start on."""
        return "" if self.is_ready else f"waiting for {self.awaited}" if self.awaited else "starting"


HEALTH = ProcessHealth()

Meanwhile = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Answers clients until the event is set."""


async def wait_for(
    attempt: Callable[[], Coroutine[Any, Any, T]], stop: asyncio.Event, meanwhile: Meanwhile | None = None
) -> T | None:
    """Calls `attempt` until it succeeds, and returns its result; None if `stop` is set before.

    An error that may end without a change of this process' settings is logged, at most once in LOG_EVERY_S seconds, and
    tried again. Other errors are raised. `meanwhile` runs from the first such error on.
    """
    async with _Wait(meanwhile) as wait:
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                tried = await run_until(attempt(), stopping)
                if tried.cancelled():
                    continue
                try:
                    return tried.result()
                except TailraceError as error:
                    await wait.note(error)
                await is_set_within(stop, RETRY_S)
        finally:
            stopping.cancel()
    return None


class _Wait:
    """One wait: what is awaited, and the task that answers clients meanwhile."""

    def __init__(self, meanwhile: Meanwhile | None) -> None:
        self._meanwhile = meanwhile
        self._over = asyncio.Event()
        self._answering: asyncio.Task[None] | None = None
        self._logged_at = -inf

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        HEALTH.awaited = ""
        WAITING.set(0)
        self._over.set()
        if self._answering is not None:
            await self._answering

    async def note(self, error: TailraceError) -> None:
        """Makes `error` visible as the cause of the wait. Raises it if no later attempt can succeed."""
        awaited = next((what for kind, what in AWAITED if isinstance(error, kind)), "")
        if not awaited or isinstance(error, LogRefused):
            raise error
        waits, now = f"waiting for {awaited}", time.monotonic()
        if awaited != HEALTH.awaited or now - self._logged_at >= LOG_EVERY_S:
            logger.warning(waits, error=str(error))
            self._logged_at = now
        HEALTH.awaited = awaited
        WAITING.set(1)
        systemd.notify_status(f"{waits}: {error}")
        if self._meanwhile is not None and self._answering is None:
            self._answering = asyncio.create_task(self._meanwhile(self._over))
        elif self._answering is not None and self._answering.done():
            self._answering.result()  # raises, for example AddressInUse
