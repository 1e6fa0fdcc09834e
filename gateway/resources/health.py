"""The routes for whoever runs this: alive, ready, metrics. They tell nothing of any turn, and ask for no key."""

import asyncio
from typing import Literal

import msgspec
import prometheus_client
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.dependencies import Gateway, gateway_of
from tailrace.gateway.error_responses import RETRY_AFTER_S
from tailrace.gateway.http.json_response import json_response
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tailrace.proto.version import VERSION

# Longer than any that answers takes; a prober gives up after a few seconds itself.
HEALTH_TIMEOUT_S = 1.0
AGAIN = {"retry-after": str(RETRY_AFTER_S)}


class Report(msgspec.Struct):
    ok: bool
    detail: str = ""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`active_turns` are those of all tenants that wait or run; None when NATS does not say."""

    status: Literal["healthy", "unhealthy"]
    version: str
    active_turns: int | None
    connected: dict[str, bool]


async def healthz(_: Request) -> Response:
    """`GET /healthz`: this process answers. Whether anything behind it does is /readyz's question."""
    return json_response({"ok": True})


async def readyz(request: Request) -> Response:
    """`GET /readyz`: NATS, a generator and persistence answer; says which does not."""
    parts = await _parts(gateway_of(request))
    return _told({"ok": _are_well(parts), **parts}, is_well=_are_well(parts))


async def health(request: Request) -> Response:
    """`GET /health`: the version, how many turns wait or run, of all tenants together, and what is connected."""
    gateway = gateway_of(request)
    parts, active = await asyncio.gather(_parts(gateway), _active_turns(gateway))
    is_well = _are_well(parts)
    told = Health(
        status="healthy" if is_well else "unhealthy",
        version=VERSION,
        active_turns=active,
        connected={name: parts[name].ok for name in ("nats", GENERATORS, PERSISTENCE)},
    )
    return _told(told, is_well=is_well)


async def metrics(_: Request) -> Response:
    """`GET /metrics`: for Prometheus."""
    return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)


def _told(report: object, *, is_well: bool) -> Response:
    return json_response(report) if is_well else json_response(report, status=503, headers=AGAIN)


def _are_well(parts: dict[str, Report]) -> bool:
    return all(part.ok for part in parts.values())


async def _parts(gateway: Gateway) -> dict[str, Report]:
    generators, persistence = await asyncio.gather(_report(gateway, GENERATORS), _report(gateway, PERSISTENCE))
    log = gateway.pulse.detail or gateway.fullness.detail
    return {
        "nats": Report(gateway.connection.is_up, _away(gateway.connection)),
        "log": Report(not log, log),
        GENERATORS: generators,
        PERSISTENCE: persistence,
        "gateway": Report(not gateway.draining.is_set(), "draining" if gateway.draining.is_set() else ""),
    }


def _away(connection: Connection) -> str:
    if connection.is_up:
        return ""
    return "our user is refused, or its password: see TAILRACE_NATS_URL" if connection.is_refused else "not connected"


async def _active_turns(gateway: Gateway) -> int | None:
    """Those that no generator has finished with; None when NATS does not say."""
    try:
        backlog = await consumer_backlog(gateway.connection, GENERATORS)
    except LogUnavailable:
        return None
    return backlog.waiting + backlog.leased


async def _report(gateway: Gateway, role: str) -> Report:
    reply = await gateway.services.health(role, timeout_s=HEALTH_TIMEOUT_S)
    if reply is None and not gateway.connection.is_up:
        return Report(ok=False, detail="cannot be asked: NATS is away")
    if reply is None:
        return Report(ok=False, detail=f"no {role} process answers: start one with `python -m tailrace.{role}`")
    return msgspec.json.decode(reply, type=Report)


# Who looks after this gateway asks here, and is not kept waiting.
PATHS = frozenset({"/healthz", "/health", "/readyz", "/metrics"})
ROUTES = [
    Route("/healthz", healthz, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
