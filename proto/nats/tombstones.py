"""Tombstones of deleted turns, in the bucket CLAIMS, which keeps them as long as the log keeps turns (PROTOCOL R35)."""

import asyncio
from collections.abc import Iterable

import nats.errors
import nats.js.errors

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import CLAIMS_STREAM, TurnKey


class Tombstones:
    """A tombstone is set before a turn's row is deleted, so that a repeated request does not bring the turn back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(self, turns: Iterable[TurnKey]) -> None:
        """Sets a tombstone for each of `turns`. After LogUnavailable some may be set."""
        names = [subjects.tombstone(key) for key in turns]
        try:
            await asyncio.gather(*(self._connection.jetstream.publish(name, b"") for name in names))
        except nats.errors.Error as error:
            raise LogUnavailable(f"deleted turns cannot be marked ({type(error).__name__}): retry") from error

    async def exists(self, key: TurnKey) -> bool:
        """Returns whether the turn has a tombstone, read from the leader, which never lags. Raises LogUnavailable."""
        name = subjects.tombstone(key)
        try:
            await self._connection.jetstream.get_last_msg(CLAIMS_STREAM, name, direct=False)
        except nats.js.errors.NotFoundError:
            return False
        except nats.errors.Error as error:
            raise LogUnavailable(f"deleted turns cannot be looked up ({type(error).__name__}): retry") from error
        return True
