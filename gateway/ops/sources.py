"""Where `/ops` has its values from: the metrics endpoints of processes, sampled into a history, or a Prometheus."""

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Literal, Protocol
from urllib.parse import urlsplit

import httpx2
import msgspec
import prometheus_client
import structlog

from tailrace.gateway.ops.expressions import Expression, Group
from tailrace.gateway.ops.history import EVERY_S, KEPT_S, WINDOW_S, History, Point
from tailrace.gateway.ops.panels import DASHBOARDS, Query
from tailrace.proto.errors import SettingsInvalid

logger = structlog.get_logger()

TARGET = re.compile(r"(gateway|generators|persistence)=([^\s,/=]+:\d+)")
# A process that is busy answers late; the next sample is due after EVERY_S.
SCRAPE_TIMEOUT_S = 2.0
# A hundred times the metrics of a process.
BYTES_MAX = 4 * 1024 * 1024
PORT_MAX = 65535
# In place of an address.
ITSELF = "this process"
QUERIES_TIMEOUT_S = 10.0
# Prometheus usually scrapes as often.
STEP_S = 15
QUERIES_AT_ONCE = 4
QUERIES = [query for page in DASHBOARDS for panel in page.panels for query in panel.queries]
ALONE = (
    "Only this gateway's own metrics are shown. `tailrace up` shows those of all processes; elsewhere, set "
    "TAILRACE_OPS_TARGETS or TAILRACE_PROMETHEUS_URL."
)


class Line(msgspec.Struct, frozen=True):
    """A series of a panel: a value for each time, or null."""

    name: str
    values: list[Point]


class Lines(msgspec.Struct, frozen=True):
    """The series of all queries. `problems` are sentences for the operator."""

    times: list[float]
    every_s: float
    problems: list[str]
    queries: list[list[Line]]


class Source(Protocol):
    """Where the values come from."""

    name: Literal["history", "prometheus"]

    async def watch(self) -> None:
        """Collects values until it is cancelled."""

    async def read(self) -> Lines:
        """Returns the values of the last KEPT_S seconds."""


class Processes:
    """Samples the metrics endpoints of processes; without any, the metrics of this process."""

    name: Literal["history", "prometheus"] = "history"

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._targets = targets
        self._history = History([query.expression for query in QUERIES])
        self._silent: list[str] = []

    async def watch(self) -> None:
        """Samples every EVERY_S seconds."""
        while True:
            began_at = time.monotonic()
            await self._sample()
            await asyncio.sleep(max(0.0, began_at + EVERY_S - time.monotonic()))

    async def read(self) -> Lines:
        problems = [f"{one} does not answer: see `tailrace status`." for one in self._silent]
        if not self._targets:
            problems.append(ALONE)
        found = [lines(query, self._history.values(number)) for number, query in enumerate(QUERIES)]
        return Lines(self._history.times, EVERY_S, problems, found)

    async def _sample(self) -> None:
        targets = self._targets or {ITSELF: "gateway"}
        # In threads: otherwise, no delta would be written during some milliseconds.
        texts = await asyncio.gather(*(asyncio.to_thread(_scrape, address) for address in targets))
        scraped = dict(zip(targets.items(), texts, strict=True))
        self._silent = [f"{part} {address}" for (address, part), text in scraped.items() if text is None]
        self._history.add(
            time.time(),
            {
                address: ({"job": "tailrace", "part": part, "instance": address}, text)
                for (address, part), text in scraped.items()
                if text is not None
            },
        )


class Prometheus:
    """Asks a Prometheus for the panels' own queries, and keeps the answers for a step."""

    name: Literal["history", "prometheus"] = "prometheus"

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/api/v1/query_range"
        # Reading the system's certificates takes longer than a request.
        self._tls = httpx2.create_ssl_context()
        self._asking = asyncio.Lock()
        self._lines = Lines([], STEP_S, [], [[] for _ in QUERIES])

    async def watch(self) -> None:
        """Does nothing: Prometheus collects."""

    async def read(self) -> Lines:
        async with self._asking:
            end = math.floor(time.time() / STEP_S) * STEP_S
            if not self._lines.times or self._lines.times[-1] != end:
                self._lines = await self._ask(end)
        return self._lines

    async def _ask(self, end: int) -> Lines:
        times = [float(at) for at in range(end - KEPT_S, end + 1, STEP_S)]
        free = asyncio.Semaphore(QUERIES_AT_ONCE)

        async def ask(client: httpx2.AsyncClient, query: Query) -> list[Line]:
            async with free:
                return lines(query, await self._values(client, query.expression, times))

        asking: list[asyncio.Task[list[Line]]] = []
        problems: list[str] = []
        try:
            async with (
                asyncio.timeout(QUERIES_TIMEOUT_S),
                httpx2.AsyncClient(verify=self._tls, timeout=None) as client,
                asyncio.TaskGroup() as group,
            ):
                asking += [group.create_task(ask(client, query)) for query in QUERIES]
        except* (TimeoutError, OSError, httpx2.HTTPError, httpx2.InvalidURL, msgspec.DecodeError) as errors:
            # Not its text: that may have the URL, with a password.
            problems = [f"The Prometheus at TAILRACE_PROMETHEUS_URL gives no values: {_first(errors)}."]
            logger.warning("prometheus gives no values", error=_first(errors))
        return Lines(times, STEP_S, problems, [[] for _ in QUERIES] if problems else [one.result() for one in asking])

    async def _values(
        self, client: httpx2.AsyncClient, query: Expression, times: Sequence[float]
    ) -> dict[Group, list[Point]]:
        """Raises httpx2.HTTPError, or msgspec.DecodeError."""
        asked: dict[str, str | float] = {
            "query": query.promql(f"{WINDOW_S}s"),
            "start": times[0],
            "end": times[-1],
            "step": STEP_S,
        }
        response = await client.get(self._url, params=asked)
        response.raise_for_status()
        found: dict[Group, list[Point]] = {}
        for series in msgspec.json.decode(response.content, type=_Answer).data.result:
            values = {at: value for at, text in series.values if math.isfinite(value := float(text))}
            if values:
                group = tuple(series.metric.get(label, "") for label in query.by)
                found[group] = [values.get(at) for at in times]
        return found


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Data(msgspec.Struct):
    result: list[_Series]


class _Answer(msgspec.Struct):
    data: _Data


def _first(errors: BaseExceptionGroup[Exception]) -> str:
    """Returns the status of the first answer that is an error, else the first error's name."""
    error = errors.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"status {error.response.status_code}" if isinstance(error, httpx2.HTTPStatusError) else type(error).__name__


def open_source(targets: str, prometheus_url: str) -> Source:
    """Returns the source that the settings name. Raises SettingsInvalid."""
    found = parse_targets(targets)
    if not prometheus_url:
        return Processes(found)
    parts = urlsplit(prometheus_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsInvalid(
            f"TAILRACE_PROMETHEUS_URL: {prometheus_url!r} is not a URL: it looks like http://prometheus:9090"
        )
    return Prometheus(prometheus_url)


def parse_targets(text: str) -> dict[str, str]:
    """Parses TAILRACE_OPS_TARGETS: returns the part of each address. Raises SettingsInvalid."""
    targets: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        match = TARGET.fullmatch(pair)
        if match is None or int(match[2].rpartition(":")[2]) > PORT_MAX:
            raise SettingsInvalid(
                f"TAILRACE_OPS_TARGETS: {pair!r} is not PART=HOST:PORT, PART one of gateway, generators, persistence"
            )
        targets[match[2]] = match[1]
    return targets


def lines(query: Query, values: Mapping[Group, list[Point]]) -> list[Line]:
    """Returns the series of a query, by name."""
    return [Line(name(query, group), points) for group, points in sorted(values.items())]


def name(query: Query, group: Group) -> str:
    text = query.legend
    for label, value in zip(query.expression.by, group, strict=True):
        text = text.replace(f"{{{{{label}}}}}", value)
    return text.strip()


def _scrape(address: str) -> str | None:
    """Returns the metrics of a process, which may be this one; None if it does not answer."""
    if address == ITSELF:
        return prometheus_client.generate_latest().decode()
    # Not httpx2: a new connection costs it 2 ms of CPU, four times as much.
    with closing(HTTPConnection(address, timeout=SCRAPE_TIMEOUT_S)) as connection:
        try:
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            return response.read(BYTES_MAX).decode() if response.status == HTTPStatus.OK else None
        except (OSError, HTTPException, ValueError):
            return None
