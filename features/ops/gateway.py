"""The page `/ops` and its values. The page is static and public; its values need the scope `operate`."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta
from starlette.responses import Response

from tailrace.features.common.page_file import NO_STORE, html_page, page_file
from tailrace.features.ops.history import WINDOW_S
from tailrace.features.ops.panels import DASHBOARDS, Panel
from tailrace.features.ops.sources import Line, Snapshot, new_source
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.route import OPERATION, Route
from tailrace.gateway.services import Gateway
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.version import VERSION

PAGE, SCRIPT, STYLE, VALUES = "/ops", "/ops/page.js", "/ops/page.css", "/ops/values"
# Requests to these paths never wait for admission. The last two files belong to the page `/`, too.
URGENT_PATHS = frozenset({PAGE, SCRIPT, STYLE, VALUES, "/page/base.css", "/page/dom.js"})
PACKAGE = "tailrace.features.ops"


class Chart(msgspec.Struct, frozen=True):
    """A panel. Values from `warning` or `critical` on cross the threshold; if `is_minimum`, values below do.

    `section` is an anchor in the runbook.
    """

    title: str
    """The title of the panel."""
    unit: str
    """The unit of the values."""
    description: str
    """The content of the panel."""
    warning: float
    """The value at which the panel warns."""
    critical: float
    """The value at which the panel shows a failure."""
    is_minimum: bool
    """Whether values below the thresholds are bad."""
    section: str
    """The section of the runbook about this panel."""
    lines: list[Line]
    """The series of the panel."""
    counted_since: float | None = None
    """When the gateway took its first sample, in Unix seconds, if the panel's window begins earlier; else null."""


class ChartGroup(msgspec.Struct, frozen=True):
    """The charts of a dashboard."""

    title: str
    """The title of the dashboard."""
    description: str
    """The content of the dashboard."""
    charts: list[Chart]
    """The panels of the dashboard."""


class Overview(msgspec.Struct, frozen=True):
    """The values of all panels at `times`, in Unix seconds.

    Rates are over `window_s`. `problems` are sentences for the operator. `runbook` is the runbook's URL, or empty.
    """

    version: str
    """The version of the gateway."""
    source: Literal["history", "prometheus"]
    """Whether the values come from the gateway's own samples or from Prometheus."""
    times: list[float]
    """The times of the values, in Unix seconds."""
    every_s: float
    """Seconds between two values."""
    window_s: float
    """Seconds over which a rate is computed."""
    problems: list[str]
    """Processes whose metrics could not be read, and why."""
    runbook: str
    """The address of the runbook."""
    groups: list[ChartGroup]
    """The dashboards."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of `/ops`."""

    ops_targets: Annotated[
        str,
        Meta(
            description="PART=HOST:PORT pairs, separated by commas: processes whose metrics `/ops` shows, PART one of"
            " gateway, generators, persistence; empty: those of TAILRACE_METRICS_TARGETS, or only this gateway's"
        ),
    ] = ""
    prometheus_url: Annotated[
        str, Meta(description="URL of a Prometheus from which `/ops` takes its values instead of TAILRACE_OPS_TARGETS")
    ] = ""
    runbook_url: Annotated[
        str, Meta(description="URL of your copy of docs/RUNBOOK.md, to whose sections the panels of `/ops` link")
    ] = ""


class Ops:
    """Collects the values of the panels, and encodes them for the page."""

    def __init__(self, settings: Settings, metrics_targets: str) -> None:
        """`metrics_targets` is the file of TAILRACE_METRICS_TARGETS. Raises SettingsInvalid."""
        self._source = new_source(settings.ops_targets, metrics_targets, settings.prometheus_url)
        self._runbook = settings.runbook_url
        if self._runbook and urlsplit(self._runbook).scheme not in ("http", "https"):
            raise SettingsInvalid(
                f"TAILRACE_RUNBOOK_URL: {self._runbook!r} is not an http or https URL such as https://wiki.example/RUNBOOK.md"
            )
        self._encoded: tuple[float, bytes] = 0.0, b""

    async def watch(self) -> None:
        """Collects values until it is cancelled."""
        await self._source.watch()

    async def values(self) -> bytes:
        """Returns an Overview as JSON. The JSON is encoded once for all open pages."""
        collected = await self._source.read()
        newest = collected.times[-1] if collected.times else 0.0
        if newest != self._encoded[0] or not newest:
            rows = iter(collected.queries)
            groups = [
                ChartGroup(
                    page.title,
                    page.description,
                    [
                        Chart(
                            panel.title,
                            panel.unit,
                            panel.description,
                            *panel.threshold,
                            panel.section,
                            [line for _ in panel.queries for line in next(rows)],
                            counted_since(panel, collected),
                        )
                        for panel in page.panels
                    ],
                )
                for page in DASHBOARDS
            ]
            overview = Overview(
                VERSION,
                self._source.name,
                collected.times,
                collected.every_s,
                WINDOW_S,
                collected.problems,
                self._runbook,
                groups,
            )
            self._encoded = newest, msgspec.json.encode(overview)
        return self._encoded[1]


def counted_since(panel: Panel, collected: Snapshot) -> float | None:
    """Returns the time of the oldest sample if the window of the panel begins earlier, else None."""
    since = collected.since
    return None if since is None or since <= collected.times[-1] - panel.window_s else since


async def page(_: ApiRequest) -> Response:
    """`GET /ops`: a page for operators that shows the panels. Its script loads the values, and asks for a key.

    The page works without external resources.
    """
    return html_page(PACKAGE, "page.html", PAGE)


async def script(_: ApiRequest) -> Response:
    """`GET /ops/page.js`: the page's script."""
    return page_file(PACKAGE, "page.js")


async def style(_: ApiRequest) -> Response:
    """`GET /ops/page.css`: the page's style sheet."""
    return page_file(PACKAGE, "page.css")


async def values(_: ApiRequest, ops: Ops) -> Response:
    """`GET /ops/values`: the values of all panels in the last 15 minutes, over all tenants.

    From the gateway's own samples, or from Prometheus if `TAILRACE_PROMETHEUS_URL` is set.
    """
    return Response(await ops.values(), headers=NO_STORE, media_type="application/json")


ROUTES = [
    Route("GET", PAGE, page, "public", OPERATION, streams="text/html"),
    Route("GET", SCRIPT, script, "public", OPERATION, streams="text/javascript"),
    Route("GET", STYLE, style, "public", OPERATION, streams="text/css"),
    Route("GET", VALUES, values, "operate", OPERATION, result=Overview),
]


async def check(settings: Settings) -> None:
    """Raises SettingsInvalid."""
    Ops(settings, "")


def start(gateway: Gateway, settings: Settings) -> Parts:
    """Makes the service of the values, which collects them in the background."""
    ops = Ops(settings, gateway.settings.metrics_targets)
    return Parts(services=(ops,), background=(ops.watch,))


FEATURE = Feature(Settings, start, check=check, routes=ROUTES, urgent_paths=URGENT_PATHS)
