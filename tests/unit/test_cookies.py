"""Reading a cookie from the headers of a request."""

import time

import pytest
from starlette.datastructures import Headers

from tailrace.protocols.common.cookies import cookie_value

HEADERS_BYTES_MAX = 60_000


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ((), ""),
        (("a=1",), "1"),
        (("b=2; a=1;c=3",), "1"),
        (("b=2", " a = 1 "), "1"),  # a proxy of HTTP/2 may split them (RFC 9113, 8.2.3)
        (("a=x.y==",), "x.y=="),
        (("a=1; a=2",), "1"),
        (("aa=2; A=3; a",), ""),
        (('a="1"',), '"1"'),
    ],
)
def test_a_cookie_is_found_by_its_name(sent: tuple[str, ...], value: str) -> None:
    assert cookie_value(Headers(raw=[(b"cookie", one.encode()) for one in sent]), "a") == value


@pytest.mark.rule("S14")
@pytest.mark.parametrize("text", ['a="{}"', "a;", "=", ";"])
def test_the_longest_cookies_are_read_at_once(text: str) -> None:
    """The page `/` reads them without a key; Python's unquoting takes seconds (CVE-2024-7592)."""
    sent = text.format("\\" * HEADERS_BYTES_MAX) if "{}" in text else text * (HEADERS_BYTES_MAX // len(text))
    began = time.process_time()
    cookie_value(Headers({"cookie": sent}), "a")
    assert time.process_time() - began < 0.2
