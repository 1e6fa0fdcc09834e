"""Used tickets, in the bucket CLAIMS: each ticket can be used once."""

import secrets
from contextlib import suppress

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.subjects import CLAIMS

# The oldest marks are dropped. A ticket must be used within a minute, so their tickets have expired.
UNCONFIRMED_MAX = 10_000


class UsedTickets:
    """Marks tickets as used, over all gateways."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, CLAIMS, "the ticket")
        self._unconfirmed: dict[str, set[bytes]] = {}
        """The marks that NATS has not acknowledged and may still store, by ticket: their readers were refused."""

    async def mark_used(self, ticket: str) -> bool:
        """Returns whether this is the first use of `ticket`, over all gateways.

        Raises LogUnavailable. The ticket is then unused for a later call of this object, even if NATS stores the mark.
        """
        # Random, so that a first use whose acknowledgement was lost is recognised when it is stored again. Names of
        # claims have no dot. Taken out of the dict: of two requests at once, only one may continue the earlier use.
        marks = self._unconfirmed.pop(ticket, None) or {secrets.token_bytes(16)}
        mine, name = next(iter(marks)), f"ticket.{ticket}"
        with suppress(LogUnavailable):
            return await self._bucket.create(name, mine) in marks
        try:
            return await self._bucket.create(name, mine) in marks
        except LogUnavailable:
            # Of concurrent requests, NATS may store any mark.
            self._unconfirmed.setdefault(ticket, set()).update(marks)
            if len(self._unconfirmed) > UNCONFIRMED_MAX:
                del self._unconfirmed[next(iter(self._unconfirmed))]
            raise
