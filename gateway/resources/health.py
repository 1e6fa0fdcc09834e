"""Routes for operators: liveness, readiness, health and Prometheus metrics. They need no key and show no turn."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Final, Literal

import msgspec
import prometheus_client
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.error_responses import RETRY_AFTER_S
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import OPERATION, Route
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.log.health import LogHealth
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tailrace.proto.version import VERSION

# Longer than a healthy process takes to answer, shorter than the time-out of a prober.
HEALTH_TIMEOUT_S = 1.0
# Whether new answers fail must not depend on which generator answers first. The others answer some milliseconds later.
OTHERS_WAIT_S = 0.1
METRICS = "/metrics"
DEGRADED: Final = "degraded"
RETRY_AFTER = {"retry-after": str(RETRY_AFTER_S)}


class Report(msgspec.Struct):
    """The health of a part: whether it works, and what is wrong if it does not."""

    ok: bool
    detail: str = ""
    state: str | msgspec.UnsetType = msgspec.UNSET
    """`degraded` if the part works and turns fail, for example while the model refuses the key (R29)."""
    claude_version: str | msgspec.UnsetType = msgspec.UNSET
    """The version of Claude Code, from a generator that runs it."""
    damaged_turns: int | msgspec.UnsetType = msgspec.UNSET
    """How many turns the log has lost entries of, if any, from persistence."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`active_turns`: waiting and running turns of all tenants; null when NATS does not answer.

    The last three fields are those of other servers for Claude: `active_sessions` repeats `active_turns`, and
    `claude_version` is the version of Claude Code, null if no generator that answered runs it.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    """Whether everything that a turn needs answers. `degraded`: yes, but new answers fail, see `/readyz`."""
    detail: str
    """The faults, by part; empty while the status is `healthy`."""
    version: str
    """The version of the gateway."""
    active_turns: int | None
    """Waiting and running turns of all tenants; null when NATS does not answer."""
    connected: dict[str, bool]
    """Whether each part answers, by its name."""
    timestamp: datetime
    """When the gateway made this report."""
    active_sessions: int | None
    """The same as `active_turns`."""
    claude_version: str | None
    """The version of Claude Code, if a generator runs it."""


class HealthChecks:
    """Checks of the parts that this gateway needs."""

    def __init__(
        self,
        connection: Connection,
        rpc: Rpc,
        log_health: LogHealth,
        log_fullness: LogFullness,
        draining: Flag,
    ) -> None:
        self._connection = connection
        self._rpc = rpc
        self._log_health = log_health
        self._log_fullness = log_fullness
        self._draining = draining

    async def parts(self) -> dict[str, Report]:
        """Returns a report of each part by its name."""
        answers, generators, persistence = await asyncio.gather(
            self._nats_answers(), self._generators(), self._persistence()
        )
        nats = _connection_detail(self._connection) or ("" if answers else "nats-server does not answer")
        # The cause before its symptom: a full disk is why nothing is stored.
        log = "; ".join(filter(None, (self._log_fullness.detail, self._log_health.detail)))
        return {
            "nats": Report(not nats, nats),
            "log": Report(not log, log),
            GENERATORS: generators or _no_report(GENERATORS, is_reachable=answers),
            PERSISTENCE: persistence or _no_report(PERSISTENCE, is_reachable=answers),
            "gateway": Report(not self._draining.is_set(), "draining" if self._draining.is_set() else ""),
        }

    async def active_turns(self) -> int | None:
        """Returns the number of turns that no generator has finished; None when NATS does not answer."""
        try:
            backlog = await consumer_backlog(self._connection, GENERATORS)
        except LogUnavailable:
            return None
        return backlog.waiting + backlog.leased

    async def _nats_answers(self) -> bool:
        """Returns whether nats-server answers now. A client of a server that is cut off notices it 20 s later."""
        with suppress(LogUnavailable, TimeoutError):
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self._connection.flush()
                # While it is disconnected, nats-py's flush returns.
                return self._connection.is_up
        return False

    async def _generators(self) -> Report | None:
        """Returns the first report of a generator; if that one is ready, the report of one whose turns fail."""
        replies: list[bytes] = []
        with suppress(LogUnavailable):
            replies = await self._rpc.every_health(GENERATORS, wait_s=OTHERS_WAIT_S, first_s=HEALTH_TIMEOUT_S)
        reports = [_read_report(reply) for reply in replies]
        first = reports[0] if reports else None
        return next((one for one in reports if first and first.ok and one.state == DEGRADED), first)

    async def _persistence(self) -> Report | None:
        """Returns the report of the process that answers first."""
        reply = await self._rpc.health(PERSISTENCE, timeout_s=HEALTH_TIMEOUT_S)
        return None if reply is None else _read_report(reply)


def _read_report(reply: bytes) -> Report:
    try:
        return msgspec.json.decode(reply, type=Report)
    except DECODE_ERRORS as error:
        return Report(ok=False, detail=f"a report cannot be read: {error}")


def _no_report(role: str, *, is_reachable: bool) -> Report:
    if not is_reachable:
        return Report(ok=False, detail="NATS is unreachable")
    advice = f"wait if `tailrace up` runs, which restarts it; else start `python -m tailrace.{role}`"
    return Report(ok=False, detail=f"no {role} process answers: {advice}")


async def healthz(_: ApiRequest) -> Response:
    """`GET /healthz`: liveness: this process answers.

    For a supervisor, which restarts a process that does not answer.
    """
    return json_response({"ok": True})


async def readyz(_: ApiRequest, checks: HealthChecks) -> Response:
    """`GET /readyz`: readiness: NATS, a generator and persistence answer; otherwise 503 with the part that does not.

    For a load balancer, which sends requests only to a gateway that is ready. `"state": "degraded"`, with 200: readers
    are served, and new answers fail, for example while the model refuses the key; the `detail` of the part says why.
    """
    parts = await checks.parts()
    state = {"state": DEGRADED} if _are_degraded(parts) else {}
    return _response({"ok": _are_ok(parts), **state, **parts}, is_ok=_are_ok(parts))


async def health(_: ApiRequest, checks: HealthChecks) -> Response:
    """`GET /health`: the version, the number of waiting and running turns of all tenants, and what is connected.

    In the format of other servers for Claude, for a page or a monitor.
    """
    parts, active = await asyncio.gather(checks.parts(), checks.active_turns())
    is_ok = _are_ok(parts)
    report = Health(
        status="unhealthy" if not is_ok else DEGRADED if _are_degraded(parts) else "healthy",
        detail="; ".join(f"{name}: {one.detail}" for name, one in parts.items() if not one.ok or one.state == DEGRADED),
        timestamp=datetime.now(UTC),
        version=VERSION,
        active_turns=active,
        active_sessions=active,
        connected={name: parts[name].ok for name in ("nats", GENERATORS, PERSISTENCE)},
        claude_version=parts[GENERATORS].claude_version or None,
    )
    return _response(report, is_ok=is_ok)


async def metrics(request: ApiRequest) -> Response:
    """`GET /metrics`: for Prometheus. A client that accepts the OpenMetrics format gets exemplars of histograms.

    A line `# HELP` describes each metric.
    """
    # Proxies hide this path (docs/PROXIES.md). Some, such as HAProxy, compare it as it was sent.
    if request.scope["raw_path"] != METRICS.encode():
        raise HTTPException(HTTPStatus.NOT_FOUND)
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    if not media_type.endswith(("=dots", "=values")):
        # All names are valid, so the other escapings change none. With this one, OpenMetrics' encoder does not look at
        # each character, which took a third of its time.
        encode = partial(encode, escaping=ALLOWUTF8)  # type: ignore[call-arg]
    # In a thread: the text of 300 routes and statuses takes 30 ms.
    text = await asyncio.to_thread(encode, prometheus_client.REGISTRY)
    return Response(text, headers={"content-type": media_type})


def _response(report: object, *, is_ok: bool) -> Response:
    return json_response(report) if is_ok else json_response(report, status=503, headers=RETRY_AFTER)


def _are_degraded(parts: dict[str, Report]) -> bool:
    return any(part.state == DEGRADED for part in parts.values())


def _are_ok(parts: dict[str, Report]) -> bool:
    return all(part.ok for part in parts.values())


def _connection_detail(connection: Connection) -> str:
    if connection.is_up:
        lost = " and ".join(connection.missing)
        return f"NATS lacks {lost}: run `tailrace streams`" if lost else ""
    if connection.is_tls_failing:
        return "TLS to NATS fails: a certificate has ended, or is refused; the log of this process says which"
    return "NATS refuses the user or password; check TAILRACE_NATS_URL" if connection.is_refused else "not connected"


# Admission control lets these paths through at once.
PATHS = frozenset({"/healthz", "/health", "/readyz", METRICS})
ROUTES = [
    Route("GET", "/healthz", healthz, "public", OPERATION, result={"ok": True}),
    Route("GET", "/health", health, "public", OPERATION, result=Health),
    Route("GET", "/readyz", readyz, "public", OPERATION, result={"ok": True, "nats": {"ok": True}}),
    Route("GET", METRICS, metrics, "public", OPERATION, streams="text/plain"),
]
