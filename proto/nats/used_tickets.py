"""Which one-use tickets have been used: a name in the bucket of the claims, made once, gone with them."""

import asyncio
import secrets

import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import CLAIMS

TRIES = 10
STALE_WAIT_S = 0.01


class UsedTickets:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bucket: KeyValue | None = None

    async def mark_used(self, ticket: str) -> bool:
        """Whether this is the first use of `ticket`, over all gateways. Raises LogUnavailable."""
        # No claim of an idempotency key has a dot in its name.
        name, mine = f"ticket.{ticket}", secrets.token_bytes(16)
        try:
            if self._bucket is None:
                self._bucket = await self._connection.jetstream.key_value(CLAIMS)
            for _ in range(TRIES):
                try:
                    return await _is_first(self._bucket, name, mine)
                except nats.js.errors.KeyNotFoundError:
                    # Somebody was first, and the server that was asked who is behind (PROTOCOL R14).
                    await asyncio.sleep(STALE_WAIT_S)
        except nats.errors.Error as error:
            raise LogUnavailable(f"the ticket cannot be looked up: {type(error).__name__}") from error
        raise LogUnavailable("the ticket has been used, and no server can say by whom yet")


async def _is_first(bucket: KeyValue, name: str, mine: bytes) -> bool:
    try:
        await bucket.create(name, mine)
    except nats.js.errors.KeyWrongLastSequenceError:
        # Somebody was first, or it was this very call, whose acknowledgement was lost.
        return (await bucket.get(name)).value == mine
    return True
