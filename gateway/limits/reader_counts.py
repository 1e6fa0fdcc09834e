"""How many readers this gateway has at once: of all, of one tenant, from one address. It knows nobody who has left.

What a tenant may have over all gateways is a limit of its own (open_streams.py), and none by default. This is what
keeps one gateway, and its other readers, from one tenant's mistake, and it needs no NATS.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tailrace.gateway.http.retry_later import again_s
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant

# An IPv6 address is one of very many that its owner has.
OWNED_BITS = 64


class ReaderLimits(NamedTuple):
    """The most readers of each kind."""

    of_all: int
    of_tenant: int
    of_address: int


class ReaderCounts:
    """`with crowd.joined(tenant, address):` while somebody is read to, or waits for it."""

    def __init__(self, room: ReaderLimits) -> None:
        self._room = room
        self._all = 0
        self._of: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def joined(self, tenant: Tenant, address: str) -> Iterator[None]:
        """Raises Refused when there are too many."""
        room, kinds = self._room, (("tenant", tenant), ("address", owner_of(address)))
        if self._all >= room.of_all:
            message = f"{room.of_all} streams are open here, and no more may be: come again"
            raise Refused("server_busy", message, retry_after_s=again_s())
        for kind, most, noun in zip(kinds, room[1:], ("of this tenant", "from this address"), strict=True):
            if self._of[kind] >= most:
                message = f"{most} streams {noun} are open here, and no more may be: close one"
                raise Refused("too_many_streams", message, retry_after_s=again_s())
        self._all += 1
        self._of.update(kinds)
        try:
            yield
        finally:
            self._all -= 1
            self._of.subtract(kinds)
            for kind in kinds:
                if not self._of[kind]:
                    del self._of[kind]


def owner_of(address: str) -> str:
    """Whose an address is: of IPv6 a network of them."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if ip.version == 4:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, OWNED_BITS), strict=False))
