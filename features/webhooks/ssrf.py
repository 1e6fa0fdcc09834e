"""SSRF protection for webhooks: which URLs and which addresses are allowed. Pure: resolves no names.

A URL is checked when a turn names it and again before each delivery. An address is checked when the socket connects to
it, so that DNS rebinding does not reach a private address. Hosts that the operator has listed in the setting are
private hosts: plain HTTP and any address are allowed for them.
"""

import ipaddress
import re
from typing import NamedTuple

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.ip_address import is_ip_address

URL_CHARS_MAX = 2048
# Stricter than RFC 3986, so that two parsers cannot read a URL differently: no userinfo, no fragment, no backslash, no
# space, only ASCII. Internationalised names are written as `xn--…`.
NAME = r"[a-z0-9][a-z0-9_-]{0,62}(?:\.[a-z0-9_-]{1,63})*\.?"
URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{{2,45}}\]|(?=.{{1,253}}(?:[:/?]|$)){NAME})"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?][A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?"
)
PORTS = {"http": 80, "https": 443}
# Lower ports belong to mail, shells and directory services. Of these, webhook receivers use only 80 and 443.
PORT_MIN = 1024
# Numeric addresses as inet_aton reads them: `127.1`, `0x7f000001`, `2130706433`. No DNS name ends in a number.
NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")
# NAT64 addresses embed an IPv4 address, which is checked instead.
NAT64 = ipaddress.ip_network("64:ff9b::/96")
UNICAST = ipaddress.ip_network("2000::/3")
# Networks that `is_global` accepts in some versions of Python. The last is Azure's metadata address, which hands out a
# machine's secrets like 169.254.169.254.
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20", "168.63.129.16/32"),
    )
)

SETTING = "TAILRACE_WEBHOOK_PRIVATE_HOSTS"


class Destination(NamedTuple):
    """A checked URL's host, without brackets, and whether the operator has listed it as private."""

    host: str
    is_private: bool


class UrlNotAllowed(ValueError):
    """The URL is not allowed. The message is a predicate: the caller puts the field's name before it."""


def parse_private_hosts(text: str) -> frozenset[str]:
    """Parses the setting: host names and addresses, separated by commas. Raises SettingsInvalid."""
    hosts = frozenset(host.strip().strip("[]").lower() for host in text.split(",") if host.strip())
    for host in hosts:
        if re.fullmatch(NAME, host) is None and not is_ip_address(host):
            raise SettingsInvalid(
                f"{SETTING}: {host!r} is not a host: list names and addresses, separated by commas, without scheme"
            )
    return hosts


def check_url(url: str, private: frozenset[str]) -> Destination:
    """Checks a webhook's `url` and returns its destination. Raises UrlNotAllowed."""
    if len(url) > URL_CHARS_MAX:
        raise UrlNotAllowed(f"is longer than {URL_CHARS_MAX} characters")
    found = URL.fullmatch(url)
    if found is None:
        raise UrlNotAllowed(
            "must be a URL like https://HOST/PATH: scheme and host in lower case, no user, password or fragment, "
            "special characters percent-encoded"
        )
    scheme, host = found["scheme"], found["host"].strip("[]")
    port = int(found["port"] or PORTS[scheme])
    if not 0 < port < 65536:
        raise UrlNotAllowed(f"has the port {port}, which is not between 1 and 65535")
    if host in private:
        return Destination(host, is_private=True)
    if scheme != "https":
        raise UrlNotAllowed(f"must begin with https://; http:// is only allowed for hosts in {SETTING}")
    if port < PORT_MIN and port not in PORTS.values():
        raise UrlNotAllowed(
            f"has the port {port}: below {PORT_MIN} only 80 and 443 are allowed, except for hosts in {SETTING}"
        )
    if host.rstrip(".") == "localhost" or (_is_literal(host) and not is_public(host)):
        raise UrlNotAllowed(f"leads to an address that is not public: add the host to {SETTING} to allow it")
    return Destination(host, is_private=False)


def is_public(address: str) -> bool:
    """Returns whether `address` is a public unicast address. False if it is not an address."""
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


def _is_literal(host: str) -> bool:
    return ":" in host or NUMERIC.fullmatch(host) is not None
