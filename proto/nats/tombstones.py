"""Tombstones: which turns were deleted, for as long as a request that repeats one may be in the log. Nothing else.

They stand in the bucket of the claims, which lives as long as the log keeps its turns (PROTOCOL R35).
"""

import asyncio
from collections.abc import Iterable

import nats.errors
import nats.js.errors

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import CLAIMS_STREAM, TurnKey


class Tombstones:
    """Set before a turn's row is deleted; a turn that is asked anew under its id is not taken for the deleted one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(self, turns: Iterable[TurnKey]) -> None:
        """One for each of `turns`. Raises LogUnavailable; some may stand then."""
        names = [subjects.tombstone(key) for key in turns]
        try:
            await asyncio.gather(*(self._connection.jetstream.publish(name, b"") for name in names))
        except nats.errors.Error as error:
            raise LogUnavailable(f"deleted turns cannot be marked: {type(error).__name__}") from error

    async def exists(self, key: TurnKey) -> bool:
        """Whether the turn has one: asked of the bucket's leader, who is never behind. Raises LogUnavailable."""
        name = subjects.tombstone(key)
        try:
            await self._connection.jetstream.get_last_msg(CLAIMS_STREAM, name, direct=False)
        except nats.js.errors.NotFoundError:
            return False
        except nats.errors.Error as error:
            raise LogUnavailable(f"the deleted turns do not answer: {type(error).__name__}") from error
        return True
