"""SystemResolver: the system's look-up of host names for aiohttp, with a thread for each name."""

import asyncio
import concurrent.futures
import socket
from collections.abc import Sequence

from aiohttp.abc import AbstractResolver, ResolveResult

from tailrace.proto.runtime.name_lookup import AddressInfo, look_up

# Names that are looked up at once, for all tenants together. A look-up outlasts the attempt that began it. So a tenant
# whose names no server answers has up to 8 * (1 + look-up time / TAILRACE_WEBHOOK_TIMEOUT_S) of them: 24 with look-ups
# of 30 s and the default of 15 s. Ten such tenants use all look-ups, and the webhooks of others are sent later.
LOOKUPS_MAX = 256
# The results of `getaddrinfo` are numbers, which need no further look-up.
NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class SystemResolver(AbstractResolver):
    """Looks up names as all programs of the machine do: /etc/hosts, DNS, mDNS.

    aiohttp's own resolver uses uvloop's threads: two names of one tenant would delay the webhooks of all others.

    aiodns needs no threads, but aiohttp then also uses it for the model, and it does not know names of mDNS.
    """

    def __init__(self) -> None:
        self._lookups: set[concurrent.futures.Future[Sequence[AddressInfo]]] = set()
        """The running look-ups, also after their caller was cancelled."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses of `host`. Raises OSError, also if LOOKUPS_MAX names are being looked up."""
        if len(self._lookups) >= LOOKUPS_MAX:
            raise OSError(f"{LOOKUPS_MAX} names are being looked up")
        lookup = look_up(host, port, family)
        self._lookups.add(lookup)
        lookup.add_done_callback(self._lookups.discard)
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=NUMERIC)
            for kind, _, proto, _, address in await asyncio.wrap_future(lookup)
        ]

    async def close(self) -> None:
        """Does nothing: the threads end by themselves."""
