"""Route of usage: tokens and cost by day, model, key, user, session, project or metadata."""

from datetime import UTC, date, datetime, timedelta

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import FROM, PAGE, TO
from tailrace.gateway.http.route import PROJECTS, Route, query
from tailrace.gateway.resources.paging import Page, page_of
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.resources import USAGE_BY, GetUsage, UsageRecord

DAYS = 30
DAYS_MAX = 366


class UsageList(Page[UsageRecord], frozen=True, kw_only=True):
    """In the order of the keys of the groups."""

    by: str
    """The unit that the usage is summed by."""
    first: date = msgspec.field(name="from")
    """The first day (UTC)."""
    last: date = msgspec.field(name="to")
    """The last day (UTC)."""
    whole_since: datetime | None
    """Usage and cost are whole for turns that were accepted after this time; null: for all turns. An older version has
    counted those before: without tokens beyond the top level of a usage object, and without server tools."""


async def usage(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/usage?by=day|model|key|user|session|project|metadata.NAME&from=&to=`: usage of those days (UTC).

    Only turns that have ended are counted. A deleted turn keeps its share of the sums.
    """
    return await usage_response(request, history, request.tenant)


async def usage_response(request: Request, history: HistoryClient, tenant: Tenant) -> Response:
    """Returns the usage of a tenant for the query of `request`. Raises Refused."""
    after, limit = page_of(request)
    first, last = days_of(request, datetime.now(UTC).date())
    query = GetUsage(_parse_by(request), first, last, after, limit, request.query_params.get("key"))
    found = await history.query(tenant, query)
    return json_response(
        UsageList(data=found.usage, next=found.next, by=query.by, first=first, last=last, whole_since=found.whole_since)
    )


def days_of(request: Request, today: date) -> tuple[date, date]:
    """Returns the first and last day of the query; by default the DAYS days up to today. Raises Refused."""
    last = _day(request, "to", today)
    first = _day(request, "from", last - timedelta(days=DAYS - 1))
    if not timedelta() <= last - first < timedelta(days=DAYS_MAX):
        raise Refused("request_invalid", f"`from` must not be after `to`, nor more than {DAYS_MAX} days before it.")
    return first, last


def _day(request: Request, field: str, default: date) -> date:
    return day_of(request, field) or default


def day_of(request: Request, field: str) -> date | None:
    """Returns the day in a query parameter, None without it. Raises Refused."""
    text = request.query_params.get(field)
    if text is None:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        day = None
    # The database has no times before 1970, and Python has no day after the year 9999.
    if day is None or not text.isascii() or not 1970 <= day.year <= 9998:
        raise Refused("request_invalid", f"`{field}` must be a day such as 2026-01-31.")
    return day


def _parse_by(request: Request) -> str:
    grouping = request.query_params.get("by", "day")
    if grouping in USAGE_BY or (grouping.startswith("metadata.") and grouping != "metadata."):
        return grouping
    raise Refused("request_invalid", f"`by` must be one of {', '.join(USAGE_BY)}, or `metadata.NAME`")


BY = query("by", "The unit to sum by.", type="string", pattern=f"^({'|'.join(USAGE_BY)}|metadata\\..+)$")
OF_USAGE = (BY, query("key", "Only the usage of this day, model, user…"), FROM, TO)

ROUTES = [
    Route("GET", "/v1/usage", usage, "read", PROJECTS, result=UsageList, parameters=(*OF_USAGE, *PAGE)),
]
