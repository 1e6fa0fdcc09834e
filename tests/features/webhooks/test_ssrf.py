"""URLs and addresses to which webhooks may be sent."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.webhooks.ssrf import Destination, UrlNotAllowed, check_url, is_public, parse_private_hosts

NO_HOSTS: frozenset[str] = frozenset()
PUBLIC = [
    *("https://example.com", "https://example.com/", "https://example.com/hook?a=b&c=%20d"),
    *("https://example.com?a=b", "https://hooks.example.com:8443/a/b;c", "https://example.com:80/"),
    *("https://xn--bcher-kva.example/", "https://93.184.216.34/hook"),
    *("https://[2606:2800:220:1:248:1893:25c8:1946]:8443/hook", "https://example.com./"),
]
NO_URL = [
    *("", "example.com", "ftp://example.com/", "https:example.com", "https:///example.com"),
    *("https://user@example.com/", "https://example.com\\@169.254.169.254/", "https://example.com/#fragment"),
    *("https://example.com /", " https://example.com/", "https://example.com/\r\nHost: other"),
    *("https://example.com\t/", "https://ex\u0430mple.com/", "https://example.com/\u00e9"),
    *("https://%31%32%37.0.0.1/", "https://[::1%25lo]/", "https://[example.com]/", "https://example.com:port/"),
    *("https://example.com:/", "https://-example.com/", "https://example..com/", "https://example.com../"),
    *(f"https://{'a' * 64}.com/", f"https://{'a.' * 130}com/", "HTTPS://example.com/", "https://Example.com/"),
    "https://example.com/" + "a" * 2048,
]
NO_PORT = ["https://example.com:0/", "https://example.com:65536/", "https://example.com:99999/"]
LOW_PORT = [f"https://example.com:{port}/" for port in (1, 22, 25, 53, 389, 1023)]
NOT_HTTPS = ["http://example.com/", "http://example.com:443/", "http://127.0.0.1/"]
NOT_PUBLIC = [
    *("https://localhost/", "https://localhost./", "https://127.0.0.1/", "https://127.1/", "https://127.0.0.1./"),
    *("https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://168.63.129.16/"),
    "https://[::1]/",
]
NOT_PUBLIC_ADDRESSES = [
    *("0.0.0.0", "10.255.255.255", "100.64.0.1", "127.0.0.1", "168.63.129.16", "169.254.169.254", "172.31.255.255"),
    *("192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "::", "::1", "::127.0.0.1"),
    *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001:db8::1", "2001:1::1", "3fff::1"),
    *("5f00::1", "192.88.99.1", "2002:7f00:1::", "fc00::1", "fe80::1", "2606:4700::1111%eth0", "fec0::1", "ff02::1"),
]


@pytest.mark.parametrize("url", PUBLIC)
def test_a_public_https_url_may_be_named(url: str) -> None:
    assert not check_url(url, NO_HOSTS).is_private


@pytest.mark.rule("S10")
@pytest.mark.parametrize(
    ("url", "why"),
    [
        *((url, "must be a URL") for url in NO_URL[:-1]),
        (NO_URL[-1], "is longer than"),
        *((url, "not between 1 and 65535") for url in NO_PORT),
        *((url, "has the port") for url in LOW_PORT),
        *((url, "must begin with https://") for url in NOT_HTTPS),
        *((url, "not public") for url in NOT_PUBLIC),
    ],
)
def test_an_ambiguous_url_is_refused_with_its_reason(url: str, why: str) -> None:
    """FAULTS 1, S10: a URL that two parsers could read differently."""
    with pytest.raises(UrlNotAllowed, match=why):
        check_url(url, NO_HOSTS)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:9000/hook", "127.0.0.1"),
        ("http://[::1]/", "::1"),
        ("https://hooks.internal:22/", "hooks.internal"),
        ("http://localhost/", "localhost"),
    ],
)
def test_a_host_that_the_operator_named_is_private(url: str, host: str) -> None:
    """Plain HTTP, any port and any address are right for it, and for it alone."""
    private = parse_private_hosts(" 127.0.0.1,[::1], Hooks.internal , localhost,,")
    assert check_url(url, private) == Destination(host, is_private=True)
    with pytest.raises(UrlNotAllowed):
        check_url("http://127.0.0.2/", private)


def test_without_the_setting_no_host_may_be_private() -> None:
    assert parse_private_hosts("") == parse_private_hosts(" , ") == frozenset()


@pytest.mark.parametrize("address", [*NOT_PUBLIC_ADDRESSES, "", "localhost", "127.1", "1.2.3.4.5", "[::1]", "\x00"])
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    """Private, loopback, link-local, multicast, reserved, embedded, those of metadata services, and other text."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_a_public_address_is_connected_to(address: str) -> None:
    """Behind NAT64 it is the IPv4 address that counts."""
    assert is_public(address)


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}", "::{}"]))
def test_an_embedded_ipv4_address_is_not_more_public_than_itself(inner: ipaddress.IPv4Address, outer: str) -> None:
    assert is_public(str(inner)) or not is_public(outer.format(inner))


@given(st.text(max_size=60) | st.from_regex(r"https://[ -~]{0,40}", fullmatch=True))
def test_any_text_is_a_destination_or_refused(text: str) -> None:
    """Nothing that a client can write breaks the parser; what it takes has a host that a socket can be given."""
    try:
        found = check_url(text, NO_HOSTS)
    except UrlNotAllowed:
        return
    assert found.host
    assert found.host.isascii()
    assert not set(found.host) & set("@\\#/? \t\r\n%")
