"""StreamAccess: the extension point at which optional features permit, count and end the response to one request.

The features are the limits on readers and streams, credentials that expire or are revoked, and tickets. The responses
themselves name none of them.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.tickets import PARAMETER, Tickets
from tailrace.gateway.limits.stream_slots import StreamPermit
from tailrace.gateway.streaming.stream_context import StreamContext
from tailrace.proto.ids import TurnKey
from tailrace.proto.runtime.flag import Flag


class StreamAccess:
    """The access of one request to the streams of this gateway."""

    def __init__(
        self,
        streams: StreamContext,
        request: ApiRequest,
        id_prefix: bytes = b"",
        accept: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`id_prefix` precedes each SSE id. `accept` is called right before status 200 is sent; it may raise Refused.

        Raises Refused on a public route, where no credential was checked.
        """
        self.streams = streams
        self.id_prefix = id_prefix
        self.accept = accept
        self.requested_at = time.monotonic()
        address = request.client.host if request.client is not None else ""
        self.permit = StreamPermit(streams.slots, request.principal, address)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Flag]:
        """Counts the reader until the context is left. Raises Refused above a limit.

        Yields a flag that is set when the credential has expired or was revoked.
        """
        try:
            self.permit.enter()
            with self.streams.authenticator.watch(self.permit.principal) as expired:
                yield expired
        finally:
            await self.permit.release()


class TurnAccess:
    """Permits requests for the events of one turn, with a credential or with a ticket in the URL."""

    def __init__(self, streams: StreamContext, tickets: Tickets) -> None:
        self._streams = streams
        self._tickets = tickets

    async def of(self, request: ApiRequest, key: TurnKey) -> StreamAccess:
        """Returns the access of `request` to the turn. Raises Refused if its ticket is not valid or was used."""
        ticket = await self._tickets.read_single_use(request, key) if PARAMETER in request.query_params else None
        if ticket is None:
            return StreamAccess(self._streams, request)
        return StreamAccess(self._streams, request, *self._tickets.stream_terms(ticket, request))
