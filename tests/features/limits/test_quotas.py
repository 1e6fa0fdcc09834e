"""Quotas: counters, windows and renewal times."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.limits.limiter import quota_error
from tailrace.features.limits.quotas import Owner, What, owners_of, quota_of
from tailrace.features.limits.records import TENANT
from tailrace.gateway.auth.limits import UNLIMITED, Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.ids import Tenant, is_token
from tailrace.proto.ownership import WHOLE, Scope

ACME = Tenant("acme")
LIMITS = Limits(requests=60, burst=10, tokens=1000, usd_day=2.5, usd_month=50, bytes_day=9)
WHATS: list[What] = ["requests", "tokens", "usd_day", "usd_month", "bytes_day"]


def parse_time(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


ROWS: list[tuple[What, str, int, str]] = [
    ("requests", "limits.acme.tenant.requests.10000-179657567", 10, "2026-12-05T23:59:40"),
    ("tokens", "limits.acme.tenant.tokens.60000-29942928", 1000, "2026-12-06T00:00:00"),
    ("usd_day", "budgets.acme.tenant.usd_day.2026-12-05", 2_500_000_000, "2026-12-06T00:00:00"),
    ("usd_month", "budgets.acme.tenant.usd_month.2026-12", 50_000_000_000, "2027-01-01T00:00:00"),
    ("bytes_day", "budgets.acme.tenant.bytes_day.2026-12-05", 9, "2026-12-06T00:00:00"),
]


@pytest.mark.rule("R37")
@pytest.mark.parametrize(("what", "subject", "most", "renews"), ROWS)
def test_a_quota_names_the_counter_of_its_window(what: What, subject: str, most: int, renews: str) -> None:
    """Gateways agree on the counter if their clocks agree."""
    owner = Owner(ACME, TENANT, LIMITS)
    found = quota_of(owner, what, parse_time("2026-12-05T23:59:35"))
    assert found is not None
    if what in ("requests", "tokens"):
        window_ms = round(found.window_s * 1000)
        subject = f"limits.acme.tenant.{what}.{window_ms}-{int(parse_time('2026-12-05T23:59:35')) * 1000 // window_ms}"
    assert (found.subject, found.most, found.renews_at) == (subject, most, parse_time(renews))
    assert quota_of(Owner(ACME, TENANT, UNLIMITED), what, 0.0) is None


@given(st.sampled_from(WHATS), st.floats(0, 4e9))
def test_windows_follow_each_other_without_a_gap(what: What, now: float) -> None:
    """At its end another counter replaces it."""
    owner = Owner(ACME, TENANT, LIMITS)
    found = quota_of(owner, what, now)
    assert found is not None
    assert now < found.renews_at + 1e-6
    after = quota_of(owner, what, found.renews_at + 0.001)
    assert after is not None
    assert after.subject != found.subject


def test_a_key_is_hashed_in_the_subject() -> None:
    names = [
        owners_of(Principal(Scope(ACME, WHOLE), key), UNLIMITED, UNLIMITED)[0].name
        for key in (None, "key_1", "*", "a.b>", "k" * 500, "ключ")
    ]
    assert len(set(names)) == len(names)
    assert all(is_token(name) and name != TENANT for name in names)


def test_owners_are_the_key_and_then_its_tenant() -> None:
    """The limits in the key record replace the common ones."""
    key, tenant = owners_of(
        Principal(Scope(ACME, WHOLE), "k", limits={"requests": 5}), Limits(requests=60, running=2), Limits(running=9)
    )
    assert (key.limits, tenant.limits) == (Limits(requests=5, running=2), Limits(running=9))
    assert (key.noun, tenant.noun, tenant.name) == ("key", "tenant", TENANT)


@pytest.mark.parametrize(
    ("what", "limits", "message"),
    [
        ("requests", Limits(requests=2, burst=1), "This key may use 1 request in 30 s (2 a minute): 0 left until "),
        ("requests", Limits(requests=2), "This key may use 2 requests a minute: 0 left until "),
        ("tokens", Limits(tokens=1), "This key may use 1 token a minute: 0 left until "),
        ("bytes_day", Limits(bytes_day=9), "This key may use 9 bytes of storage a day: 0 left until "),
    ],
)
def test_the_error_names_the_limit_as_it_was_set(what: What, limits: Limits, message: str) -> None:
    """A shorter window, which `burst` makes, is given with the rate by the minute."""
    limited = quota_of(Owner(ACME, "k_1", limits), what, 0.0)
    assert limited is not None
    assert quota_error(limited, 1, limited.most, 0.0).message.startswith(message)


@pytest.mark.parametrize(
    ("what", "limits", "message"),
    [
        ("tokens", Limits(tokens=1), "may use 1 token a minute. Send a smaller `max_tokens`, or less text."),
        ("bytes_day", Limits(bytes_day=2), "may use 2 bytes of storage a day. Send less text, or smaller files."),
    ],
)
def test_the_error_above_a_whole_limit_names_what_to_shorten(what: What, limits: Limits, message: str) -> None:
    """`max_tokens` changes no bytes. A retry would never succeed."""
    limited = quota_of(Owner(ACME, "k_1", limits), what, 0.0)
    assert limited is not None
    error = quota_error(limited, 5, 0, 0.0)
    assert error.code == "request_invalid"
    assert error.message.endswith(message)
