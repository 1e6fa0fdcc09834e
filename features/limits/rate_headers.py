"""Rate-limit response headers, in the form of the client protocol of the route.

Anthropic: docs, "Rate limits", response headers; the reset is a time. OpenAI: docs, "Rate limits", "Rate limits in
headers"; the reset is a duration. Other routes: the IETF's draft-ietf-httpapi-ratelimit-headers, version 8 and later.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from tailrace.features.limits.quotas import QuotaRest

ANTHROPIC = ("/v1/messages",)
OPENAI = ("/v1/chat/completions", "/v1/responses")
# The limits that SDKs read. Budgets appear in the error when they are exceeded.
SHOWN = ("requests", "tokens")

Headers = dict[str, str]


def rate_headers(path: str, rests: Iterable[QuotaRest], now: float) -> Headers:
    """Returns, for each kind of limit, the headers of the limit of key or tenant with the least left."""
    least: dict[str, QuotaRest] = {}
    for rest in rests:
        what = rest.quota.what
        if what in SHOWN and (what not in least or rest.remaining < least[what].remaining):
            least[what] = rest
    if path.startswith(ANTHROPIC):
        return _anthropic(least)
    return _openai(least, now) if path.startswith(OPENAI) else _ietf(least, now)


def _anthropic(least: dict[str, QuotaRest]) -> Headers:
    result: Headers = {}
    for what, (quota, remaining) in least.items():
        name = f"anthropic-ratelimit-{what}"
        # Rounded up: a client that waits until then must find the quota renewed.
        reset = datetime.fromtimestamp(math.ceil(quota.renews_at), UTC)
        result |= {
            f"{name}-limit": str(quota.most),
            f"{name}-remaining": str(remaining),
            f"{name}-reset": f"{reset:%Y-%m-%dT%H:%M:%SZ}",
        }
    return result


def _openai(least: dict[str, QuotaRest], now: float) -> Headers:
    result: Headers = {}
    for what, (quota, remaining) in least.items():
        result |= {
            f"x-ratelimit-limit-{what}": str(quota.most),
            f"x-ratelimit-remaining-{what}": str(remaining),
            f"x-ratelimit-reset-{what}": duration(quota.renews_at - now),
        }
    return result


def _ietf(least: dict[str, QuotaRest], now: float) -> Headers:
    if not least:
        return {}
    policies = (f'"{what}";q={quota.most};w={math.ceil(quota.window_s)}' for what, (quota, _) in least.items())
    left = (
        f'"{what}";r={remaining};t={max(0, math.ceil(quota.renews_at - now))}'
        for what, (quota, remaining) in least.items()
    )
    return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(left)}


def duration(seconds: float) -> str:
    """Formats seconds as Go does: `12ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
