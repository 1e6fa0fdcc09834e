"""Records of usage, and the queries about them that persistence answers."""

from datetime import date, datetime
from typing import ClassVar, Literal

import msgspec

from tailrace.proto.ids import SessionId, Tenant
from tailrace.proto.records import Query, Totals
from tailrace.proto.usage import Usage

USAGE_BY = ("day", "model", "key", "user", "session", "project")
"""The dimensions by which usage is summed, besides `metadata.NAME`."""
BY_TENANT = "tenant"
"""The dimension of all tenants together."""


class UsageRecord(Totals, frozen=True, kw_only=True):
    """The usage of a day (UTC), a model, an API key's id, a user, a session, a project, a value in the metadata, or a
    tenant.

    The key is None for turns without such a value: no project, API key, user or field of metadata, a deleted session,
    or an erased user. The records of each grouping sum to the same total.
    """

    key: str | None
    """The day, model, key, user, session, project, value or tenant that this usage belongs to."""
    last_used: datetime | None
    """When the last of its turns started; null: not known, for turns without a field of metadata."""


class UsagePage(msgspec.Struct, frozen=True):
    """A page of usage records, ordered by key. `next` is the cursor of the next page, None on the last."""

    usage: list[UsageRecord]
    next: str | None
    whole_since: datetime | None = None
    """When the last turn was accepted whose usage and cost an older version has counted; None: there is none."""
    total: Totals | None = None
    """The sum over all turns of the days, at the time of this page; None: from an older version."""


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
    """Only the usage of this key."""


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
