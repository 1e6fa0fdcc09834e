"""Reads Anthropic's usage and cost report of an organisation, by day and model.

Source: platform.claude.com, Admin API, "Get Messages Usage Report" and "Get Cost Report" (November 2026). Days are in
UTC. A call appears in the report after a few minutes.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, TypeVar

import httpx2
import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid, TailraceError
from tailrace.proto.pricing import find_billed_model
from tailrace.proto.usage import Usage

API = "https://api.anthropic.com"
KEY_SETTING = "ANTHROPIC_ADMIN_KEY"
VERSION = "2023-06-01"
USAGE_PATH, COST_PATH = "/v1/organizations/usage_report/messages", "/v1/organizations/cost_report"
# The most days that one answer has.
DAYS_A_PAGE = 31
PAGES_MAX = 1000
TIMEOUT_S = 30.0
BODY_BYTES_MAX = 32 * 1024 * 1024
# The report's names of the kinds of cost that a turn's `usage` has.
COMPARED_COSTS = ("tokens", "web_search")
KEY = re.compile(r"[!-~]{1,512}")

T = TypeVar("T")


class ReportFailed(TailraceError):
    """The report could not be read. The message says why and what to do, and never contains the key."""


class CacheCreation(msgspec.Struct, frozen=True):
    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class UsageResult(msgspec.Struct, frozen=True):
    model: str | None = None
    uncached_input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation: CacheCreation = CacheCreation()


class CostResult(msgspec.Struct, frozen=True):
    amount: str
    """Cents, with a fraction."""
    currency: str = "USD"
    cost_type: str | None = None
    model: str | None = None
    workspace_id: str | None = None


class UsageBucket(msgspec.Struct, frozen=True):
    starting_at: datetime
    results: list[UsageResult]


class CostBucket(msgspec.Struct, frozen=True):
    starting_at: datetime
    results: list[CostResult]


class _Page(msgspec.Struct, frozen=True):
    data: list[msgspec.Raw]
    has_more: bool = False
    next_page: str | None = None


class Report(NamedTuple):
    """The report of some days."""

    usage: Mapping[tuple[date, str], Usage]
    """The tokens by day and model; a model has its id in the table of models, if any."""
    cost_usd: Mapping[tuple[date, str], Decimal]
    """The cost by day and model; a cost without a model by its kind, for example `web_search`."""


class ReportClient:
    """Reads the report with the operator's Admin key, which it neither stores nor shows."""

    def __init__(self, environ: Mapping[str, str], api: str = API) -> None:
        """Raises SettingsInvalid if the key is missing or cannot be sent to `api`."""
        key = environ.get(KEY_SETTING, "")
        if not key:
            raise SettingsInvalid(
                f"{KEY_SETTING} is not set: create an Admin key in Anthropic's Console (Settings, Admin keys), and set "
                "the variable for this command only"
            )
        if not KEY.fullmatch(key):
            raise SettingsInvalid(f"{KEY_SETTING} has characters that no key has: copy it again")
        self._api = checked_api(api)
        self._headers = {"x-api-key": key, "anthropic-version": VERSION}

    def read(self, first: date, last: date, workspaces: list[str], *, has_cost: bool = True) -> Report:
        """Returns the report of the days `first` to `last`; with `workspaces`, only of these. Raises ReportFailed."""
        usage: dict[tuple[date, str], Usage] = {}
        cost: dict[tuple[date, str], Decimal] = {}
        days = {
            "starting_at": _moment(first),
            "ending_at": _moment(last + timedelta(days=1)),
            "bucket_width": "1d",
            "limit": str(DAYS_A_PAGE),
        }
        with httpx2.Client(timeout=TIMEOUT_S, headers=self._headers) as client:
            query = [*days.items(), ("group_by[]", "model"), *(("workspace_ids[]", one) for one in workspaces)]
            for bucket in self._pages(client, USAGE_PATH, query, UsageBucket):
                for used in bucket.results:
                    counts = Usage(
                        used.uncached_input_tokens,
                        used.output_tokens,
                        used.cache_creation.ephemeral_5m_input_tokens + used.cache_creation.ephemeral_1h_input_tokens,
                        used.cache_read_input_tokens,
                    )
                    key = bucket.starting_at.date(), model_name(used.model)
                    usage[key] = usage.get(key, Usage()) + counts
            query = [*days.items(), ("group_by[]", "description"), ("group_by[]", "workspace_id")]
            for paid in self._pages(client, COST_PATH, query, CostBucket) if has_cost else ():
                for result in paid.results:
                    if workspaces and result.workspace_id not in workspaces:
                        continue
                    name = model_name(result.model) if result.model else result.cost_type or "other"
                    key = paid.starting_at.date(), name
                    cost[key] = cost.get(key, Decimal(0)) + _dollars(result)
        return Report(usage, cost)

    def _pages(self, client: httpx2.Client, path: str, query: list[tuple[str, str]], shape: type[T]) -> Iterator[T]:
        """Yields the buckets of all pages. Raises ReportFailed."""
        page: str | None = None
        seen: set[str] = set()
        while True:
            found = self._get(client, path, query if page is None else [*query, ("page", page)])
            for raw in found.data:
                yield _convert(raw, shape, path)
            page = found.next_page
            if not found.has_more or page is None:
                return
            if page in seen or len(seen) >= PAGES_MAX:
                raise ReportFailed(f"{self._api}{path} repeats a page: the report cannot be read to its end")
            seen.add(page)

    def _get(self, client: httpx2.Client, path: str, query: Sequence[tuple[str, str]]) -> _Page:
        try:
            with client.stream("GET", f"{self._api}{path}", params=tuple(query)) as response:
                body = b""
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > BODY_BYTES_MAX:
                        raise ReportFailed(f"{self._api}{path} sent more than {BODY_BYTES_MAX} bytes")
        except httpx2.HTTPError as error:
            raise ReportFailed(f"{self._api} cannot be reached ({type(error).__name__}): check the network") from error
        if response.status_code != 200:
            raise ReportFailed(explain_status(response.status_code, body, f"{self._api}{path}"))
        return _convert(msgspec.Raw(body), _Page, path)


def explain_status(status: int, body: bytes, url: str) -> str:
    """Returns what an error response of the report says, and what to do."""
    try:
        reason = str(msgspec.json.decode(body)["error"]["message"])[:300]
    except (*DECODE_ERRORS, LookupError, TypeError):
        reason = ""
    advice = {
        401: f"{KEY_SETTING} is not valid: it must be an Admin key (sk-ant-admin…)",
        403: f"{KEY_SETTING} may not read the report: it must be an Admin key (sk-ant-admin…)",
        404: "the organisation has no such report: an individual account has none",
        429: "too many requests: try again in a minute",
    }.get(status, "try again later" if status >= 500 else "the report could not be read")
    return f"{url} answered {status}{f' ({reason})' if reason else ''}: {advice}"


def checked_api(api: str) -> str:
    """Returns the API's address without a final slash. Raises SettingsInvalid if others could read the key."""
    try:
        url = httpx2.URL(api)
    except (httpx2.InvalidURL, ValueError):
        url = httpx2.URL("")
    is_local = url.host == "localhost"
    with suppress(ValueError):
        is_local |= ipaddress.ip_address(url.host).is_loopback
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and is_local)):
        raise SettingsInvalid(f"--api {api} is not an https:// address: the key would be readable")
    return api.rstrip("/")


def model_name(name: str | None) -> str:
    """Returns the id of a model in the table; `name` if the table does not have it."""
    model = find_billed_model(name or "")
    return model.id if model is not None else name or "unknown"


def _convert(raw: msgspec.Raw, shape: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(raw, type=shape)
    except DECODE_ERRORS as error:
        raise ReportFailed(f"{path} answered in a format that this version does not know: {error}") from error


def _dollars(result: CostResult) -> Decimal:
    try:
        cents = Decimal(result.amount)
    except InvalidOperation:
        cents = Decimal("NaN")
    if result.currency != "USD" or not cents.is_finite():
        raise ReportFailed(f"{COST_PATH} has an amount that is not in US dollars: {result.amount} {result.currency}")
    return cents / 100


def _moment(day: date) -> str:
    return datetime.combine(day, time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def counts_of(usage: Usage) -> dict[str, Any]:
    """Returns the counts of tokens by their names."""
    return {name: getattr(usage, name) for name in Usage.__struct_fields__}
