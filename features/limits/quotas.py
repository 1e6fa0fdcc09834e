"""Quotas: the counter of each limit at a point in time, its maximum, and when it renews. Pure."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from tailrace.features.limits.rates import Rate, merge_limits, request_rate, token_rate
from tailrace.features.limits.records import TENANT
from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.limits import NAMES, UNLIMITED, Limits, parse_limits
from tailrace.gateway.auth.principal import Principal
from tailrace.proto import subjects
from tailrace.proto.ids import Tenant
from tailrace.proto.usage import NANO_USD_PER_USD

What = Literal["requests", "tokens", "usd_day", "usd_month", "bytes_day"]
KEY_CHARS = 32
DAY_S = 24 * 3600.0


class Owner(NamedTuple):
    """A key or a tenant that has limits. `name` is its token in NATS subjects."""

    tenant: Tenant
    name: str
    limits: Limits

    @property
    def noun(self) -> str:
        return "tenant" if self.name == TENANT else "key"


class Quota(NamedTuple):
    """A counter and the most that it may hold until `renews_at` (Unix seconds), when the next counter replaces it."""

    what: What
    noun: str
    subject: str
    most: int
    window_s: float
    renews_at: float


class QuotaRest(NamedTuple):
    """The rest of a quota, for the rate-limit headers."""

    quota: Quota
    remaining: int


def owners_of(principal: Principal, of_keys: Limits, of_tenants: Limits) -> tuple[Owner, Owner]:
    """Returns key and tenant of `principal`. The key is first: what it refuses is not counted for the tenant."""
    own = effective_limits(principal.limits or {}, of_keys)
    # Budgets are the tenant's, also where its users are private.
    tenant = principal.access.tenant
    return Owner(tenant, owner_name("k_", principal), own), Owner(tenant, TENANT, of_tenants)


def owner_name(prefix: str, principal: Principal) -> str:
    """Returns the name of the counters of the principal's key. All requests without a key share the same counters."""
    return counter_name(prefix, principal.counted_as or principal.key or "")


def counter_name(prefix: str, credential: str) -> str:
    """Returns the name of the counters of a credential with this id."""
    # Hashed, because an id of a credential may contain `.` or `*`.
    return prefix + hashlib.sha256(credential.encode()).hexdigest()[:KEY_CHARS]


def owner_of_key(key: ApiKey, common: Limits = UNLIMITED) -> Owner:
    """Returns a stored key with its own limits, and those of `common` that it has not."""
    return Owner(key.tenant, counter_name("k_", key.counted_as or key.id), effective_limits(key.limits or {}, common))


def effective_limits(own: Mapping[str, float], common: Limits) -> Limits:
    """Returns the limits that apply: each from `own`, the stored limits, or else from `common`."""
    # A newer release may have stored limits that this one does not know.
    return merge_limits(parse_limits({name: limit for name, limit in own.items() if name in NAMES}), common)


def quota_of(owner: Owner, what: What, now: float) -> Quota | None:
    """Returns the quota of one limit at `now` (Unix seconds), or None if it is not limited."""
    limits = owner.limits
    match what:
        case "requests":
            return _rate_quota(owner, what, request_rate(limits), now)
        case "tokens":
            return _rate_quota(owner, what, token_rate(limits), now)
        case "usd_day" if limits.usd_day is not None:
            return _daily_quota(owner, what, round(limits.usd_day * NANO_USD_PER_USD), now)
        case "usd_month" if limits.usd_month is not None:
            return _monthly_quota(owner, what, round(limits.usd_month * NANO_USD_PER_USD), now)
        case "bytes_day" if limits.bytes_day is not None:
            return _daily_quota(owner, what, limits.bytes_day, now)
        case _:
            return None


def _rate_quota(owner: Owner, what: What, rate: Rate | None, now: float) -> Quota | None:
    if rate is None:
        return None
    # Whole milliseconds, so that all gateways compute the same window number.
    window_ms = max(1, round(rate.window_s * 1000))
    number = int(now * 1000) // window_ms
    subject = subjects.limit(owner.tenant, owner.name, what, f"{window_ms}-{number}")
    return Quota(what, owner.noun, subject, rate.most, window_ms / 1000, (number + 1) * window_ms / 1000)


def _daily_quota(owner: Owner, what: What, most: int, now: float) -> Quota:
    midnight = _midnight(now)
    subject = subjects.budget(owner.tenant, owner.name, what, f"{midnight:%Y-%m-%d}")
    return Quota(what, owner.noun, subject, most, DAY_S, (midnight + timedelta(days=1)).timestamp())


def _monthly_quota(owner: Owner, what: What, most: int, now: float) -> Quota:
    first = _midnight(now).replace(day=1)
    after = (first + timedelta(days=32)).replace(day=1)
    subject = subjects.budget(owner.tenant, owner.name, what, f"{first:%Y-%m}")
    return Quota(what, owner.noun, subject, most, (after - first).total_seconds(), after.timestamp())


def _midnight(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
