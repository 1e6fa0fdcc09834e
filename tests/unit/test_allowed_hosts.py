"""The check of the Host header."""

import pytest
from starlette.datastructures import Headers

from tailrace.gateway.auth.allowed_hosts import AllowedHosts
from tailrace.gateway.settings import Settings

# What no Host header is, whatever is listed.
MALFORMED = [
    *("", "localhost ", "localhost:", "localhost:123456", "localhost/health?x=", "user@localhost"),
    *("localhost,evil.example", "[::1]x", "[evil.example]", ".", "localhost..", "bücher.example", "a" * 70_000 + "!"),
]


def headers(*hosts: str) -> Headers:
    return Headers(raw=[(b"host", host.encode("utf-8")) for host in hosts])


def allows(host: str, listed: str = "", *, is_key_needed: bool) -> bool:
    return AllowedHosts(Settings(hosts=listed)).allows(headers(host), is_key_needed=is_key_needed)


@pytest.mark.parametrize(
    ("host", "listed", "without_keys", "with_keys"),
    [
        ("localhost", "", True, True),
        ("LocalHost:8000", "", True, True),
        ("127.0.0.1:8000", "", True, True),
        ("[::1]:8000", "", True, True),
        ("10.1.2.3:8000", "", True, True),  # a health check's; no name can be pointed elsewhere here
        ("box.example", "", False, True),
        ("box.example", "box.example", True, True),
        ("Box.Example:443", " BOX.example ,other.example", True, True),
        ("evil.example", "box.example", False, False),
        ("box.example.evil.example", "box.example", False, False),
        ("xbox.example", "box.example", False, False),
        ("10.1.2.3", "box.example", True, True),
        ("localhost", "box.example", True, True),
        ("127.1", "", False, True),  # a browser writes it out
        ("evil.example", "*", True, True),
        ("evil.example", "box.example,*", True, True),
    ],
)
def test_host_is_allowed_by_list_and_by_need_of_a_key(
    host: str, listed: str, *, without_keys: bool, with_keys: bool
) -> None:
    """Without a list, keys allow every name, and no keys only localhost and addresses."""
    assert allows(host, listed, is_key_needed=False) is without_keys
    assert allows(host, listed, is_key_needed=True) is with_keys


@pytest.mark.parametrize("host", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("listed", ["", "*"])
def test_a_malformed_host_is_refused(host: str, listed: str) -> None:
    """With keys and without: CVE-2026-48710 began with `Host: a/health?x=`."""
    assert not allows(host, listed, is_key_needed=True)
    assert not allows(host, listed, is_key_needed=False)


def test_several_hosts_are_refused() -> None:
    """A proxy might use another one; HTTP/1.0 sends none, which only a list refuses."""
    for listed in ("", "*", "localhost"):
        two = AllowedHosts(Settings(hosts=listed))
        assert not two.allows(headers("localhost", "localhost"), is_key_needed=True)
        assert not two.allows(headers(), is_key_needed=False)
    assert AllowedHosts(Settings()).allows(headers(), is_key_needed=True)
    assert not AllowedHosts(Settings(hosts="localhost")).allows(headers(), is_key_needed=True)
