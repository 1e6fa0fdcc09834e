"""Where a webhook may go: which URL may be named, and which address may be connected to. Pure; it resolves nothing.

A URL is judged when a turn names it and again before each call. An address is judged at the very socket that is opened
to it, so that a name which means another machine the second time (DNS rebinding) reaches nothing. A host that the
operator has named is private: plain HTTP and any address are right for it.
"""

import ipaddress
import re
from typing import NamedTuple

from tailrace.proto.errors import SettingsInvalid

URL_CHARS_MAX = 2048
# Narrower than RFC 3986, so that no two parsers can read one of these differently: no userinfo, no fragment, no
# backslash, no space, nothing but ASCII. A name in another script is written as `xn--…`.
NAME = r"[a-z0-9][a-z0-9_-]{0,62}(?:\.[a-z0-9_-]{1,63})*\.?"
URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{{2,45}}\]|(?=.{{1,253}}(?:[:/?]|$)){NAME})"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?][A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?"
)
PORTS = {"http": 80, "https": 443}
# Below it live mail servers, shells and directories, and no receiver of webhooks besides HTTP's own two.
PORT_MIN = 1024
# As inet_aton reads numbers: `127.1`, `0x7f000001`, `2130706433`. Nobody's host name ends in one.
NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")
# What stands behind one of these is an IPv4 address, and that one is judged.
NAT64 = ipaddress.ip_network("64:ff9b::/96")
UNICAST = ipaddress.ip_network("2000::/3")
# What `is_global` takes for public, in this or that version of Python. The last is each machine's own at Azure: like
# 169.254.169.254, it hands out the machine's secrets.
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20", "168.63.129.16/32"),
    )
)

SETTING = "TAILRACE_WEBHOOK_PRIVATE_HOSTS"


class Destination(NamedTuple):
    """The host without brackets, and whether the operator has said that it is one of his own."""

    host: str
    is_private: bool


class UrlNotAllowed(ValueError):
    """The message says why, and follows the name of what holds the URL."""


def parse_private_hosts(text: str) -> frozenset[str]:
    """The hosts of the setting: names and addresses, joined by commas. Raises SettingsInvalid."""
    hosts = frozenset(host.strip().strip("[]").lower() for host in text.split(",") if host.strip())
    for host in hosts:
        if re.fullmatch(NAME, host) is None and not _is_address(host):
            raise SettingsInvalid(
                f"{SETTING}: {host!r} is no host: names and addresses, joined by commas, without scheme, port and path"
            )
    return hosts


def check_url(url: str, private: frozenset[str]) -> Destination:
    """Where `url` leads; raises NotAllowed."""
    if len(url) > URL_CHARS_MAX:
        raise UrlNotAllowed(f"is longer than {URL_CHARS_MAX} characters")
    found = URL.fullmatch(url)
    if found is None:
        raise UrlNotAllowed(
            "is no URL like https://HOST/PATH: in lower case up to the path, without user and password, without #…, "
            "and with what is special percent-encoded"
        )
    scheme, host = found["scheme"], found["host"].strip("[]")
    port = int(found["port"] or PORTS[scheme])
    if not 0 < port < 65536:
        raise UrlNotAllowed(f"names the port {port}, which there cannot be")
    if host in private:
        return Destination(host, is_private=True)
    if scheme != "https":
        raise UrlNotAllowed(f"must begin with https://, but for hosts that {SETTING} names")
    if port < PORT_MIN and port not in PORTS.values():
        raise UrlNotAllowed(
            f"names the port {port}: below {PORT_MIN} there are 443 and 80, but for hosts that {SETTING} names"
        )
    if host.rstrip(".") == "localhost" or (_is_literal(host) and not is_public(host)):
        raise UrlNotAllowed(f"leads to an address that is not public: only hosts that {SETTING} names may")
    return Destination(host, is_private=False)


def is_public(address: str) -> bool:
    """Whether `address` may be connected to for anybody who names it; False for what is no address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        if found.scope_id is not None or found not in UNICAST:
            return False
    return found.is_global and not found.is_multicast and not any(found in network for network in NOT_PUBLIC)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_literal(host: str) -> bool:
    return ":" in host or NUMERIC.fullmatch(host) is not None
