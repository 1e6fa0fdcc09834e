"""Limits on the open readers of one gateway: in total, of one tenant, and from one address.

They protect one gateway from one tenant's mistake, are on by default and need no NATS. The limit `streams` of a tenant
over all gateways is that of a limiter (auth/admission.py).
"""

import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tailrace.gateway.http.retry_later import retry_delay_s
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant

# The owner of an IPv6 address has a whole /64.
IPV6_PREFIX_BITS = 64

Group = tuple[str, str]
"""Readers that are counted together: "tenant" or "address", and its name."""
Groups = Sequence[Group]


class ReaderLimits(NamedTuple):
    """The most readers in total, of one tenant and from one address."""

    total: int
    of_tenant: int
    of_address: int


class ReaderCounts:
    """Counts open readers: `add` when one connects, `remove` when it has disconnected."""

    def __init__(self, limits: ReaderLimits) -> None:
        self._limits = limits
        self._total = 0
        self._by: Counter[Group] = Counter()

    def add(self, tenant: Tenant, address: str | None) -> Groups:
        """Counts one reader, for `address` too unless it is None. Returns what `remove` needs.

        Raises Refused above a limit.
        """
        limits, groups = self._limits, [("tenant", str(tenant))]
        if address is not None:
            groups.append(("address", owner_of(address)))
        if self._total >= limits.total:
            message = f"This gateway has {limits.total} open streams, its limit; retry."
            raise Refused("server_busy", message, retry_after_s=retry_delay_s())
        for group, most, noun in zip(groups, limits[1:], ("This tenant", "This address"), strict=False):
            if self._by[group] >= most:
                message = f"{noun} has {most} open streams at this gateway, its limit; close one."
                raise Refused("too_many_streams", message, retry_after_s=retry_delay_s())
        self._total += 1
        for group in groups:
            self._by[group] += 1
        return groups

    def remove(self, groups: Groups) -> None:
        """Stops counting one reader. `groups` is the result of its `add`."""
        self._total -= 1
        for group in groups:
            self._by[group] -= 1
            if not self._by[group]:
                del self._by[group]


def owner_of(address: str) -> str:
    """Returns the owner of an address: itself for IPv4, its /64 for IPv6."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, IPV6_PREFIX_BITS), strict=False))
