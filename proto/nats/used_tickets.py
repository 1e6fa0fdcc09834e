"""Used tickets, in the bucket CLAIMS: each ticket can be used once."""

import secrets
from contextlib import suppress

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.subjects import CLAIMS


class UsedTickets:
    """Marks tickets as used, over all gateways."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, CLAIMS, "the ticket")

    async def mark_used(self, ticket: str) -> bool:
        """Returns whether this is the first use of `ticket`, over all gateways. Raises LogUnavailable."""
        # Random, so that a first use whose acknowledgement was lost is recognised when it is stored again. Names of
        # claims have no dot.
        mine, name = secrets.token_bytes(16), f"ticket.{ticket}"
        with suppress(LogUnavailable):
            return await self._bucket.create(name, mine) == mine
        return await self._bucket.create(name, mine) == mine
