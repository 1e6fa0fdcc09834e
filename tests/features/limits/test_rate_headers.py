"""Rate-limit headers of each client protocol."""

import pytest

from tailrace.features.limits.quotas import Quota, QuotaRest, What
from tailrace.features.limits.rate_headers import duration, rate_headers

NOW = 1_765_000_000.0


def build_rest(what: What, most: int, remaining: int, renews_in_s: float) -> QuotaRest:
    return QuotaRest(Quota(what, "key", "a.b", most, 60.0, NOW + renews_in_s), remaining)


STANDINGS = [
    build_rest("requests", 60, 50, 12.5),
    build_rest("requests", 100, 9, 30.25),
    build_rest("tokens", 1000, 0, 0.0115),
    build_rest("usd_day", 5, 1, 9999),
]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_anthropic_routes_show_the_reset_as_a_time(path: str) -> None:
    """RFC 3339, never before the renewal; of two limits the one with less remaining."""
    assert rate_headers(path, STANDINGS, NOW) == {
        "anthropic-ratelimit-requests-limit": "100",
        "anthropic-ratelimit-requests-remaining": "9",
        "anthropic-ratelimit-requests-reset": "2025-12-06T05:47:11Z",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2025-12-06T05:46:41Z",
    }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_openai_routes_show_the_reset_as_a_duration(path: str) -> None:
    assert rate_headers(path, STANDINGS, NOW) == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "31s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "12ms",
    }


def test_other_routes_have_the_ietf_headers() -> None:
    assert rate_headers("/v1/turns", STANDINGS, NOW) == {
        "ratelimit-policy": '"requests";q=100;w=60, "tokens";q=1000;w=60',
        "ratelimit": '"requests";r=9;t=31, "tokens";r=0;t=1',
    }


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/turns"])
def test_without_a_limit_there_are_no_headers(path: str) -> None:
    """Nor for budgets, which no client reads."""
    assert rate_headers(path, [build_rest("usd_month", 5, 1, 9999)], NOW) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0ms"), (0.0121, "13ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (3600, "1h0m0s"), (90061.5, "25h1m2s")],
)
def test_durations_are_written_as_in_go(seconds: float, text: str) -> None:
    """Rounded up, so that a client waits long enough."""
    assert duration(seconds) == text
