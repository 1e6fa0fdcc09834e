"""Limits as settings and key records state them."""

import pytest

from tailrace.features.limits.rates import Rate, parse_limits_setting, request_rate
from tailrace.gateway.auth.limits import UNLIMITED, Limits, parse_limits


def test_a_setting_lists_limits_in_any_order() -> None:
    """A limit that is not listed does not apply."""
    text = " requests=60,burst=10 , tokens = 100000, running=5, streams=20, usd_day=2.5, usd_month=50, bytes_day=1e9 "
    assert parse_limits_setting("X", text) == Limits(
        requests=60, burst=10, tokens=100_000, running=5, streams=20, usd_day=2.5, usd_month=50, bytes_day=10**9
    )
    assert parse_limits_setting("X", "") == UNLIMITED


def test_a_key_record_holds_the_same_limits_as_json() -> None:
    """JSON has one type of number."""
    assert parse_limits({"requests": 60.0, "usd_day": 2}) == Limits(requests=60, usd_day=2)
    with pytest.raises(ValueError, match="the limits are requests, burst"):
        parse_limits({"request": 60})
    for name in ("requests", "usd_day"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            parse_limits({name: 10**400})


@pytest.mark.parametrize(
    ("limits", "rate"),
    [
        (UNLIMITED, None),
        (Limits(burst=5), None),
        (Limits(requests=60), Rate(60, 60)),
        (Limits(requests=60, burst=10), Rate(10, 10)),
        (Limits(requests=60, burst=120), Rate(120, 120)),
        (Limits(requests=6000, burst=1), Rate(1, 0.01)),
        (Limits(requests=1, burst=100), Rate(60, 3600)),
    ],
)
def test_burst_is_the_size_of_a_window(limits: Limits, rate: Rate | None) -> None:
    """The rate stays the same; a window has at most an hour."""
    assert request_rate(limits) == rate
