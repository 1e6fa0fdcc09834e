"""The check of cross-origin POSTs, and TAILRACE_ORIGINS."""

import pytest
from starlette.requests import Request

from tailrace.gateway.auth.cors import is_cross_origin_simple_post, parse_origins


@pytest.mark.parametrize(
    ("headers", "is_foreign"),
    [
        ({}, False),  # no browser
        ({"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"}, False),
        ({"sec-fetch-site": "none"}, False),  # an address typed by a user
        ({"origin": "HTTP://LOCALHOST:8000"}, False),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, True),
        ({"origin": "http://localhost:3000"}, True),
        ({"origin": "http://evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
        ({"origin": "http://[::1"}, True),  # no browser's
        ({"sec-fetch-site": "same-origin", "origin": "http://evil.example"}, True),
    ],
)
def test_origin_and_sec_fetch_site_must_name_this_origin(headers: dict[str, str], *, is_foreign: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in {"host": "localhost:8000", **headers}.items()]
    assert is_cross_origin_simple_post(Request({"type": "http", "method": "POST", "headers": raw})) is is_foreign


@pytest.mark.parametrize(
    ("method", "kind", "is_foreign"),
    [
        ("POST", "", True),
        ("POST", "text/plain; application/json", True),
        ("POST", "application/jsonp", True),
        ("POST", "Application/JSON; charset=utf-8", False),
        ("GET", "", False),
        ("DELETE", "", False),
    ],
)
def test_only_a_post_without_preflight_is_checked(method: str, kind: str, *, is_foreign: bool) -> None:
    """The Fetch standard, "CORS-preflight fetch": browsers send no JSON and no DELETE without a preflight."""
    raw = [(b"host", b"localhost"), (b"origin", b"https://evil.example"), (b"content-type", kind.encode())]
    assert is_cross_origin_simple_post(Request({"type": "http", "method": method, "headers": raw})) is is_foreign


def test_a_listed_origin_may_send_posts() -> None:
    """Exactly as listed; `null` never."""
    origins = parse_origins("https://app.example, HTTP://localhost:3000,")
    assert origins == {"https://app.example", "http://localhost:3000"}
    for origin, is_foreign in {
        "https://app.example": False,
        "http://localhost:3000": False,
        "http://app.example": True,
        "https://app.example:8443": True,
        "https://app.example.evil.example": True,
        "https://evil.example": True,
        "null": True,
        "": True,
    }.items():
        raw = [(b"host", b"box.example"), (b"origin", origin.encode()), (b"sec-fetch-site", b"cross-site")]
        request = Request({"type": "http", "method": "POST", "headers": raw})
        assert is_cross_origin_simple_post(request, origins) is is_foreign, origin
