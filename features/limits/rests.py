"""`GET /v1/limits`: the limits of the credential and of its tenant, and what is left of them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import get_args

import msgspec
from starlette.responses import Response

from tailrace.features.limits.limiter import Limiter
from tailrace.features.limits.quotas import Owner, Quota, What, quota_of
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import OPERATION, Route
from tailrace.proto.usage import NANO_USD_PER_USD

DOLLARS = ("usd_day", "usd_month")
SLOTS = ("running", "streams")


class LimitRest(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, and what is left of it. Running turns count with what they have reserved."""

    of: str
    """`key` or `tenant`."""
    name: str
    """The name of the limit, such as `usd_month`."""
    limit: float
    """The most that may be used, in dollars for a budget."""
    left: float
    """The rest of the limit, in the same unit."""
    renews_at: datetime | None = None
    """When the whole limit is available again; null for `running` and `streams`."""


class LimitRests(msgspec.Struct, frozen=True):
    """The limits of the credential, then the limits of its tenant."""

    data: list[LimitRest]
    """The limits. A limit that is not set does not apply, and is left out."""


async def get_limits(request: ApiRequest, limiter: Limiter) -> Response:
    """`GET /v1/limits`: the limits of this credential and of its tenant, and what is left of them.

    For a private user, without the budgets of the tenant: they tell what others have spent.
    """
    principal = request.principal
    rests = [rest for owner in limiter.owners(principal) async for rest in _rests_of(limiter, owner, principal.key)]
    if not request.access.is_whole_tenant:
        rests = [rest for rest in rests if rest.of == "key" or rest.name not in DOLLARS]
    return json_response(LimitRests(rests))


async def _rests_of(limiter: Limiter, owner: Owner, key: str | None) -> AsyncIterator[LimitRest]:
    for what in get_args(What):
        if (quota := quota_of(owner, what, limiter.now())) is not None:
            if what in DOLLARS and limiter.soft_limits is not None:
                await limiter.soft_limits.complete(owner, quota, key)
            used = await limiter.counters.add(quota.subject, 0)
            yield rest_of(quota, used)
    for what in SLOTS:
        if (most := getattr(owner.limits, what)) is not None:
            held = len(await limiter.slots.list_held(owner.tenant, owner.name, what))
            yield LimitRest(of=owner.noun, name=what, limit=most, left=max(0, most - held))


def rest_of(quota: Quota, used: int) -> LimitRest:
    """Returns what is left of a quota whose counter is `used`."""
    unit = NANO_USD_PER_USD if quota.what in DOLLARS else 1
    renews_at = datetime.fromtimestamp(quota.renews_at, UTC)
    left = max(0, quota.most - used) / unit
    return LimitRest(of=quota.noun, name=quota.what, limit=quota.most / unit, left=left, renews_at=renews_at)


ROUTES = [Route("GET", "/v1/limits", get_limits, "read", OPERATION, result=LimitRests)]
