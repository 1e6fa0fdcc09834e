"""Records of usage, and the queries about them that persistence answers."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, ClassVar, Literal

import msgspec

from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, Tenant
from tailrace.proto.records import Query, Totals
from tailrace.proto.usage import Usage

USAGE_BY = ("day", "model", "key", "user", "session", "project")
"""The dimensions by which usage is summed, besides `metadata.NAME`."""
BY_TENANT = "tenant"
"""The dimension of all tenants together."""
FILTERS = ("user", "model", "project", "session", "key")
"""The dimensions that select turns, besides `metadata.NAME`."""
BY_MAX = 2
ROWS_MAX = 10_000
"""The most records of one answer."""
TURN_DAYS_MAX = 31
"""The most days whose turns are read at once."""


class UsageRecord(Totals, frozen=True, kw_only=True):
    """The usage of a day (UTC), a model, an API key's id, a user, a session, a project, a value in the metadata, or a
    tenant.

    The key is None for turns without such a value: no project, API key, user or field of metadata, a deleted session,
    or an erased user. With two dimensions, all deleted turns, and those with `store: false`, are in the record without
    keys. The records of each grouping sum to the same total.
    """

    key: str | None
    """The day, model, key, user, session, project, value or tenant that this usage belongs to."""
    keys: list[str | None] = msgspec.field(default_factory=list)
    """The values of all dimensions, in the order of `by`. The first one is `key`."""
    last_used: datetime | None
    """When the last of its turns started; null: not known, for turns without a field of metadata, and if deleted turns
    are among them."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "keys", self.keys or [self.key])


class UsagePage(msgspec.Struct, frozen=True):
    """A page of usage records, ordered by key. `next` is the cursor of the next page, None on the last."""

    usage: list[UsageRecord]
    next: str | None
    whole_since: datetime | None = None
    """When the last turn was accepted whose usage and cost an older version has counted; None: there is none."""
    total: Totals | None = None
    """The sum over all turns of the days that fulfil the filters, at the time of this page; None: from an older
    version."""


class BilledUsage(msgspec.Struct, frozen=True):
    """The usage that a model is billed for on a day (UTC) on which turns were accepted."""

    day: date
    model: str
    turns: int
    usage: Usage
    cost_nano_usd: int


class BilledUsageList(msgspec.Struct, frozen=True):
    """Usage by day and model. The list has at most as many rows as the days have models."""

    usage: list[BilledUsage]
    tenants: list[Tenant]
    """Further tenants that have usage, in order; empty after the last one."""
    whole_since: datetime | None = None
    """See UsagePage."""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The number of active sessions, recent usage, and the sessions with a running turn."""

    active_sessions: int
    by_model: list[UsageRecord]
    """The usage of all turns since the start of the UTC day on which the idle window began."""
    running: list[SessionId]


class GetUsage(Query[UsagePage], frozen=True):
    """A page of usage from day `first` to day `last`, inclusive, in UTC (R90). Refused: cursor_invalid."""

    query: ClassVar[str] = "usage"
    owned: ClassVar[tuple[str, ...] | None] = ()
    by: str
    """`day`, `model`, `key` (`by` of the request), `user`, `session`, `project` or `metadata.NAME`."""
    first: date
    last: date
    after: str | None = None
    limit: int = 50
    key: str | None = None
    """Only the usage of this key. Gateways of older versions send it."""


class GetUsageBy(Query[UsagePage], frozen=True):
    """A page of usage by one or two dimensions, of the turns that all `filters` select (R90).

    Refused: cursor_invalid, request_invalid if it must read the turns of more than 31 days.
    """

    query: ClassVar[str] = "usage_by"
    owned: ClassVar[tuple[str, ...] | None] = ()
    by: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]
    """The dimensions, see GetUsage."""
    first: date
    last: date
    filters: dict[str, str] = msgspec.field(default_factory=dict)
    """The values of FILTERS and `metadata.NAME` that each turn must have."""
    after: str | None = None
    limit: int = 50
    """The most records of the page, up to ROWS_MAX."""


class ListTenantUsage(Query[UsagePage], frozen=True):
    """A page of the usage of all tenants, by tenant, from day `first` to day `last`; for operators."""

    query: ClassVar[str] = "tenant_usage"
    is_about_all_tenants: ClassVar[bool] = True
    first: date
    last: date
    after: str | None = None
    limit: int = 50


class GetUsageOfAll(Query[UsagePage], frozen=True):
    """A page of the usage of all tenants together by day or model, from day `first` to day `last`; for operators."""

    query: ClassVar[str] = "usage_of_all"
    is_about_all_tenants: ClassVar[bool] = True
    by: Literal["day", "model"]
    first: date
    last: date
    after: str | None = None
    limit: int = 50


class GetBilledUsage(Query[BilledUsageList], frozen=True):
    """The usage of a tenant by day and billed model (R121), and the next tenants that have usage; for operators."""

    query: ClassVar[str] = "billed"
    is_about_all_tenants: ClassVar[bool] = True
    first: date
    last: date


class GetStats(Query[Stats], frozen=True):
    """The tenant's statistics."""

    query: ClassVar[str] = "stats"
    owned: ClassVar[tuple[str, ...] | None] = ()


def require_days(what: str, first: date, last: date, most: int) -> None:
    """Raises Refused if `what` would read the days from `first` to `last`, and these are more than `most`."""
    if (days := (last - first).days + 1) > most:
        # It begins with the name of the parameter, because an answer of persistence has no `param`.
        why = f"`from` to `to` are {days} days: {what} reads at most {most} at once"
        raise Refused("request_invalid", f"{why}; send a later `from` or an earlier `to`")


def parse_by(text: str) -> list[str]:
    """Returns the one or two dimensions of a text such as `day,model`. Raises ValueError with a sentence."""
    by = text.split(",")
    if all(one in USAGE_BY or (one.startswith("metadata.") and one != "metadata.") for one in by):
        if len(by) <= BY_MAX and len(set(by)) == len(by):
            return by
        raise ValueError(f"`by` is {text!r}: send one dimension, or two different ones, separated by a comma")
    raise ValueError(
        f"`by` is {text!r}, and must be one of {', '.join(USAGE_BY)} or `metadata.NAME`, or two of them, separated by "
        "a comma"
    )


def usage_query(
    by: Sequence[str],
    filters: Mapping[str, str],
    first: date,
    last: date,
    after: str | None = None,
    limit: int = 50,
) -> GetUsage | GetUsageBy:
    """Returns the query for usage. One without filters, by one dimension, is answered by older versions, too."""
    if filters or len(by) > 1:
        return GetUsageBy(list(by), first, last, dict(filters), after, limit)
    return GetUsage(by[0], first, last, after, limit)
