"""The sources of the values of `/ops`: sampled metrics endpoints of processes, or a Prometheus."""

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import httpx2
import msgspec
import prometheus_client
import structlog

from tailrace.features.ops.expressions import Expression, Group
from tailrace.features.ops.history import KEPT_S, SAMPLE_EVERY_S, WINDOW_S, History, Point
from tailrace.features.ops.panels import DASHBOARDS, Query
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime import metrics_targets

logger = structlog.get_logger()

TARGET = re.compile(r"(gateway|generators|persistence)=([^\s,/=]+:\d+)")
# A busy process answers late. Shorter than SAMPLE_EVERY_S, so that samples do not overlap.
SCRAPE_TIMEOUT_S = 2.0
SCRAPES_AT_ONCE = 8
# About a hundred times what a process exports.
BYTES_MAX = 4 * 1024 * 1024
PORT_MAX = 65535
# Stands for this process in a list of addresses.
ITSELF = "this process"
QUERIES_TIMEOUT_S = 10.0
# A Prometheus usually scrapes every 15 s.
STEP_S = 15
QUERIES_AT_ONCE = 4
QUERIES = [query for page in DASHBOARDS for panel in page.panels for query in panel.queries]
ONLY_THIS_PROCESS = (
    "Only this gateway's own metrics are shown. `tailrace up` shows those of all processes; elsewhere, set "
    "TAILRACE_OPS_TARGETS or TAILRACE_PROMETHEUS_URL."
)


class Line(msgspec.Struct, frozen=True):
    """A series of a panel: a value for each of the times, or null."""

    name: str
    """The name of the series."""
    values: list[Point]
    """A value for each time; null where there is none."""


class Snapshot(msgspec.Struct, frozen=True):
    """The series of all queries at `times`, in Unix seconds. `problems` are sentences for the operator.

    `since` is the time of the oldest sample, before which nothing is counted; None if Prometheus keeps the samples.
    """

    times: list[float]
    every_s: float
    problems: list[str]
    queries: list[list[Line]]
    since: float | None = None


class Source(Protocol):
    """A source of the values of all panels."""

    name: Literal["history", "prometheus"]

    async def watch(self) -> None:
        """Collects values until it is cancelled."""

    async def read(self) -> Snapshot:
        """Returns the values of the last KEPT_S seconds."""


class SampledProcesses:
    """Samples the metrics endpoints of processes, or the metrics of this process if there are no targets."""

    name: Literal["history", "prometheus"] = "history"

    def __init__(self, targets: Mapping[str, str], file: str = "") -> None:
        """If `file` is named, it has the targets in place of `targets`, and may change."""
        self._targets = targets
        self._file = Path(file) if file else None
        self._history = History([query.expression for query in QUERIES])
        self._unanswered: list[str] = []
        self._silent_before: set[str] = set()
        # Not the threads of the event loop: while a machine is down, requests would wait for them.
        self._threads = ThreadPoolExecutor(SCRAPES_AT_ONCE, "scrape")

    async def watch(self) -> None:
        """Samples every SAMPLE_EVERY_S seconds."""
        while True:
            began_at = time.monotonic()
            await self._sample()
            await asyncio.sleep(max(0.0, began_at + SAMPLE_EVERY_S - time.monotonic()))

    async def read(self) -> Snapshot:
        problems = [f"{one} does not answer: see `tailrace status`." for one in self._unanswered]
        if not self._targets and self._file is None:
            problems.append(ONLY_THIS_PROCESS)
        found = [named_lines(query, self._history.values(number)) for number, query in enumerate(QUERIES)]
        return Snapshot(self._history.times, SAMPLE_EVERY_S, problems, found, self._history.since)

    async def _sample(self) -> None:
        if self._file is not None:
            # If the file cannot be read, the targets of the last sample stay.
            with suppress(OSError, *DECODE_ERRORS):
                self._targets = metrics_targets.read(self._file)
        targets = self._targets or {ITSELF: "gateway"}
        # In threads: a scrape on the event loop would delay deltas by some milliseconds.
        loop = asyncio.get_running_loop()
        texts = await asyncio.gather(*(loop.run_in_executor(self._threads, _scrape, address) for address in targets))
        scraped = dict(zip(targets.items(), texts, strict=True))
        silent = {address: part for (address, part), text in scraped.items() if text is None}
        # A process that starts, or restarts, has one more interval to answer.
        self._unanswered = [f"{part} {one}" for one, part in silent.items() if one in self._silent_before]
        self._silent_before = set(silent)
        self._history.add(
            time.time(),
            {
                address: ({"job": "tailrace", "part": part, "instance": address}, text)
                for (address, part), text in scraped.items()
                if text is not None
            },
        )


class Prometheus:
    """Sends the queries of the panels to a Prometheus, and keeps the answers for STEP_S seconds."""

    name: Literal["history", "prometheus"] = "prometheus"

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/api/v1/query_range"
        # Reading the system's certificates takes longer than a request.
        self._tls = httpx2.create_ssl_context()
        self._lock = asyncio.Lock()
        self._snapshot = Snapshot([], STEP_S, [], [[] for _ in QUERIES])

    async def watch(self) -> None:
        """Does nothing: Prometheus collects."""

    async def read(self) -> Snapshot:
        async with self._lock:
            end = math.floor(time.time() / STEP_S) * STEP_S
            if not self._snapshot.times or self._snapshot.times[-1] != end:
                self._snapshot = await self._query_all(end)
        return self._snapshot

    async def _query_all(self, end: int) -> Snapshot:
        times = [float(at) for at in range(end - KEPT_S, end + 1, STEP_S)]
        slots = asyncio.Semaphore(QUERIES_AT_ONCE)

        async def ask(client: httpx2.AsyncClient, query: Query) -> list[Line]:
            async with slots:
                return named_lines(query, await self._values(client, query.expression, times))

        tasks: list[asyncio.Task[list[Line]]] = []
        problems: list[str] = []
        try:
            async with (
                asyncio.timeout(QUERIES_TIMEOUT_S),
                httpx2.AsyncClient(verify=self._tls, timeout=None) as client,
                asyncio.TaskGroup() as group,
            ):
                tasks += [group.create_task(ask(client, query)) for query in QUERIES]
        except* (OSError, httpx2.HTTPError, httpx2.InvalidURL, ImportError, *DECODE_ERRORS) as errors:
            # ImportError: the environment names a SOCKS proxy, for which httpx2 needs a further package.
            # The text of the error may contain the URL, and so a password.
            problems = [f"The Prometheus at TAILRACE_PROMETHEUS_URL gives no values: {_describe_first(errors)}."]
            logger.warning("prometheus gives no values", error=_describe_first(errors))
        return Snapshot(times, STEP_S, problems, [[] for _ in QUERIES] if problems else [one.result() for one in tasks])

    async def _values(
        self, client: httpx2.AsyncClient, query: Expression, times: Sequence[float]
    ) -> dict[Group, list[Point]]:
        """Returns the values of a query by group. Raises httpx2.HTTPError and DECODE_ERRORS."""
        params: dict[str, str | float] = {
            "query": query.promql(f"{WINDOW_S}s"),
            "start": times[0],
            "end": times[-1],
            "step": STEP_S,
        }
        response = await client.get(self._url, params=params)
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


def _describe_first(errors: BaseExceptionGroup[Exception]) -> str:
    """Returns the status if the first error is an HTTP status, otherwise the name of its class."""
    error = errors.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"status {error.response.status_code}" if isinstance(error, httpx2.HTTPStatusError) else type(error).__name__


def new_source(targets: str, file: str, prometheus_url: str) -> Source:
    """Returns the source that the settings select. Raises SettingsInvalid."""
    found = parse_targets(targets)
    if not prometheus_url:
        return SampledProcesses(found, file if not found else "")
    parts = urlsplit(prometheus_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsInvalid(
            f"TAILRACE_PROMETHEUS_URL: {prometheus_url!r} is not an http or https URL such as http://prometheus:9090"
        )
    return Prometheus(prometheus_url)


def parse_targets(text: str) -> dict[str, str]:
    """Parses TAILRACE_OPS_TARGETS; returns the part (such as `gateway`) by address. Raises SettingsInvalid."""
    targets: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        match = TARGET.fullmatch(pair)
        if match is None or int(match[2].rpartition(":")[2]) > PORT_MAX:
            raise SettingsInvalid(
                f"TAILRACE_OPS_TARGETS: {pair!r} is not PART=HOST:PORT; PART is gateway, generators or persistence"
            )
        targets[match[2]] = match[1]
    return targets


def named_lines(query: Query, values: Mapping[Group, list[Point]]) -> list[Line]:
    """Returns a line for each group of a query, in the order of the groups."""
    return [Line(legend(query, group), fill_gaps(points, query.ended_as)) for group, points in sorted(values.items())]


def fill_gaps(points: list[Point], value: Point) -> list[Point]:
    """Returns `points` with `value` for each null after the first number."""
    first = next((index for index, point in enumerate(points) if point is not None), len(points))
    return points[:first] + [value if point is None else point for point in points[first:]]


def legend(query: Query, group: Group) -> str:
    """Returns the legend of a group: the legend of its query, with the values of the labels."""
    text = query.legend
    for label, value in zip(query.expression.by, group, strict=True):
        text = text.replace(f"{{{{{label}}}}}", value)
    return text.strip()


def _scrape(address: str) -> str | None:
    """Returns the metrics of a process, which may be this one; None if it does not answer."""
    if address == ITSELF:
        return prometheus_client.generate_latest().decode()
    # Not httpx2, where a new connection costs 2 ms of CPU, four times as much.
    with closing(HTTPConnection(address, timeout=SCRAPE_TIMEOUT_S)) as connection:
        try:
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            return response.read(BYTES_MAX).decode() if response.status == HTTPStatus.OK else None
        except (OSError, HTTPException, ValueError):
            return None
