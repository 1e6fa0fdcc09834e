"""Routes of usage: tokens and cost by day, model, key, user, session, project or metadata; and statistics."""

from datetime import UTC, date, datetime, timedelta

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.common.day_parameter import day_of
from tailrace.features.usage.records import (
    BY_TENANT,
    USAGE_BY,
    GetStats,
    GetUsage,
    GetUsageOfAll,
    ListTenantUsage,
    UsagePage,
    UsageRecord,
)
from tailrace.gateway.auth.api_request import ApiRequest, parse_tenant
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import FROM, PAGE, TO
from tailrace.gateway.http.route import ADMIN, PROJECTS, SESSIONS, Route, query
from tailrace.gateway.resources.paging import Page, page_of
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.records import Totals
from tailrace.proto.runtime.settings import NoSettings

DAYS = 30
DAYS_MAX = 366


class UsageList(Page[UsageRecord], frozen=True, kw_only=True):
    """Usage, in the order of the groups' keys."""

    by: str
    """The unit that the usage is summed by."""
    first: date = msgspec.field(name="from")
    """The first day (UTC)."""
    last: date = msgspec.field(name="to")
    """The last day (UTC)."""
    whole_since: datetime | None
    """Usage and cost are whole for turns that were accepted after this time; null: for all turns. An older version has
    counted earlier turns: without tokens beyond the top level of a usage object, and without server tools."""
    total: Totals | None
    """The sum over all turns of these days, whatever `by` is, when this page was read; null: not known."""


class ActiveSessions(msgspec.Struct, frozen=True, kw_only=True):
    """The number of active sessions and recent usage, with the field names of other servers for Claude.

    The usage is the sum over all turns since the start of the UTC day that was `TAILRACE_SESSION_IDLE_S` seconds ago.
    """

    active_sessions: int
    """The number of sessions used in the last `TAILRACE_SESSION_IDLE_S` seconds."""
    turns: int
    """The number of the turns."""
    total_tokens: int
    """Their tokens."""
    total_cost: float
    """Their cost in dollars."""
    total_messages: int
    """Their messages."""
    models_in_use: list[str]
    """Their models."""


class SessionStats(msgspec.Struct, frozen=True, kw_only=True):
    """`claude_sessions`: the sessions with a running turn, at most 1,000."""

    session_stats: ActiveSessions
    """The number of active sessions, and recent usage."""
    active_claude_sessions: int
    """The number of sessions with a running turn."""
    claude_sessions: list[SessionId]
    """The ids of those sessions, at most 1,000."""
    by_model: list[UsageRecord]
    """The usage of each model."""


async def usage(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/usage?by=day|model|key|user|session|project|metadata.NAME&from=&to=`: usage of those days (UTC).

    Only turns that have ended are counted. A deleted turn keeps its share of the sums. The records sum to the same
    `total` for each `by`: the record with the key null has the turns without a value, also after an erasure.
    """
    return await usage_response(request, history, request.access)


async def tenant_usage(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/admin/tenants/{tenant}/usage`: what `/v1/usage` shows, for any tenant.

    The totals have the names of users, sessions and projects if `by` asks for them, but no text.
    """
    return await usage_response(request, history, Scope(parse_tenant(request.path_params["tenant"]), WHOLE))


async def usage_of_tenants(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/admin/usage`: the usage of all tenants, by tenant, or together by day or model.

    Tenants without usage on these days are left out. Names of users, teams and projects mean something in their tenant
    only: by these, each tenant has its own usage.
    """
    after, limit = page_of(request)
    first, last = days_of(request, datetime.now(UTC).date())
    match by := request.query_params.get("by", BY_TENANT):
        case "tenant":
            found = await history.query(request.access, ListTenantUsage(first, last, after, limit))
        case "day" | "model":
            found = await history.query(request.access, GetUsageOfAll(by, first, last, after, limit))
        case _:
            raise Refused("request_invalid", f"`by` must be one of {', '.join(BY_OF_ALL)}", param="by")
    return _render(found, by, first, last)


async def stats(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/sessions/stats`: the number of active sessions, and recent usage.

    A session is active if it was used in the last `TAILRACE_SESSION_IDLE_S` seconds. The usage is the sum over all
    turns since the start of the UTC day on which that time began. `claude_sessions` are the sessions with a running
    turn.
    """
    scope = request.access
    found = await history.query(scope, GetStats())
    active = ActiveSessions(
        active_sessions=found.active_sessions,
        turns=sum(model.turns for model in found.by_model),
        total_tokens=sum(model.total_tokens for model in found.by_model),
        total_cost=sum(model.total_cost for model in found.by_model),
        total_messages=sum(model.message_count for model in found.by_model),
        models_in_use=[str(model.key) for model in found.by_model],
    )
    return json_response(
        SessionStats(
            session_stats=active,
            active_claude_sessions=len(found.running),
            claude_sessions=found.running,
            by_model=found.by_model,
        )
    )


async def usage_response(request: Request, history: HistoryClient, scope: Scope) -> Response:
    """Returns the usage of a tenant for the query of `request`. Raises Refused."""
    after, limit = page_of(request)
    first, last = days_of(request, datetime.now(UTC).date())
    query = GetUsage(_parse_by(request), first, last, after, limit, request.query_params.get("key"))
    return _render(await history.query(scope, query), query.by, first, last)


def _render(found: UsagePage, by: str, first: date, last: date) -> Response:
    return json_response(
        UsageList(
            data=found.usage,
            next=found.next,
            by=by,
            first=first,
            last=last,
            whole_since=found.whole_since,
            total=found.total,
        )
    )


def days_of(request: Request, today: date) -> tuple[date, date]:
    """Returns the first and last day of the query; by default the DAYS days up to today. Raises Refused."""
    last = day_of(request, "to") or today
    first = day_of(request, "from") or last - timedelta(days=DAYS - 1)
    if not timedelta() <= last - first < timedelta(days=DAYS_MAX):
        raise Refused("request_invalid", f"`from` must not be after `to`, nor more than {DAYS_MAX} days before it.")
    return first, last


def _parse_by(request: Request) -> str:
    grouping = request.query_params.get("by", "day")
    if grouping in USAGE_BY or (grouping.startswith("metadata.") and grouping != "metadata."):
        return grouping
    raise Refused("request_invalid", f"`by` must be one of {', '.join(USAGE_BY)}, or `metadata.NAME`")


BY_OF_ALL = (BY_TENANT, "day", "model")
OF_ALL = query("by", "The unit to sum by; `tenant` by default.", enum=[*BY_OF_ALL])
BY = query("by", "The unit to sum by.", type="string", pattern=f"^({'|'.join(USAGE_BY)}|metadata\\..+)$")
OF_USAGE = (BY, query("key", "Only the usage of this day, model, user…"), FROM, TO)

ROUTES = [
    Route("GET", "/v1/usage", usage, "read", PROJECTS, result=UsageList, parameters=(*OF_USAGE, *PAGE)),
    Route(
        "GET",
        "/v1/admin/usage",
        usage_of_tenants,
        "admin",
        ADMIN,
        result=UsageList,
        parameters=(OF_ALL, FROM, TO, *PAGE),
    ),
    Route("GET", "/v1/sessions/stats", stats, "read", SESSIONS, result=SessionStats),
    Route(
        "GET",
        "/v1/admin/tenants/{tenant}/usage",
        tenant_usage,
        "admin",
        ADMIN,
        result=UsageList,
        parameters=(*OF_USAGE, *PAGE),
    ),
]
FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
