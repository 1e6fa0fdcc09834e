"""Routes of usage: tokens and cost by day, model, key, user, session, project or metadata; and statistics."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Literal, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.common.day_parameter import day_of
from tailrace.features.common.label_filters import OF_LABELS, metadata_of
from tailrace.features.usage.csv_table import render_csv
from tailrace.features.usage.records import (
    BY_TENANT,
    FILTERS,
    ROWS_MAX,
    TURN_DAYS_MAX,
    USAGE_BY,
    GetStats,
    GetUsageBy,
    GetUsageOfAll,
    ListTenantUsage,
    UsagePage,
    UsageRecord,
    parse_by,
    require_days,
    usage_query,
)
from tailrace.gateway.auth.api_request import ApiRequest, parse_tenant
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import FROM, LIMIT, PAGE, TO
from tailrace.gateway.http.query_parameters import METADATA
from tailrace.gateway.http.route import ADMIN, PROJECTS, SESSIONS, Route, query
from tailrace.gateway.resources.paging import Page, page_of
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, Tenant, TurnId
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.records import PAGE_ITEMS_MAX, ListTurns, Totals, TurnRecord
from tailrace.proto.runtime.settings import NoSettings
from tailrace.proto.usage import Usage

DAYS = 30
DAYS_MAX = 366
CSV = "text/csv"
FORMATS = ("json", "csv")


class UsageList(Page[UsageRecord], frozen=True, kw_only=True):
    """Usage, in the order of the groups' keys."""

    tenant: Tenant | None
    """The tenant of the usage; null: all tenants."""
    by: str
    """The unit that the usage is summed by, or two, separated by a comma."""
    first: date = msgspec.field(name="from")
    """The first day (UTC)."""
    last: date = msgspec.field(name="to")
    """The last day (UTC)."""
    whole_since: datetime | None
    """Usage and cost are whole for turns that were accepted after this time; null: for all turns. An older version has
    counted earlier turns: without tokens beyond the top level of a usage object, and without server tools."""
    total: Totals | None
    """The sum over all turns of these days that fulfil the filters, whatever `by` is, when this page was read; null:
    not known. With several filters, it lacks deleted turns, and those with `store: false`."""


class CostlyTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn and its cost, without its text."""

    turn: TurnId
    """The id of the turn."""
    session: SessionId
    """The session of the turn."""
    model: str
    """The model of the request."""
    user: str | None
    """The end user, as the request or the JWT named them."""
    outcome: str
    """How the turn ended."""
    asked_at: datetime
    """When the request was accepted."""
    usage: Usage
    """The billed tokens of the turn."""
    cost_usd: float | None
    """The cost in dollars; null: a price is unknown."""


class CostlyTurnList(Page[CostlyTurn], frozen=True, kw_only=True):
    """The turns that cost most, in one page. Deleted turns, and those with `store: false`, are not among them."""


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

    `by` may have two dimensions (`by=day,model`), and `user`, `model`, `project`, `session`, `key` and
    `metadata[NAME]` select turns; a turn must fulfil all of them. Two dimensions, and filters on other dimensions than
    `by`, read the turns themselves, of at most 31 days: then deleted turns, and those with `store: false`, are in the
    record without keys. With several filters they are in no record, and not in `total`.

    `format=csv` returns all records, at most 10,000, as CSV with a header row.
    """
    return await usage_response(request, history, request.access)


async def tenant_usage(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/admin/tenants/{tenant}/usage`: what `/v1/usage` shows, for any tenant.

    The totals have the names of users, sessions and projects if `by` asks for them, but no text.
    """
    return await usage_response(request, history, Scope(parse_tenant(request.path_params["tenant"]), WHOLE))


async def costliest_turns(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/admin/tenants/{tenant}/turns`: the turns of a tenant that cost most, without their texts.

    At most `limit`, of the days `from` to `to` (UTC), by default of the last 30 days. `format=csv` returns 200 as CSV.
    """
    scope = Scope(parse_tenant(request.path_params["tenant"]), WHOLE)
    _, limit = page_of(request)
    if _is_csv(request):
        limit = PAGE_ITEMS_MAX
    first, last = days_of(request, datetime.now(UTC).date())
    require_days("the list of the costliest turns", first, last, TURN_DAYS_MAX)
    labels = _filters_of(request)
    found = (await history.query(scope, ListTurns(labels, None, first, last, None, limit, order="-cost_usd"))).turns
    if _is_csv(request):
        rows = (((one.turn, one.model, one.user, one.session), _usage_of(one)) for one in found)
        return _csv_response("costliest-turns", render_csv(("turn", "model", "user", "session"), rows))
    fields = CostlyTurn.__struct_fields__
    turns = [CostlyTurn(**{name: getattr(one, name) for name in fields}) for one in found]
    return json_response(CostlyTurnList(data=turns, next=None))


def _usage_of(turn: TurnRecord) -> UsageRecord:
    tokens = sum(turn.usage.counts)
    cost = turn.cost_usd or 0.0
    return UsageRecord(
        key=turn.turn,
        last_used=turn.asked_at,
        turns=1,
        message_count=len(turn.input) + 1,
        usage=turn.usage,
        cost_usd=cost,
        total_tokens=tokens,
        total_cost=cost,
    )


async def usage_of_tenants(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/admin/usage`: the usage of all tenants, by tenant, or together by day or model.

    Tenants without usage on these days are left out. Names of users, teams and projects mean something in their tenant
    only: by these, each tenant has its own usage.
    """
    after, limit = page_of(request)
    first, last = days_of(request, datetime.now(UTC).date())
    by = request.query_params.get("by", BY_TENANT)
    if by not in BY_OF_ALL:
        raise Refused("request_invalid", f"`by` must be one of {', '.join(BY_OF_ALL)}", param="by")
    of_all = cast("Literal['day', 'model']", by)

    async def read(after: str | None, limit: int) -> UsagePage:
        if by == BY_TENANT:
            return await history.query(request.access, ListTenantUsage(first, last, after, limit))
        return await history.query(request.access, GetUsageOfAll(of_all, first, last, after, limit))

    page = await read(after, PAGE_ITEMS_MAX if (is_csv := _is_csv(request)) else limit)
    if not is_csv:
        return _render(page, by, first, last, None)
    records = page.usage
    while page.next is not None:
        page = await read(page.next, PAGE_ITEMS_MAX)
        records += page.usage
    return _render_csv([by], UsagePage(records, None))


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
    by, filters = _by_of(request), _filters_of(request)
    if _is_csv(request):
        return _render_csv(by, await history.query(scope, GetUsageBy(by, first, last, filters, limit=ROWS_MAX)))
    query = usage_query(by, filters, first, last, after, limit)
    return _render(await history.query(scope, query), ",".join(by), first, last, scope.tenant)


def _is_csv(request: Request) -> bool:
    """Returns whether the records are to be CSV, in one page. Raises Refused."""
    parameters = request.query_params
    if (wanted := parameters.get("format", "json")) not in FORMATS:
        raise Refused(
            "request_invalid", f"`format` must be {' or '.join(FORMATS)}, not {wanted[:64]!r}", param="format"
        )
    if wanted == "csv" and ("after" in parameters or "limit" in parameters):
        raise Refused("request_invalid", "`format=csv` has all rows: leave out `after` and `limit`", param="format")
    return wanted == "csv"


def _by_of(request: Request) -> list[str]:
    """Returns the dimensions of the query, by default the day. Raises Refused."""
    try:
        return parse_by(request.query_params.get("by", "day"))
    except ValueError as error:
        raise Refused("request_invalid", str(error)) from error


def _filters_of(request: Request) -> dict[str, str]:
    """Returns the filters of the query. Raises Refused for one without a value."""
    query = request.query_params
    filters = {name: query[name] for name in FILTERS if name in query} | metadata_of(request)
    for name in (*FILTERS, *(name for name in query if METADATA.fullmatch(name))):
        if query.get(name) == "":
            why = f"`{name}` is empty: send a value, or leave it out; turns without a value are a row of `by`"
            raise Refused("request_invalid", why)
    return filters


def _render_csv(by: list[str], found: UsagePage) -> Response:
    if found.next is not None:
        why = f"`format=csv` has at most {ROWS_MAX:,} rows, and this table has more: send fewer days or a filter"
        raise Refused("request_invalid", why, param="format")
    name = f"usage-by-{'-'.join(re.sub('[^a-z]+', '_', one) for one in by)}"
    return _csv_response(name, render_csv(by, ((one.keys, one) for one in found.usage)))


def _csv_response(name: str, text: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}.csv"', "cache-control": "no-store"}
    return Response(text, media_type=CSV, headers=headers)


def _render(found: UsagePage, by: str, first: date, last: date, tenant: Tenant | None) -> Response:
    return json_response(
        UsageList(
            data=found.usage,
            next=found.next,
            tenant=tenant,
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
    if first > last:
        raise Refused("request_invalid", f"`from` is {first}, after `to`, {last}: exchange them", param="from")
    require_days("usage", first, last, DAYS_MAX)
    return first, last


BY_OF_ALL = (BY_TENANT, "day", "model")
OF_ALL = query("by", "The unit to sum by; `tenant` by default.", enum=[*BY_OF_ALL])
ONE_BY = f"({'|'.join(USAGE_BY)}|metadata\\.[^,]+)"
BY = query("by", "One unit to sum by, or two, separated by a comma.", type="string", pattern=f"^{ONE_BY}(,{ONE_BY})?$")
FORMAT = query("format", "`csv`: all records as CSV, with the exact cost.", enum=[*FORMATS])
OF_USAGE = (
    BY,
    *OF_LABELS,
    query("project", "Only turns of sessions of this project."),
    query("session", "Only turns of this session."),
    FROM,
    TO,
    FORMAT,
)

ROUTES = [
    Route("GET", "/v1/usage", usage, "read", PROJECTS, result=UsageList, streams=CSV, parameters=(*OF_USAGE, *PAGE)),
    Route(
        "GET",
        "/v1/admin/usage",
        usage_of_tenants,
        "admin",
        ADMIN,
        result=UsageList,
        streams=CSV,
        parameters=(OF_ALL, FROM, TO, FORMAT, *PAGE),
    ),
    Route("GET", "/v1/sessions/stats", stats, "read", SESSIONS, result=SessionStats),
    Route(
        "GET",
        "/v1/admin/tenants/{tenant}/usage",
        tenant_usage,
        "admin",
        ADMIN,
        result=UsageList,
        streams=CSV,
        parameters=(*OF_USAGE, *PAGE),
    ),
    Route(
        "GET",
        "/v1/admin/tenants/{tenant}/turns",
        costliest_turns,
        "admin",
        ADMIN,
        result=CostlyTurnList,
        streams=CSV,
        parameters=(*OF_LABELS, FROM, TO, LIMIT, FORMAT),
    ),
]
FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
