"""The judgement of refresh tokens, and the cookie."""

import pytest

from tailrace.features.logins.logins import GRACE_S, format_cookie, judge
from tailrace.features.logins.store import Login

NOW = 1000.0


@pytest.mark.rule("R40")
@pytest.mark.parametrize(
    ("generation", "after_s", "judgement"),
    [
        (5, 0, "current"),
        (5, 10**6, "current"),
        (4, 0, "previous"),  # another tab, or an answer that was lost
        (4, GRACE_S - 1, "previous"),
        (4, GRACE_S, "reused"),
        (4, -3600, "previous"),  # another gateway's clock
        (3, 0, "reused"),
        (0, 0, "reused"),
        (6, 0, "ahead"),  # what was read of the login is old
    ],
)
def test_only_the_last_refresh_token_is_valid(generation: int, after_s: float, judgement: str) -> None:
    """The previous one is accepted for GRACE_S; an older one is a copy."""
    login = Login(key="key_1", until=10**9, generation=5, refreshed_at=NOW)
    assert judge(login, generation, NOW + after_s) == judgement


def test_the_cookie_is_host_only_http_only_and_same_site() -> None:
    """With `__Host-` browsers refuse it unless it is Secure, for `/`, and without a Domain."""
    parts = format_cookie("trr_x", 60).split("; ")
    assert parts[0] == "__Host-tailrace_login=trr_x"
    assert set(parts[1:]) == {"Path=/", "Max-Age=60", "Secure", "HttpOnly", "SameSite=Strict"}
