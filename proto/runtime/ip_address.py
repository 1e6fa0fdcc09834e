"""IP addresses in text: whether a name is one, and whether it is this machine's loopback."""

import ipaddress


def is_ip_address(text: str) -> bool:
    """Returns whether `text` is an IPv4 or IPv6 address, without brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Returns whether `host` is `localhost` or a loopback address."""
    return host == "localhost" or (is_ip_address(host) and ipaddress.ip_address(host).is_loopback)
