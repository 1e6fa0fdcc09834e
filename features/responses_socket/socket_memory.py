"""The memory of all WebSockets: what arrives, waits, runs or is kept, for connections that hold more than a little.

An HTTP request waits for the memory of its body (large_bodies.py). A message cannot wait: the one behind it may cancel
a response. So there is room at once, or the message is refused. The input that idle connections keep leaves room for
messages: without it, a client sends its whole input again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX
from tailrace.proto.ids import Tenant

Resize = Callable[[int], bool]
"""Holds so many bytes in place of those before. Returns False, and changes nothing, if there is no room for them."""


class SocketMemory:
    """`bytes_max` bytes for all tenants, of which one tenant may hold half."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held: defaultdict[Tenant, int] = defaultdict(int)

    @property
    def held(self) -> int:
        """The bytes that are held."""
        return sum(self._held.values())

    @contextmanager
    def hold(self, tenant: Tenant, *, is_optional: bool = False) -> Iterator[Resize]:
        """Returns what holds memory for `tenant` until the context is left. Up to SMALL_BYTES_MAX are not counted.

        `is_optional`: it is granted only if half of the memory stays free.
        """
        own, is_open, divisor = 0, True, 2 if is_optional else 1

        def resize(size: int) -> bool:
            nonlocal own
            size = size if size > SMALL_BYTES_MAX else 0
            added = size - own
            if added > 0 and (not is_open or not self._has_room(tenant, added, divisor)):
                return False
            own = size
            self._held[tenant] += added
            if not self._held[tenant]:
                del self._held[tenant]
            return True

        try:
            yield resize
        finally:
            resize(0)
            is_open = False

    def _has_room(self, tenant: Tenant, added: int, divisor: int) -> bool:
        most = self._bytes_max // divisor
        return self._held.get(tenant, 0) + added <= most // 2 and self.held + added <= most
